"""The benchmarks run: some sections, tried out on little, where their figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import NAMED, SECTIONS
from bench.figures import ROOT, spread, table
from bench.reference_loop import masks_of, network

TRIED = ("loop", *(pytest.param(name, marks=pytest.mark.long) for name in ("peak", "cells", "ddp")))
"""Sections that use what the others use; all of them would take minutes."""


@pytest.mark.slow
@pytest.mark.parametrize("section", TRIED)
def test_a_section_yields_figures(section: str, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench", section, "--small", "--seconds", "0", "--repeats", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    said = json.loads(out.read_text())
    assert said["machine"]["source"]
    assert said["sections"][section]["rows"]


def test_a_section_that_is_none_is_told() -> None:
    command = [sys.executable, "-m", "bench", "lop"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("lop: no such section", *SECTIONS, *NAMED))


def test_tables_show_medians_and_what_is_missing() -> None:
    rows = [{"what": "a", "s": spread([3.0, 1.0, 2.0])}, {"what": "b", "s": spread([1234.5]), "more": 7}]
    assert table(rows).splitlines() == [
        "| what | s | more |",
        "| --- | ---: | ---: |",
        "| a | 2 (1-3) |  |",
        "| b | 1,234 | 7 |",
    ]


def test_the_reference_loop_prunes_and_finds_its_masks_in_the_weights() -> None:
    model = network("resnet20", "cpu", density=0.25)
    masks = masks_of(model)
    assert len(masks) == 22
    kept = sum(int(mask.sum()) for _, mask in masks)
    whole = sum(mask.numel() for _, mask in masks)
    assert kept / whole == pytest.approx(0.25, abs=0.01)
