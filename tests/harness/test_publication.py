"""Publishing: who was overtaken publishes nothing, and nothing is published of a parent that is another by now."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from harness.claims import Claim, Observer, Owner, take
from harness.frontier import Frontier
from harness.plan import Plan, Stage
from harness.publication import publish_made
from harness.store import Result, Store, digest


class Bench:
    """A mask and what is made from it, each by hand."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.mask = self._stage("mask", {})
        self.child = self._stage("rescale", {"mask": self.mask.key})
        plan = Plan("two", {stage.key: stage for stage in (self.mask, self.child)}, beside=[self.child.key])
        self.frontier = Frontier(plan, self.store, Observer())

    @staticmethod
    def _stage(kind: str, parents: dict[str, str]) -> Stage:
        return Stage(digest({"kind": kind, "parents": parents}), kind, {}, parents, kind)

    def claim(self, stage: Stage) -> Claim:
        """Take the next generation, whoever has the one before."""
        folder = self.store.folder(stage.kind, stage.key)
        claim = take(folder, folder.generation, Owner.me())
        assert claim is not None
        return claim

    def publish(self, stage: Stage, claim: Claim, content: str, mask: str = "") -> str:
        """Publish a content, made from the mask of another; return what became of it."""
        (claim.attempt / "draft").write_text(content)
        times = {"resumed": 0, "resumed_at": 0, "seconds": 0.0, "device_seconds": 0.0, "metrics": {}, "stamp": {}}
        end = {"draft": "draft", "sha256": sha256(content), "bytes": len(content), **times}
        return publish_made(self.frontier, stage, claim, {"mask": ("", sha256(mask))} if mask else {}, end)

    def results(self, stage: Stage) -> list[Result]:
        """Return what was published of a stage."""
        return self.store.folder(stage.kind, stage.key).results()


def sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    assert made.publish(made.mask, made.claim(made.mask), "a mask") == "published"
    return made


def test_who_was_overtaken_publishes_no_second_result(bench: Bench) -> None:
    frozen, quick = bench.claim(bench.child), bench.claim(bench.child)
    assert bench.publish(bench.child, quick, "quick", "a mask") == "published"
    assert bench.publish(bench.child, frozen, "frozen", "a mask") == "gave up"
    (result,) = bench.results(bench.child)
    assert result.artifact.sha256 == sha256("quick")
    assert (frozen.folder.end(frozen.generation) or {})["outcome"] == "gave up"


def test_what_was_made_from_a_mask_that_is_another_by_now_is_not_published(bench: Bench) -> None:
    claim = bench.claim(bench.child)
    assert bench.publish(bench.mask, bench.claim(bench.mask), "another mask") == "published"
    assert bench.publish(bench.child, claim, "child", "a mask") == "stopped"
    assert not bench.results(bench.child)
    assert "mask was rebuilt" in (claim.folder.end(claim.generation) or {})["message"]


def test_the_same_content_is_a_result_of_its_own_only_where_it_is_of_another_parent(bench: Bench) -> None:
    assert bench.publish(bench.child, bench.claim(bench.child), "child", "a mask") == "published"
    again = bench.claim(bench.child)
    assert bench.publish(bench.child, again, "child", "a mask") == "published"
    assert (again.folder.end(again.generation) or {})["outcome"] == "restored"
    assert bench.publish(bench.mask, bench.claim(bench.mask), "another mask") == "published"
    bench.frontier.forget()
    assert bench.frontier.result(bench.child.key, with_artifact=True) is None, "it is to be made again"
    assert bench.publish(bench.child, bench.claim(bench.child), "child", "another mask") == "published"
    assert [result.parents[bench.mask.key] for result in bench.results(bench.child)] == [
        sha256("a mask"),
        sha256("another mask"),
    ]
    assert bench.frontier.result(bench.child.key, with_artifact=True) is not None, "it is of the mask that there is"
