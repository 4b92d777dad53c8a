"""How fast finished stages reach an empty W&B server on the loopback, and what the mirror costs trainings beside it.

The server is a fake in this process (tests/tracking/server.py), so that network and W&B itself cost nothing. Beside it
stands what wandb's client alone needs for the same rows, one run after another in one process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Given, Row, spread
from tests.conftest import descendants
from tests.tracking.mirrored import small_store, surroundings
from tests.tracking.server import Server

ALONE = """
import json, sys, time
import wandb
runs, epochs = int(sys.argv[1]), int(sys.argv[2])
settings = wandb.Settings(console="off", silent=True, x_disable_stats=True, x_disable_meta=True)
began = time.perf_counter()
for number in range(runs + 1):
    if number == 1:
        began = time.perf_counter()
    run = wandb.init(project="alone", id=f"r{number}", reinit="create_new", settings=settings)
    for epoch in range(epochs):
        run.log({"epoch": epoch + 1, "lr": 0.1, "train_loss": 1 / (epoch + 1), "train_accuracy": 90.0,
                 "dev_accuracy": 90.0, "best": 0}, step=epoch)
    run.finish()
print(json.dumps((time.perf_counter() - began) / runs))
"""
SWEEP = """
name: beside
protocol: {{preset: quick, epochs: {epochs}}}
grid: {{dataset: digits, arch: resnet20, mask: [random, magnitude], sparsity: 90%, recipe: [default, ls], seed: 0..1}}
launch: {{workers: 2, threads: 1}}
"""


class PeakMemory:
    """The most resident memory, in bytes, of a process and all below it, looked at twice a second."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.peak = 0
        pause = threading.Event()
        while process.poll() is None:
            self.peak = max(self.peak, sum(map(self._resident, descendants(process.pid))))
            pause.wait(0.5)

    @staticmethod
    def _resident(pid: int) -> int:
        try:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:  # ended meanwhile
            return 0


def sent(seeds: int, epochs: int) -> Row:
    """Send a store of made-up stages, six to a seed, and return what that took."""
    with tempfile.TemporaryDirectory() as name, Server() as server:
        folder = Path(name)
        small_store(folder, seeds=seeds, epochs=epochs)
        began = time.monotonic()
        command = [sys.executable, "-m", "harness.cli", "wandb", "sync"]
        process = subprocess.Popen(command, cwd=folder, env=surroundings(folder, server.url))
        memory, seconds = PeakMemory(process), time.monotonic() - began
        alone = subprocess.run(
            [sys.executable, "-c", ALONE, "20", str(epochs)],
            cwd=folder,
            env=surroundings(folder, server.url, WANDB_ERROR_REPORTING="false"),
            capture_output=True,
            check=True,
        )
        return {
            "runs": 6 * seeds,
            "rows": 4 * seeds * epochs,
            "code": process.returncode,
            "seconds": round(seconds, 1),
            "runs a second": round(6 * seeds / seconds, 1),
            "peak memory in MB": round(memory.peak / 1e6),
            "client alone, seconds a run": round(float(json.loads(alone.stdout)), 3),
        }


def swept(epochs: int, mirrored: bool) -> tuple[float, float]:
    """Run a sweep of eight trainings; return the seconds of all trainings together, and of the command."""
    with tempfile.TemporaryDirectory() as name, Server() as server:
        folder = Path(name)
        (folder / "beside.yaml").write_text(
            SWEEP.format(epochs=epochs) + ("wandb: {project: bench}\n" if mirrored else "")
        )
        command = [sys.executable, "-m", "harness.sweep", "beside.yaml"]
        began = time.monotonic()
        subprocess.run(command, cwd=folder, env=surroundings(folder, server.url), stderr=subprocess.DEVNULL, check=True)
        whole = time.monotonic() - began
        results = [json.loads(path.read_text()) for path in folder.glob("runs/stages/train/*/*/result-*.json")]
        if len(results) != 8 or (mirrored and len(server.runs) <= 8):
            raise SystemExit("the sweep was not trained, or not mirrored, whole")
        return sum(result["result"]["provenance"]["seconds"] for result in results), whole


def measure(given: Given) -> Iterator[Row]:
    """Yield what sending takes, and a sweep with and without the mirror, in turn."""
    yield sent(*((2, 20) if given.small else (84, 180)))
    epochs = 2 if given.small else 10
    trainings: tuple[list[float], list[float]] = ([], [])
    commands: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 if given.small else max(given.repeats, 5)):
        for mirrored in (False, True):
            seconds, whole = swept(epochs, mirrored)
            trainings[mirrored].append(seconds)
            commands[mirrored].append(whole)
    for words, of_trainings, of_commands in zip(("without the mirror", "with it"), trainings, commands, strict=True):
        yield {"sweep": words, "trainings, seconds": spread(of_trainings), "command": spread(of_commands)}
    ratio = statistics.median(trainings[True]) / statistics.median(trainings[False])
    yield {"sweep": "with, as a share of without", "trainings": round(ratio, 4)}
