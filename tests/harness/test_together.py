"""Trainings by several processes: killed and resumed, a rank that falls, a rank that fails, one that hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import (
    THIN,
    descendants,
    hashes,
    kill_tree,
    results,
    run_sweep,
    until,
    write_project,
)

pytestmark = pytest.mark.slow

Start = Callable[..., subprocess.Popen[bytes]]
DENSE = ("tiny.yaml", "--only", "mask=dense")


def write_wide(folder: Path, world: int = 2, epochs: int = 40) -> Path:
    """Write the tiny sweep, its trainings by several processes; the last of four batches has three images."""
    write_project(folder)
    text = (folder / "tiny.yaml").read_text().replace("  seed: 0..1", f"  seed: 0\n  world: {world}")
    (folder / "tiny.yaml").write_text(text.replace("quick, epochs: 2}", f"quick, epochs: {epochs}, batch: 323}}"))
    return folder


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense training by two processes, undisturbed."""
    folder = write_wide(tmp_path_factory.mktemp("calm"))
    done = run_sweep(folder, *DENSE, "--threads", "1")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_wide(tmp_path)


def checkpoints(folder: Path) -> set[Path]:
    return set(folder.glob("runs/stages/train/*/*/attempt-*/checkpoint-*"))


def ends(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("runs/stages/train/*/*/attempt-*/end.json"))]


def trainers(pid: int, order: str) -> list[int]:
    """Return the processes below one that are busy with a stage: those that hold its log open."""
    return [p for p in descendants(pid) if order in _open(p)]


def _open(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/1")
    except OSError:
        return ""


def test_killed_and_resumed_all_ranks_end_with_the_weights_of_an_undisturbed_run(
    project: Path, start: Start, calm: Path
) -> None:
    process = start("harness.sweep", *DENSE, "--threads", "1", "--checkpoint-every", "0.05")
    until(lambda: len(checkpoints(project)) > 1)
    kill_tree(process.pid)
    process.wait()
    done = run_sweep(project, *DENSE, "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert hashes(project / "runs") == hashes(calm / "runs")
    (trained,) = [r for (r,) in results(project / "runs").values() if "epochs" in r["metrics"]]
    assert trained["provenance"]["resumed_at_step"] > 0
    assert trained["stamp"]["world"] == 2


def test_a_rank_that_falls_ends_the_attempt_and_is_named(project: Path, start: Start, calm: Path) -> None:
    process = start("harness.sweep", *DENSE, "--threads", "1", "--checkpoint-every", "0.05")
    until(lambda: checkpoints(project) and trainers(process.pid, "log-1"))
    (rank,) = trainers(process.pid, "log-1")
    os.kill(rank, signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == 0
    fallen = ends(project)[0]
    assert fallen["outcome"] == "died"
    assert "rank 1 of 2 on " in str(fallen["message"])
    assert "SIGKILL" in str(fallen["message"])
    assert hashes(project / "runs") == hashes(calm / "runs")


ODD = """
class Odd(nn.Identity):
    def forward(self, x):
        import torch.distributed as dist

        if self.training and dist.is_initialized() and dist.get_rank() == 1:
            raise ZeroDivisionError("rank 1 cannot do this")
        return x


def build"""
FAILING = THIN.replace("def build", ODD).replace("nn.Flatten(),", "nn.Flatten(), Odd(),")


@pytest.mark.long
def test_the_rank_that_failed_is_told_of_not_those_that_miss_it(project: Path) -> None:
    (project / "thin.py").write_text(FAILING)
    done = run_sweep(project, *DENSE, "--threads", "1")
    assert done.returncode == 1
    assert "rank 1 of 2" in done.stderr
    assert "ZeroDivisionError: rank 1 cannot do this" in done.stderr
    assert ends(project)[-1]["cause"] == "code"
    own = next(project.glob("runs/stages/train/*/*/attempt-0001/rank-1.json"))
    assert "ZeroDivisionError" in json.loads(own.read_text())["message"]
