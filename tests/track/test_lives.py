"""Which attempts of a stage are one run, and which rows a run may show: cases worked by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.store import Artifact, Folder, Result, Store
from harness.track.lives import Life, lives_of, rows_of_life

KEY = "0123456789abcdef0123456789abcdef"


def rows(*losses: float) -> list[dict[str, Any]]:
    return [{"epoch": n + 1, "train_loss": loss, "best": False} for n, loss in enumerate(losses)]


class Stage:
    """A stage's folder, written attempt by attempt."""

    def __init__(self, root: Path) -> None:
        self.store, self.generation = Store(root), 0
        self.path = self.store.path("train", KEY)

    def attempt(
        self,
        written: Sequence[Mapping[str, Any]] = (),
        end: Mapping[str, Any] | None = None,
        saved: Sequence[Mapping[str, Any]] | None = None,
        steps: int = 0,
    ) -> Stage:
        self.generation += 1
        attempt = self.path / f"attempt-{self.generation:04d}"
        attempt.mkdir(parents=True)
        (self.path / f"claim-{self.generation:04d}").write_bytes(b"")
        if written:
            (attempt / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
        if end:
            (attempt / "end.json").write_text(json.dumps(end))
        if saved is not None:
            header = json.dumps({"__metadata__": {"position": json.dumps({"rows": list(saved)})}}).encode()
            name = f"checkpoint-{steps or len(saved):09d}-{'0' * 32}.safetensors"
            (attempt / name).write_bytes(len(header).to_bytes(8, "little") + header)
        return self

    def publish(self, content: str = "a", edition: int = 1) -> Stage:
        said = {"generation": self.generation}
        result = Result(edition, Artifact(content * 64, 1), {}, {}, {}, said)
        (self.path / f"result-{edition:04d}.json").write_bytes(result.dump())
        return self

    @property
    def folder(self) -> Folder:
        return self.store.folder("train", KEY)

    def spans(self) -> list[tuple[int, int, bool]]:
        return [(life.first, life.last, life.current) for life in lives_of(self.folder)]

    def shown(self) -> list[list[float]]:
        return [[row["train_loss"] for row in rows_of_life(self.folder, life)] for life in lives_of(self.folder)]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_resumed_training_is_one_run(stage: Stage) -> None:
    stage.attempt(rows(3, 2), saved=rows(3)).attempt(rows(3, 2, 1), {"outcome": "published"}).publish()
    assert stage.spans() == [(1, 2, True)]
    assert stage.shown() == [[3, 2, 1]]


def test_of_a_running_training_only_what_a_checkpoint_holds_is_shown(stage: Stage) -> None:
    stage.attempt(rows(3, 2, 1))
    assert stage.shown() == [[]]
    stage.attempt(rows(3, 2, 1), saved=rows(3, 2))
    assert stage.shown() == [[3, 2]]


def test_a_checkpoint_that_an_overtaken_worker_still_wrote_is_not_believed(stage: Stage) -> None:
    stage.attempt(rows(3, 2, 1.5, 1.25), saved=rows(3, 2, 1.5, 1.25)).attempt(rows(3, 2, 1), saved=rows(3, 2))
    assert stage.shown() == [[3, 2]]


def test_an_attempt_that_began_anew_elsewhere_is_another_run(stage: Stage) -> None:
    stage.attempt(rows(3, 2), saved=rows(3, 2)).attempt(rows(3.01, 2.01), saved=rows(3.01))
    assert stage.spans() == [(1, 1, False), (2, 2, True)]
    assert stage.shown() == [[3, 2], [3.01]]


def test_a_failure_ends_a_run_and_a_retry_begins_another(stage: Stage) -> None:
    failed = {"outcome": "failed", "cause": "code", "message": "boom"}
    stage.attempt(rows(3, 2), failed, saved=rows(3))
    (life,) = lives_of(stage.folder)
    assert life.current
    assert life.end == failed
    assert stage.shown() == [[3, 2]], "nothing is added to it any more, so all of it may be shown"
    stage.attempt(end={"outcome": "stopped", "released": True})
    assert stage.spans() == [(1, 1, True)], "until something new has begun"
    stage.attempt(rows(3), saved=rows(3))
    assert stage.spans() == [(1, 1, False), (3, 3, True)]


def test_dying_is_no_end_unless_somebody_asked_for_another_try(stage: Stage) -> None:
    stage.attempt(rows(3), {"outcome": "died"}, saved=rows(3)).attempt(rows(3, 2), {"outcome": "died"}, saved=rows(3))
    assert stage.spans() == [(1, 2, True)]
    assert stage.shown() == [[3]]
    stage.attempt(end={"outcome": "stopped", "released": True}).attempt(rows(3, 2))
    assert stage.spans() == [(1, 2, False), (4, 4, True)]


def test_another_edition_is_another_run_and_the_old_one_superseded(stage: Stage) -> None:
    stage.attempt(rows(3, 2), {"outcome": "published"}).publish("a")
    stage.attempt(rows(4), None)
    assert stage.spans() == [(1, 1, True)], "what is being made anew is shown once it is published"
    stage.attempt(rows(4, 3), {"outcome": "published"}).publish("b", 2)
    assert stage.spans() == [(1, 1, False), (2, 3, True)]


def test_bringing_a_file_back_changes_nothing(stage: Stage) -> None:
    stage.attempt(rows(3, 2), {"outcome": "published"}).publish().attempt(rows(3, 2), {"outcome": "restored"})
    assert stage.spans() == [(1, 1, True)]


def test_a_result_without_claims_is_a_run(stage: Stage) -> None:
    stage.path.mkdir(parents=True)
    stage.generation = 2
    stage.publish()
    assert [(life.last, life.current) for life in lives_of(stage.folder)] == [(2, True)]


def test_a_worker_killed_between_result_and_end_has_published(stage: Stage) -> None:
    stage.attempt(rows(3, 2)).publish()
    (life,) = lives_of(stage.folder)
    assert life.result is not None
    assert stage.shown() == [[3, 2]]


@pytest.mark.parametrize("content", [b"", b"12345678", (10**12).to_bytes(8, "little"), b"\x02" + b"\0" * 7 + b"[]"])
def test_a_broken_checkpoint_shows_nothing(stage: Stage, content: bytes) -> None:
    stage.attempt(rows(3, 2))
    (stage.path / "attempt-0001" / f"checkpoint-000000002-{'0' * 32}.safetensors").write_bytes(content)
    assert stage.shown() == [[]]


def test_a_real_checkpoints_rows_are_read_without_torch(tmp_path: Path) -> None:
    import torch

    from harness.rows import rows_of_attempt
    from harness.track.lives import rows_of_checkpoint
    from harness.train.checkpoint import Position, pack

    position = Position(epoch=2, rows=rows(3, 2))
    name, data = pack(20, position, {"model/w": torch.ones(3)}, {})
    (tmp_path / name).write_bytes(data)
    assert rows_of_checkpoint(tmp_path / name) == rows(3, 2)
    assert list(rows_of_attempt(Folder(tmp_path, frozenset()), 1)) == []
    assert Life(1, 1, current=True).generations == range(1, 0, -1)
