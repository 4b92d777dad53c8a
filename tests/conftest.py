"""What many tests need: a thin network of one's own, sweep files, the real command in a real process."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

THREADS = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
"""Threads that torch has in tests."""
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

THIN = """
from torch import nn


def build(classes, channels, width=6):
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )
"""

GRID = """
name: tiny
protocol: {preset: quick, epochs: 2}
use: {thin: "./thin.py:build"}
grid:
  dataset: digits
  arch: thin
  mask: [random, lth]
  sparsity: [50%]
  recipe: [default, ls]
  seed: 0..1
also:
  - {mask: dense, recipe: default}
tables: [any-mask]
figures: []
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a sweep file `tiny.yaml` of a thin network, small enough to train in a second."""
    return write_project(tmp_path)


def write_project(folder: Path) -> Path:
    """Write the tiny sweep into a folder."""
    (folder / "thin.py").write_text(THIN)
    (folder / "tiny.yaml").write_text(GRID)
    return folder


@pytest.fixture
def cuda() -> Iterator[None]:
    """Set torch to what a trainer relies on, GPU included; a test that uses it is skipped where there is none."""
    import torch

    from harness.train.process import prepare_process

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    prepare_process()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.allow_tf32 = True
    torch.cuda.empty_cache()


def run_sweep(folder: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run `python -m harness.sweep` in a folder, to its end."""
    return run_module("harness.sweep", folder, *arguments, timeout=timeout)


def run_module(module: str, folder: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a module in a folder, to its end, with nobody at its terminal."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def report_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m harness.report` in a folder."""
    return run_module("harness.report", folder, *arguments)


def harness(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command `harness` in a folder."""
    return run_module("harness.cli", folder, *arguments)


def save_whole_plan(folder: Path, mask: str = "") -> None:
    """Plan the tiny sweep of a folder, or its cells of one mask, as the sweep command would, and run nothing."""
    from harness.check import load_sweep
    from harness.planfile import save_plan
    from harness.planner import make_plan
    from harness.store import Store

    sweep, store = load_sweep(folder / "tiny.yaml"), Store(folder / "runs")
    made = make_plan(sweep, store, folder)
    made = made.keep(pair for pair in made.cells if pair[0].mask.name == mask) if mask else made
    save_plan(made, store, sweep, whole=True)


def environment() -> dict[str, str]:
    return {**os.environ, "NO_COLOR": "1", "COLUMNS": "160", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def sweep(project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m harness.sweep` in the project's folder, to its end."""

    return functools.partial(run_sweep, project)


@pytest.fixture
def start(project: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a module of the harness in the background; whatever is left of it is killed at the test's end."""
    started: list[subprocess.Popen[bytes]] = []

    def run(module: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=project,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        kill_tree(process.pid)
        process.wait()
        if process.stdout:
            process.stdout.close()


def descendants(pid: int) -> list[int]:
    """Return a process and all below it, whatever session they are in."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            parents.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        here = waiting.pop()
        found.append(here)
        waiting += parents.get(here, [])
    return found


def send(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_tree(pid: int) -> None:
    send(descendants(pid), signal.SIGKILL)


def until(condition: Callable[[], Any], seconds: float = 120, every: float = 0.005) -> Any:
    """Return the first true value of a condition, looked at again and again; fail when the time is over."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        pause.wait(every)
    raise AssertionError("the condition did not come true in time")


def results(store: Path) -> dict[str, list[dict[str, Any]]]:
    """Return every stage's results by key, oldest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(store.glob("stages/*/*/*/result-*.json")):
        found.setdefault(path.parent.name, []).append(json.loads(path.read_text())["result"])
    return found


def hashes(store: Path) -> dict[str, str]:
    """Return every stage's newest artifact by key."""
    return {key: editions[-1]["artifact"]["sha256"] for key, editions in results(store).items()}


def claims(store: Path) -> dict[str, int]:
    """Return the number of claims of every stage."""
    found: dict[str, int] = {}
    for path in store.glob("stages/*/*/*/claim-*"):
        found[path.parent.name] = found.get(path.parent.name, 0) + 1
    return found


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Give the next test torch's settings as they were: commands that are run in this process leave theirs."""
    yield
    gc.enable()
    if "torch" not in sys.modules:
        return
    import torch

    if torch.is_anomaly_enabled():
        torch.autograd.set_detect_anomaly(False)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    if torch.get_num_threads() != THREADS:
        torch.set_num_threads(THREADS)
