"""Tables: the arithmetic, the holes, the formats, and what hostile names do to them (nothing)."""

from __future__ import annotations

import csv
import io
import math
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.cell import Cell, expand
from harness.check import load_sweep
from harness.form import TABLES, Table
from harness.report.frame import Frame, Line
from harness.report.tables import Entry, Grid, build
from harness.report.writers import on_terminal, write_report
from harness.store import Artifact, Result

SWEEP = """
name: x
protocol: quick
grid: {dataset: digits, arch: resnet20, mask: [snip, lth], sparsity: [90%, 98%], recipe: [default, gsw], seed: 0..2}
also: [{mask: dense, recipe: default}]
"""


def line(cell: Cell, value: float | None, reason: str = "") -> Line:
    metrics = {"test@last": value, "test@best-dev": value}
    result = Result(1, Artifact("a", 1), {}, metrics, {"device": "cpu"}) if value is not None else None
    return Line(cell, "k" * 32, result, reason)


@pytest.fixture
def frame(tmp_path: Path) -> Frame:
    """Accuracy = 90 + seed, 2 more with gsw, 10 less at 98 %; the dense network has 99."""
    (tmp_path / "x.yaml").write_text(SWEEP)
    lines = []
    for cell in expand(load_sweep(tmp_path / "x.yaml"))[0]:
        value: float | None = 99.0
        if cell.mask.name != "dense":
            value = 90 + cell.seed + 2 * (cell.recipe.text == "gsw") - 10 * (cell.sparsity.share > 0.95)
        reason = ""
        if cell.mask.name == "lth" and cell.recipe.text == "gsw" and cell.sparsity.share > 0.95:
            value, reason = None, "failed"
        if cell.mask.name == "lth" and cell.recipe.text == "default" and cell.seed == 2:
            value, reason = None, "missing"
        lines.append(line(cell, value, reason))
    return Frame(lines, ["mask", "sparsity", "recipe"])


def grid(frame: Frame, table: Table = TABLES["any-mask"]) -> Grid:
    (made,) = build(table, frame)
    return made


def text(made: Grid, *place: str) -> str:
    rows = len(made.rows)
    return made.entry(place[:rows], place[rows:]).text


def test_mean_deviation_count_and_paired_difference(frame: Frame) -> None:
    made = grid(frame)
    assert text(made, "snip", "default", "digits", "90%") == "91.00 ± 1.00 (3)"
    assert text(made, "snip", "gsw", "digits", "98%") == "83.00 ± 1.00 (3) +2.00"


def test_holes_are_shown_with_their_reason_and_never_dropped(frame: Frame) -> None:
    made = grid(frame)
    assert text(made, "lth", "gsw", "digits", "98%") == "– [3 failed]"
    assert text(made, "lth", "default", "digits", "90%") == "90.50 ± 0.71 (2) [1 missing]"
    assert text(made, "lth", "gsw", "digits", "90%") == "93.00 ± 1.00 (3) +2.00", (
        "paired by seed: the missing one is left out"
    )
    assert made.entry(("lth", "gsw"), ("digits", "90%")).differences == (2.0, 2.0)


def test_the_dense_network_stands_under_every_sparsity(frame: Frame) -> None:
    made = grid(frame)
    assert [text(made, "dense", "default", *column) for column in made.column_keys] == ["99.00 ± 0.00 (3)"] * 2
    assert made.column_keys == [("digits", "90%"), ("digits", "98%")]
    assert ("dense", "gsw") not in made.row_keys


def test_axes_that_a_table_does_not_name_give_a_block_each(frame: Frame) -> None:
    blocks = build(Table(name="t", rows=("recipe",), columns=("sparsity",)), frame)
    assert [block.name for block in blocks] == ["t, snip", "t, lth", "t, dense"]


def test_sparsities_stand_in_their_order_everything_else_in_the_files(frame: Frame) -> None:
    made = grid(frame)
    assert made.row_keys == [
        ("dense", "default"),
        ("snip", "default"),
        ("snip", "gsw"),
        ("lth", "default"),
        ("lth", "gsw"),
    ]


def test_a_caption_says_how_the_numbers_came_about(frame: Frame) -> None:
    caption = grid(frame).caption
    for word in (
        "test@last",
        "resnet20 on digits",
        "8 epochs",
        "fp32",
        "stratified:0.1",
        "conv+linear",
        "seeds 0–2",
        "cpu",
    ):
        assert word in caption


def test_a_single_seed_has_no_deviation() -> None:
    assert Entry((91.234,)).text == "91.23 (1)"
    assert Entry((), (), ("failed", "failed", "missing")).text == "– [2 failed, 1 missing]"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_on_a_terminal_no_label_or_number_is_cut(width: int, frame: Frame) -> None:
    from rich.console import Console

    made = grid(frame)
    out = Console(width=width, record=True, file=io.StringIO())
    out.print(*on_terminal(made, width), sep="\n")
    text = out.export_text()
    for row in made.row_keys:
        for column in made.column_keys:
            assert made.entry(row, column).text in text
    assert "…" not in text
    assert text.count("recipe") >= len(on_terminal(made, width))


def test_every_format_is_written_and_the_numbers_are_unrounded(frame: Frame, tmp_path: Path) -> None:
    paths = write_report(tmp_path / "r", "x", frame, [grid(frame)])
    assert sorted(p.name for p in paths) == ["any-mask.csv", "any-mask.md", "any-mask.tex", "cells.csv", "report.html"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r" / "any-mask.csv").read_text())))
    row = next(r for r in rows if r["mask"] == "lth" and r["recipe"] == "default" and r["sparsity"] == "90%")
    assert (float(row["mean"]), float(row["std"]), row["n"]) == (90.5, pytest.approx(math.sqrt(0.5)), "2")
    cells = list(csv.DictReader(io.StringIO((tmp_path / "r" / "cells.csv").read_text())))
    assert len(cells) == 2 * 2 * 2 * 3 + 3
    assert sum(cell["hole"] == "failed" for cell in cells) == 3
    assert "| snip" in (tmp_path / "r" / "any-mask.md").read_text()
    page = (tmp_path / "r" / "report.html").read_text()
    assert "83.00 ± 1.00 (3)" in page
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")


HOSTILE = "<script>alert(1)</script> & 50% _x_ \\input{/etc/passwd} $1 #2 {a} ~^ | `b`"


def hostile_grid() -> Grid:
    made = Grid(HOSTILE, ("mask",), ("sparsity",), caption=HOSTILE)
    made.entries[(HOSTILE,), (HOSTILE,)] = Entry((1.0, 2.0), (-0.5,), (HOSTILE,))
    return made


def test_hostile_names_are_escaped(frame: Frame, tmp_path: Path) -> None:
    write_report(tmp_path, HOSTILE, frame, [hostile_grid()])
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    (tex,) = tmp_path.glob("*.tex")
    assert tex.parent == tmp_path
    source = tex.read_text()
    assert "\\input" not in source
    assert "\\textbackslash{}input\\{" in source


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed (Debian: texlive-latex-base)")
def test_the_latex_compiles_as_it_is(frame: Frame, tmp_path: Path) -> None:
    write_report(tmp_path, "x", frame, [grid(frame), hostile_grid()])
    body = "\n".join(f"\\input{{{path.stem}}}" for path in sorted(tmp_path.glob("*.tex")))
    head = "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n"
    (tmp_path / "main.tex").write_text(f"{head}\\begin{{document}}\n{body}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
