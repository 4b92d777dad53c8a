"""How fast finished runs are published to a W&B server on the loopback, in how much memory; and what trainings lose.

1,000 made-up trainings of 180 epochs (tests/harness/synthetic.py), the server a fake in a process of its own
(tests/track/server.py), so that network and W&B itself cost nothing. Then a real training beside a
server that fails in each way, against the same one without a mirror.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from harness.track.desk import processes
from tests.track.server import FAULTS, KEY, Remote

from bench.figures import ROOT, Given, Row, spread
from tests.harness.synthetic import write_store

SWEEP = """
name: many
protocol: {{preset: tost, epochs: {epochs}}}
grid:
  dataset: digits
  arch: [resnet20, resnet32]
  mask: {mask}
  sparsity: [90%, 95%]
  recipe: [default, gsw, gsk, ls, tost]
  seed: 0..{seeds}
wandb: {{project: bench}}
"""


def row_of(place: Mapping[str, str]) -> dict[str, str]:
    """Return a made-up row."""
    value = 90 + int(place["seed"]) / 10
    return {"state": "done", "test": f"{value}", "dev": f"{value}", "cause": ""}


@dataclass
class Usage:
    """What a process and all below it use: clerks come and go, so processor time is kept by process."""

    pid: int
    together: int = 0
    bytes: dict[str, int] = field(default_factory=dict)
    """Kind of process -> the most resident bytes of its kind at once."""
    seconds: dict[tuple[int, str], float] = field(default_factory=dict)

    def look(self) -> None:
        """Look at all of them once."""
        now: dict[str, int] = {}
        for pid, _ in processes(self.pid):
            with contextlib.suppress(OSError):  # ended meanwhile
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                kind = next((word for word in ("wandb-core", "clerk") if word.encode() in command), "publisher")
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
                now[kind] = now.get(kind, 0) + pages * os.sysconf("SC_PAGE_SIZE")
                self.seconds[pid, kind] = ticks / os.sysconf("SC_CLK_TCK")
        self.together = max(self.together, sum(now.values()))
        self.bytes |= {kind: max(size, self.bytes.get(kind, 0)) for kind, size in now.items()}

    def worked(self) -> dict[str, float]:
        """Return the seconds of processor time by kind of process."""
        return {kind: round(sum(t for (_, mine), t in self.seconds.items() if mine == kind), 1) for kind in self.bytes}


ONE = """
name: one
protocol: {{preset: quick, epochs: {epochs}}}
grid: {{dataset: digits, arch: resnet20, mask: dense, sparsity: 90%, recipe: default, seed: 0}}
launch: {{workers: 1, threads: 1}}
"""


def trained(folder: Path, epochs: int, url: str, once_shown: Callable[[], object] = lambda: None) -> float:
    """Train one network, mirrored to a server where there is one; return the seconds of its loop."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    (folder / "one.yaml").write_text(ONE.format(epochs=epochs) + ("wandb: {project: bench}\n" if url else ""))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder), "WANDB_API_KEY": KEY}
    command = [sys.executable, "-m", "harness.sweep", "one.yaml", "--checkpoint-every", "2"]
    environment |= {"WANDB_BASE_URL": url} if url else {}
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=nowhere, stderr=nowhere)
    pause, shown = threading.Event(), False
    while not (found := list((folder / "runs").glob("stages/train/*/*/result-*.json"))):
        if not shown and list((folder / "runs").glob("stages/train/*/*/attempt-0001/checkpoint-*")):
            shown = True
            once_shown()
        pause.wait(0.2)
    for pid, _ in processes(process.pid):  # the training is over: how long a publisher tries on is not asked here
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    return float(json.loads(found[0].read_text())["result"]["provenance"]["seconds"])


def faults(epochs: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of a training without a mirror, with one, and with one whose server fails in each way."""
    with tempfile.TemporaryDirectory() as name:
        folder, took = Path(name), dict[str, list[float]]()
        for _ in range(rounds):
            took.setdefault("no mirror", []).append(trained(folder, epochs, ""))
            for fault in (None, *FAULTS):
                with Remote() as server:
                    seconds = trained(folder, epochs, server.url, partial(server.fail, fault))
                    took.setdefault(fault or "mirrored", []).append(seconds)
        return took


def published(plain: bool, epochs: int, seeds: int) -> dict[str, object]:
    """Write a store of made-up trainings, publish it, and return what that took."""
    mask = "dense" if plain else "[random, snip, grasp, synflow, magnitude]"
    seeds = seeds * 10 if plain else seeds  # every sparsity and all five masks become one
    with tempfile.TemporaryDirectory() as name, Remote() as server:
        folder = Path(name)
        (folder / "many.yaml").write_text(SWEEP.format(epochs=epochs, seeds=seeds - 1, mask=mask))
        _, saved = write_store(folder, folder / "many.yaml", row_of)
        paths = {"PYTHONPATH": str(ROOT), "HOME": name}
        environment = {**os.environ, **paths, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        command = [sys.executable, "-m", "harness.cli", "wandb", "publish", "many"]
        began, pause = time.monotonic(), threading.Event()
        process = subprocess.Popen(command, cwd=folder, env=environment)
        used, fake = Usage(process.pid), Usage(server.process.pid)
        while process.poll() is None:
            used.look()
            pause.wait(0.5)
        seconds = time.monotonic() - began
        fake.look()
        runs = sum(stage.kind != "data" for stage in saved.plan.stages.values())
        return {
            "trainings": len(saved.cells),
            "rows": len(saved.cells) * epochs,
            "runs, masks among them": runs,
            "code": process.returncode,
            "seconds": round(seconds, 1),
            "runs a second": round(runs / seconds, 1),
            "trainings a second": round(len(saved.cells) / seconds, 1),
            "processor seconds": {**used.worked(), "fake server": sum(fake.worked().values())},
            "processors": os.cpu_count(),
            "peak memory in MB": {kind: round(size / 1e6) for kind, size in used.bytes.items()},
            "together": round(used.together / 1e6),
        }


def measure(given: Given) -> Iterator[Row]:
    """Yield what publishing takes, with masks and without, and what a failing server takes from a training."""
    seeds, epochs = (1, 20) if given.small else (10, 180)
    for plain in (False, True):
        yield published(plain, epochs, seeds)
    for name, seconds in faults(2 if given.small else 8, given.repeats).items():
        yield {"server": name, "training, seconds": spread(seconds)}
