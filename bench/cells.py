"""Cells in one worker: how soon the first step comes, what lies between two cells, what writing costs."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Given, Row, command, environment, spread
from bench.training import NOISE

SWEEP = """
name: cells
protocol: {{preset: tost, dev: none, epochs: {epochs}, batch: {batch}, milestones: []}}
use: {{noise: "./noise.py:load"}}
grid:
  dataset: noise
  arch: {arch}
  mask: random
  sparsity: 95%
  recipe: {recipe}
  seed: 0..{last}
"""
NETWORKS = ("resnet20", "resnet18")
RECIPES = ("default", "gsw+gsk+ls")
CELLS = 5


def measure(given: Given) -> Iterator[Row]:
    """Yield a row for every network and recipe: the first cell of a worker, and those after it."""
    for network in NETWORKS[:1] if given.small else NETWORKS:
        for recipe in RECIPES:
            with tempfile.TemporaryDirectory() as folder:
                yield {"network": network, "recipe": recipe, **_run(Path(folder), network, recipe, given)}


def _run(folder: Path, network: str, recipe: str, given: Given) -> Row:
    """Train some cells of two epochs one after another; all but the first two are warm."""
    images, batch = (64, 32) if given.small else (256, 128)
    text = SWEEP.format(arch=network, recipe=recipe, epochs=2, batch=batch, last=CELLS - 1)
    (folder / "cells.yaml").write_text(text)
    (folder / "data").mkdir()
    (folder / "noise.py").write_text(NOISE.format(images=images, size=32))
    told = ("harness.sweep", "cells.yaml", "--workers", "1", "--device", given.device, "--threads", str(given.threads))
    began = time.time()
    command(*told, cwd=folder, env=environment(given.threads))
    found = []
    for path in folder.glob("runs/stages/train/*/*/result-0001.json"):
        said = json.loads(path.read_text())["result"]["provenance"]
        found.append((path.stat().st_mtime_ns / 1e9, said))
    found.sort(key=lambda cell: cell[0])
    ends, first = [end for end, _ in found], found[0][1]
    # From a cell's publication to the next one's first step; masks of all seeds are made before.
    gaps = [
        later - earlier - said["seconds"] + said["first_step_after"]
        for (earlier, _), (later, said) in itertools.pairwise(found)
    ]
    writing = [100 * said["writing_seconds"] / said["seconds"] for _, said in found[1:]]
    return {
        "cold: command to first step, s": ends[0] - began - first["seconds"] + first["first_step_after"],
        "end to next first step, s": spread(gaps[1:]),
        "a step, s": spread([(said["seconds"] - said["first_step_after"]) / (2 * images / batch) for _, said in found]),
        "writing metrics, % of two epochs": spread(writing),
    }
