"""The fake W&B server itself; what it keeps of a run is shown by its clients' tests, with the real wandb."""

from __future__ import annotations

import json

from tests.tracking.server import RemoteRun


def test_contradictions_are_kept() -> None:
    run = RemoteRun("lab", "p", "one")
    lines = [json.dumps({"_step": step, "loss": loss, "_runtime": loss}) for step, loss in ((0, 1), (1, 1), (1, 2))]
    for offset, line, wrong in ((0, 0, 0), (1, 1, 0), (1, 1, 0), (1, 2, 1), (2, 1, 3)):
        run.stream({"files": {"wandb-history.jsonl": {"offset": offset, "content": [lines[line]]}}})
        assert len(run.conflicting) == wrong
