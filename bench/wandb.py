"""How fast finished runs are published to a W&B server on the loopback, and how much memory that takes.

1,000 made-up trainings of 180 epochs (tests/harness/synthetic.py), the server a fake in a process of its own
(tests/track/server.py), so that network and W&B itself cost nothing. Run: python bench/wandb.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.harness.synthetic import write_store  # noqa: E402 - the project's root is no package
from tests.track.server import KEY, Remote  # noqa: E402

SWEEP = """
name: many
protocol: {{preset: tost, epochs: {epochs}}}
grid:
  dataset: digits
  arch: [resnet20, resnet32]
  mask: [random, snip, grasp, synflow, magnitude]
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


def main() -> None:
    """Write a store, publish it, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=180)
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Remote() as server:
        folder = Path(name)
        (folder / "many.yaml").write_text(SWEEP.format(epochs=given.epochs, seeds=given.seeds - 1))
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
