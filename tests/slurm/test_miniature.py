"""The miniature of the paper's whole grid through Slurm, with ranks on two nodes, a pre-emption and a fallen node."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import until
from tests.slurm.conftest import Cluster, write_profile

pytestmark = pytest.mark.conformance

FULL_GRID = Path(__file__).resolve().parents[2] / "sweeps" / "full_grid.yaml"
HOUR = 3600


def ended(folder: Path) -> int:
    """Count the attempts that ended."""
    return sum(1 for _ in (folder / "runs/miniature/stages").glob("*/*/*/attempt-*/end.json"))


def test_the_whole_grids_miniature_fills_its_tables(
    cluster: Cluster, tmp_path: Path, following: Callable[..., subprocess.Popen[str]]
) -> None:
    write_profile(tmp_path, partition="scavenge", workers=3)
    process = following(tmp_path, str(FULL_GRID), "--miniature", "--via", str(tmp_path / "dev.yaml"), "--lease", "20")
    until(lambda: ended(tmp_path) > 100, HOUR, every=2)
    cluster.control("kill-node", "n2")
    seen = ended(tmp_path)
    until(lambda: ended(tmp_path) > seen + 100, HOUR, every=2)
    cluster.control("start-node", "n2")
    whole = ("--partition=main", "--exclusive", "--nodelist=n1", "--time=1", "--wrap=sleep 2")
    number = cluster.ask("sbatch", "--parsable", *whole).strip()  # it takes a node whole, and pre-empts what runs there
    until(lambda: "COMPLETED" in cluster.ask("sacct", "--noheader", "--jobs", number, "--format=state"), 240, every=0.5)
    assert process.wait(HOUR) == 0, (tmp_path / "log").read_text()
    report = tmp_path / "runs/miniature/sweeps/full_grid/report"
    with (report / "cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert all(cell["state"] == "done" for cell in cells)
    assert list(report.glob("any-mask*.md"))
    assert list(report.glob("generality*.md"))
    results = (tmp_path / "runs/miniature/stages/train").glob("*/*/result-*.json")
    together = [path for path in results if json.loads(path.read_text())["result"]["stamp"]["world"] == 2]
    assert len(together) == 3
