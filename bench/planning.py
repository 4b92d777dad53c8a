"""How long planning takes: 12,960 cells from cold by the command, and a million cells expanded, keyed and saved."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Given, Row, command

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
    print(json.dumps({"cells": len(plan.cells), "stages": len(plan.stages), "seconds": seconds, "GiB": memory}))


def measure(given: Given) -> Iterator[Row]:
    """Yield the command, imports and printing included, and planning alone for two sizes."""
    sizes = (A_SEED,) if given.small else (12_960, 1_000_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "big.yaml").write_text(GRID % (sizes[0] // A_SEED - 1))
        began = time.perf_counter()
        command("harness.sweep", "big.yaml", "--plan", "--via", "local", cwd=folder)
        yield {"planning": "the command --plan", "cells": sizes[0], "seconds": time.perf_counter() - began}
        for cells in sizes:
            (folder / "big.yaml").write_text(GRID % (-(-cells // A_SEED) - 1))
            yield {"planning": "alone", **json.loads(command("bench.planning", str(folder), cwd=folder).stdout)}


if __name__ == "__main__":
    in_process(Path(sys.argv[1]))
