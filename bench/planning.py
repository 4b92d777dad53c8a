"""How long planning takes: 12,960 cells from cold by the command, and a million cells expanded, keyed and saved.

Run: python bench/planning.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GRID = """
name: big
protocol: quick
grid:
  dataset: digits
  arch: [resnet18, resnet20, resnet32, vgg16, mobilenet]
  mask: [random, snip, grasp, synflow, erk, magnitude]
  sparsity: [50%%, 60%%, 70%%, 80%%, 90%%, 95%%]
  recipe: [default, gsw, gsk, ls, gsw+ls, gsk+ls]
  seed: 0..%d
"""
A_SEED = 5 * 6 * 6 * 6


def in_process(folder: Path) -> None:
    """Plan the file that is there, in this process, and print its seconds and its memory."""
    from harness.check import load_sweep
    from harness.planner import make_plan
    from harness.store import Store

    began = time.perf_counter()
    plan = make_plan(load_sweep(folder / "big.yaml"), Store(folder / "runs"), folder)
    seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(plan.cells):,} cells, {len(plan.stages):,} stages: {seconds:.2f} s, {memory:.2f} GiB")


def main() -> None:
    """Print a line for each size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "big.yaml").write_text(GRID % (12_960 // A_SEED - 1))
        began = time.perf_counter()
        command = [sys.executable, "-m", "harness.sweep", "big.yaml", "--plan", "--via", "local"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        print(f"the command --plan, 12,960 cells, all in all: {time.perf_counter() - began:.2f} s", flush=True)
        for cells in (12_960, 1_000_000):
            (folder / "big.yaml").write_text(GRID % (-(-cells // A_SEED) - 1))
            subprocess.run([sys.executable, __file__, str(folder)], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        in_process(Path(sys.argv[1]))
    else:
        main()
