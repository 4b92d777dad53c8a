"""How long a report of 5,000 cells takes, the first time and when ten results are new, and how large its page is.

The results are made up (tests/harness/synthetic.py), with learning curves of 182 epochs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.figures import ROOT, Given, Row
from tests.harness.synthetic import write_store

NEW = 10
SWEEP = """
name: many
protocol: tost
grid:
  dataset: digits
  arch: [resnet18, resnet32, resnet104, vgg16, mobilenet]
  mask: [random, snip, grasp, synflow, magnitude]
  sparsity: [50%, 60%, 70%, 80%, 85%, 90%, 92%, 95%, 97%, 98%]
  recipe: [default, gsw, ls, tost]
  seed: 0..4
claims: [{name: tost-helps, compare: {recipe: [tost, default]}, margin: 0.5, seeds: 5}]
tables: [any-mask, generality, diagnostics]
"""


def row_of(place: Mapping[str, str]) -> dict[str, str]:
    """Return a made-up row."""
    value = 90 + int(place["seed"]) / 10 + (place["recipe"] == "tost")
    return {"state": "done", "test": f"{value}", "dev": f"{value}", "cause": ""}


def report(folder: Path, *arguments: str) -> float:
    """Run the command in a folder; return the seconds it took."""
    began = time.monotonic()
    command = [sys.executable, "-m", "harness.report", "many", "-q", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    return time.monotonic() - began


def measure(given: Given) -> Iterator[Row]:
    """Write a store and time the command."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "many.yaml").write_text(SWEEP)
        store, saved = write_store(folder, folder / "many.yaml", row_of)
        first = report(folder)
        again = [report(folder) for _ in range(3)]
        for cell in saved.cells[:NEW]:
            shutil.rmtree(store.path("train", cell.key))
        shutil.rmtree(store.root / "cache")
        write_store(folder, folder / "many.yaml", lambda place: {**row_of(place), "test": "91.5"})
        lost = report(folder)
        shutil.rmtree(store.root / "cache" / "index")
        new = report(folder)
        page = store.sweep("many") / "report" / "report.html"
        figures = len(list((page.parent / "figures").glob("*.svg")))
        yield {
            "cells": len(saved.cells),
            "first": round(first, 1),
            "nothing new": round(sorted(again)[1], 1),
            "no cache, ten new results": round(lost, 1),
            "no index": round(new, 1),
            "figures": figures,
            "page in MB": round(page.stat().st_size / 1e6, 1),
        }
