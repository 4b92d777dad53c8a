"""How fast finished runs are published to a W&B server on the loopback, in how much memory; and what trainings lose.

1,000 made-up trainings of 180 epochs (tests/harness/synthetic.py), the server a fake in a process of its own
(tests/track/server.py), so that network and W&B itself cost nothing. Run: python bench/wandb.py; with --faults, a real
training beside a server that fails in each way, against the same one without a mirror.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.harness.synthetic import write_store  # noqa: E402 - the project's root is no package
from tests.track.server import FAULTS, KEY, Remote  # noqa: E402

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


def usage(pid: int) -> dict[str, tuple[int, float]]:
    """Return the resident bytes, and the seconds of processor time, of a process and all below it, by command."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
        except (OSError, IndexError):
            continue
    found: dict[str, tuple[int, float]] = {}
    waiting = [pid]
    while waiting:
        here = waiting.pop()
        waiting += parents.get(here, [])
        try:
            name = "core" if b"wandb-core" in (raw := Path(f"/proc/{here}/cmdline").read_bytes()) else "python"
            pages = int(Path(f"/proc/{here}/statm").read_text().split()[1])
            ticks = sum(map(int, Path(f"/proc/{here}/stat").read_text().rpartition(")")[2].split()[11:13]))
        except OSError:
            continue
        label = "clerk" if b"harness.track.clerk" in raw else "publisher" if name == "python" else name
        size, worked = found.get(label, (0, 0.0))
        found[label] = size + pages * os.sysconf("SC_PAGE_SIZE"), worked + ticks / os.sysconf("SC_CLK_TCK")
    return found


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
    process.terminate()
    process.wait()
    return float(json.loads(found[0].read_text())["result"]["provenance"]["seconds"])


def faults(epochs: int) -> dict[str, object]:
    """Return the seconds of a training without a mirror, with one, and with one whose server fails in each way."""
    with tempfile.TemporaryDirectory() as name:
        folder, took = Path(name), dict[str, list[float]]()
        for _ in range(3):
            took.setdefault("no mirror", []).append(trained(folder, epochs, ""))
            for fault in (None, *FAULTS):
                with Remote() as server:
                    seconds = trained(folder, epochs, server.url, partial(server.fail, fault))
                    took.setdefault(fault or "mirrored", []).append(seconds)
        return {name: [round(seconds, 2) for seconds in found] for name, found in took.items()}


def main() -> None:
    """Write a store, publish it, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=180)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--plain", action="store_true", help="as many trainings, but dense: no masks, no lineage")
    given = parser.parse_args()
    if given.faults:
        sys.stdout.write(json.dumps(faults(min(given.epochs, 8)), indent=1) + "\n")
        return
    mask = "dense" if given.plain else "[random, snip, grasp, synflow, magnitude]"
    seeds = given.seeds * 10 if given.plain else given.seeds  # every sparsity and all five masks become one
    with tempfile.TemporaryDirectory() as name, Remote() as server:
        folder = Path(name)
        (folder / "many.yaml").write_text(SWEEP.format(epochs=given.epochs, seeds=seeds - 1, mask=mask))
        _, saved = write_store(folder, folder / "many.yaml", row_of)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": KEY,
            "HOME": name,
        }
        command = [sys.executable, "-m", "harness.cli", "wandb", "publish", "many"]
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env=environment)
        most: dict[str, int] = {}
        worked: dict[str, float] = {}
        total, pause = 0, threading.Event()
        while process.poll() is None:
            now = usage(process.pid)
            total = max(total, sum(size for size, _ in now.values()))
            for label, (size, took) in now.items():
                most[label], worked[label] = max(most.get(label, 0), size), max(worked.get(label, 0.0), took)
            pause.wait(0.5)
        seconds = time.monotonic() - began
        runs = sum(stage.kind != "data" for stage in saved.plan.stages.values())
        said = {
            "trainings": len(saved.cells),
            "rows": len(saved.cells) * given.epochs,
            "runs, masks among them": runs,
            "code": process.returncode,
            "seconds": round(seconds, 1),
            "runs a second": round(runs / seconds, 1),
            "trainings a second": round(len(saved.cells) / seconds, 1),
            "processor seconds": worked,
            "of the fake server": usage(server.process.pid),
            "peak memory in MB": {"together": round(total / 1e6), **{k: round(v / 1e6) for k, v in most.items()}},
        }
        sys.stdout.write(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
