"""Sweeps on a GPU, by the real command: workers that share it, a killed tree, stages that fail on it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import hashes, kill_tree, results, until

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

Start = Callable[..., subprocess.Popen[bytes]]
Run = Callable[..., subprocess.CompletedProcess[str]]

FAULTY = """
import torch
from torch import nn


class Faulty(nn.Sequential):
    def __init__(self, fault, classes, channels):
        super().__init__(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
        self.fault = fault

    def forward(self, x):
        if x.is_cuda and self.fault == "greedy":
            torch.empty(2**45, dtype=torch.uint8, device=x.device)
        if x.is_cuda and self.fault == "wrong":
            x = x[torch.full((len(x),), 10**6, device=x.device)]
        return super().forward(x)


def greedy(classes, channels):
    return Faulty("greedy", classes, channels)


def wrong(classes, channels):
    return Faulty("wrong", classes, channels)
"""


def long(project: Path) -> None:
    """Give the tiny sweep's trainings some seconds."""
    text = (project / "tiny.yaml").read_text()
    (project / "tiny.yaml").write_text(text.replace("epochs: 2}", "epochs: 40}"))


def test_workers_that_share_a_gpu_make_what_one_makes_alone(project: Path, sweep: Run) -> None:
    for store, workers in (("one", "1"), ("three", "3")):
        done = sweep("tiny.yaml", "--workers", workers, "--store", store)
        assert done.returncode == 0, done.stderr
    assert hashes(project / "one") == hashes(project / "three")
    trained = [result for (result,) in results(project / "three").values() if result["metrics"].get("epochs")]
    assert {result["stamp"]["device"] for result in trained} == {"cuda"}, "a GPU is taken where there is one"
    assert all(result["provenance"]["device_memory"] > 0 for result in trained)


def test_a_tree_killed_in_the_middle_ends_with_the_weights_of_an_undisturbed_run(
    project: Path, start: Start, sweep: Run
) -> None:
    long(project)
    chosen = ("tiny.yaml", "--only", "mask=random,seed=0")
    assert sweep(*chosen, "--store", "calm").returncode == 0
    store = project / "runs"
    for _ in range(2):
        before = set(store.glob("stages/train/*/*/attempt-*/checkpoint-*"))
        process = start("harness.sweep", *chosen, "--checkpoint-every", "0.05")
        until(lambda before=before: set(store.glob("stages/train/*/*/attempt-*/checkpoint-*")) - before)
        kill_tree(process.pid)
        process.wait()
    last = sweep(*chosen)
    assert last.returncode == 0, last.stderr
    assert any(result["provenance"]["resumed_at_step"] > 0 for (result,) in results(store).values())
    assert hashes(store) == hashes(project / "calm")


def test_what_a_stage_does_to_the_gpu_is_told_and_harms_no_other(project: Path, sweep: Run) -> None:
    (project / "faulty.py").write_text(FAULTY)
    text = (project / "tiny.yaml").read_text().split("also:")[0].replace("arch: thin", "arch: [wrong, greedy, thin]")
    text = text.replace("mask: [random, lth]", "mask: random").replace("[default, ls]", "default")
    names = "".join(f', {name}: "./faulty.py:{name}"' for name in ("greedy", "wrong"))
    (project / "tiny.yaml").write_text(text.replace('"./thin.py:build"', f'"./thin.py:build"{names}'))
    done = sweep("tiny.yaml", "--workers", "1")
    assert done.returncode == 1, done.stderr
    assert "2 of 6 cells done" in done.stderr
    assert ended(project / "runs") == {
        ("wrong", "failed", "code", None),
        ("greedy", "failed", "oom", "gpu"),
        ("thin", "published", None, None),
    }


def ended(store: Path) -> set[tuple[str | None, ...]]:
    """Return how trainings ended, by what in their network is at fault."""
    found = set()
    for path in store.glob("stages/train/*/*/attempt-*/end.json"):
        end: dict[str, Any] = json.loads(path.read_text())
        arch = json.loads((path.parents[1] / "spec.json").read_text())["arch"]["path"].rpartition(":")[2]
        name = "thin" if arch == "build" else arch
        found.add((name, end["outcome"], end.get("cause"), end.get("resource")))
    return found


def test_a_pilot_times_steps_on_the_gpu(project: Path, sweep: Run) -> None:
    assert sweep("tiny.yaml", "--limit", "1", "--only", "mask=dense").returncode == 0
    plan = sweep("tiny.yaml", "--plan", "--pilot")
    assert plan.returncode == 0, plan.stderr
    assert "failed" not in plan.stderr + plan.stdout
    assert list((project / "runs" / "cache" / "pilots").glob("*.json"))
