"""Which attempts of a stage continue one another, and which of their rows will not change any more: cases by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from harness.attempts import attempt_chains, settled_rows
from harness.store import Artifact, Folder, Result, Store
from harness.train.checkpoint import Position, pack

KEY = "0123456789abcdef0123456789abcdef"
FAILURE = {"outcome": "failed", "cause": "code", "message": "boom"}
RELEASED = {"outcome": "stopped", "message": "released for another try", "released": True}
SEARCHED = {"outcome": "stopped", "cause": "search", "epoch": 2}
PUBLISHED, RESTORED, DIED, STOPPED = ({"outcome": o} for o in ("published", "restored", "died", "stopped"))
RAN, DIED_TWICE = ([3, 2], PUBLISHED), [([3], DIED, [3]), ([3, 2], DIED, [3])]
BROKEN = [b"", b"12345678", (10**12).to_bytes(8, "little"), b"\x02" + b"\0" * 7 + b"[]"]
CHAINS: dict[str, tuple[Any, Any, Any]] = {  # attempts: losses, end, losses in the checkpoint; runs; losses that show
    "resumed": ([([3, 2], None, [3]), ([3, 2, 1], PUBLISHED)], [(1, 2, True)], [[3, 2, 1]]),
    "running": ([([3, 2, 1],)], [(1, 1, True)], [[]]),
    "running on": ([([3, 2, 1],), ([3, 2, 1], None, [3, 2])], [(1, 2, True)], [[3, 2]]),
    "overtaken": ([([3, 2, 1.5], None, [3, 2, 1.5]), ([3, 2, 1], None, [3])], [(1, 2, True)], [[3, 2]]),
    "anew": ([([3, 2], None, [3, 2]), ([4, 3], None, [4])], [(1, 1, False), (2, 2, True)], [[3, 2], [4]]),
    "failed": ([([3, 2], FAILURE, [3])], [(1, 1, True)], [[3, 2]]),
    "released": ([([3, 2], FAILURE), ((), RELEASED)], [(1, 1, True)], [[3, 2]]),
    "retried": ([([3, 2], FAILURE), ((), RELEASED), ([3],)], [(1, 1, False), (3, 3, True)], [[3, 2], []]),
    "died": (DIED_TWICE, [(1, 2, True)], [[3]]),
    "died, retried": ([*DIED_TWICE, ((), RELEASED), ([3],)], [(1, 2, False), (4, 4, True)], [[3, 2], []]),
    "being made anew": ([RAN, ([4],)], [(1, 1, True)], [[3, 2]]),
    "made anew": ([RAN, ([4],), ([4, 3], PUBLISHED)], [(1, 1, False), (2, 3, True)], [[3, 2], [4, 3]]),
    "restored": ([RAN, ((), RESTORED)], [(1, 1, True)], [[3, 2]]),
    "restored, anew": ([RAN, ((), RESTORED), RAN], [(1, 1, False), (3, 3, True)], [[3, 2], [3, 2]]),
    **{f"broken {n}": ([([3, 2], None, data)], [(1, 1, True)], [[]]) for n, data in enumerate(BROKEN)},
}


def rows(losses: Iterable[float]) -> list[dict[str, Any]]:
    return [{"epoch": n, "train_loss": loss, "best": False} for n, loss in enumerate(losses, 1)]


class StageFolder:
    """A stage's folder, written attempt by attempt."""

    def __init__(self, store: Store, kind: str = "train", key: str = KEY) -> None:
        self.store, self.kind, self.key, self.path, self.attempts = store, kind, key, store.path(kind, key), 0
        self.path.mkdir(parents=True)

    def attempt(self, losses: Iterable[float] = (), end: Any = None, saved: Any = None) -> StageFolder:
        self.attempts += 1
        attempt = self.path / f"attempt-{self.attempts:04d}"
        attempt.mkdir()
        (self.path / f"claim-{self.attempts:04d}").touch()
        (attempt / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(losses)))
        if end:
            (attempt / "end.json").write_text(json.dumps(end))
        if saved is not None:
            name, data = pack(20, Position(rows=rows(saved)), {}, {})
            (attempt / name).write_bytes(saved if isinstance(saved, bytes) else data)
        return self.publish() if end is PUBLISHED else self

    def publish(self, **parents: str) -> StageFolder:
        edition = self.folder.edition + 1
        result = Result(edition, Artifact(str(edition) * 64, 1), parents, {}, {}, {"generation": self.attempts})
        (self.path / f"result-{edition:04d}.json").write_bytes(result.dump())
        return self

    @property
    def folder(self) -> Folder:
        return self.store.folder(self.kind, self.key)


@pytest.mark.parametrize(("attempts", "runs", "shown"), CHAINS.values(), ids=CHAINS)
def test_attempts_that_continue_one_another_are_a_run(tmp_path: Path, attempts: Any, runs: Any, shown: Any) -> None:
    stage = StageFolder(Store(tmp_path))
    for attempt in attempts:
        stage.attempt(*attempt)
    chains = attempt_chains(stage.folder)
    assert [(chain.first, chain.last, chain.current) for chain in chains] == runs
    assert [settled_rows(stage.folder, chain) for chain in chains] == [rows(losses) for losses in shown]
