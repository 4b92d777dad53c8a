"""The report of a stored fixture of 300 results: tables and figures as they were once looked at, and formats."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from harness.declared import FIGURES
from harness.foreign import read_foreign
from harness.report.assemble import Report, make_report, write_report
from harness.report.drawing import render, write_figures
from harness.report.frame import without_folders
from harness.report.grids import Entry, Grid
from harness.report.latex import lacking, latex, stem, stems, tex
from harness.report.writers import on_terminal, write_tables
from harness.terminal import show_tables
from tests.conftest import report_command, run_sweep
from tests.harness.synthetic import fixture, write_fixture_store

GOLDEN = Path(__file__).parent / "golden"
WRITE = os.environ.get("HARNESS_GOLDEN") == "write"
"""Write what is now instead of comparing with it; for a person to look at before it is committed."""
HOSTILE = "<script>alert(1)</script> & 50% _x_ \\input{/etc/passwd} $1 #2 {a} ~^ | `b` é \x07\n%@ labels"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    store, saved = write_fixture_store(tmp_path_factory.mktemp("fixture"))
    return make_report(store, [saved])


@pytest.fixture(scope="module")
def written(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_report(report, folder)
    return folder


def lasting(text: str) -> str:
    """Return a text without dates, keys and hashes, which other data or code would change."""
    text = re.sub(r"\d{4}-\d\d-\d\d [0-9a-f]{12}", "DATE HASH", text)
    return re.sub(r"\b[0-9a-f]{12}\b|\b[0-9a-f]{32}\b|(?<=files )[0-9a-f]{8}", "KEY", text)


@pytest.mark.parametrize(
    "name",
    [
        "claims.md",
        "claims.tex",
        "any-mask_resnet20.md",
        "any-mask_resnet32.md",
        "any-mask_resnet32.tex",
        "any-mask_resnet32.csv",
        "components_resnet20_snip.md",
        "cost_resnet20_tost.md",
    ],
)
def test_tables_are_as_they_were_looked_at(name: str, written: Path) -> None:
    now = lasting((written / name).read_text())
    if WRITE:
        GOLDEN.mkdir(exist_ok=True)
        (GOLDEN / name).write_text(now)
    then, exact = (GOLDEN / name).read_text(), re.compile(r"\b\d+\.\d{9,}\b")
    assert exact.sub("NUMBER", now) == exact.sub("NUMBER", then)
    assert [float(n) for n in exact.findall(now)] == pytest.approx([float(n) for n in exact.findall(then)], rel=1e-12)


@pytest.mark.parametrize("kind", FIGURES)
def test_figures_are_as_they_were_looked_at(kind: str, report: Report, tmp_path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.testing.compare import compare_images

    (figure,) = [f for f in report.figures if f.kind == kind and "resnet20" in f.name]
    (data,) = render(figure, ["png"])
    golden = GOLDEN / f"{kind}.png"
    if WRITE:
        golden.write_bytes(data)
    (tmp_path / f"{kind}.png").write_bytes(data)
    shutil.copy(golden, tmp_path / "golden.png")
    # Fonts are drawn a little differently by every version of freetype: 12 of 255 is less than a line or a label.
    said = compare_images(str(tmp_path / "golden.png"), str(tmp_path / f"{kind}.png"), tol=12)
    assert said is None, f"{said} (matplotlib {mpl.__version__})"


def test_every_figure_has_the_width_of_a_column_and_the_same_bytes_twice(report: Report) -> None:
    figure = report.figures[0]
    assert render(figure, ["pdf", "svg"]) == render(figure, ["pdf", "svg"])
    svg = render(figure, ["svg"])[0].decode()
    found = re.search(r'width="([\d.]+)pt"', svg)
    assert found is not None
    assert float(found[1]) == pytest.approx(3.35 * 72, abs=1)


def test_a_figure_is_drawn_again_when_its_numbers_change_and_removed_when_it_is_no_more(
    report: Report, tmp_path: Path
) -> None:
    first, second = report.figures[:2]
    write_figures(tmp_path, [first, second])
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_figures(tmp_path, [first, second])
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    (tmp_path / f"{stem(first.name)}.pdf").unlink()
    write_figures(tmp_path, [first])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{stem(first.name)}.pdf", f"{stem(first.name)}.svg", "figures.json"}


def test_every_format_is_written_and_numbers_are_unrounded(written: Path) -> None:
    import pandas as pd

    names = {path.name for path in written.iterdir()}
    for ending in ("md", "tex", "csv", "parquet"):
        assert f"any-mask_resnet20.{ending}" in names
    assert {"report.html", "cells.csv", "cells.parquet"} <= names
    numbers = pd.read_parquet(written / "any-mask_resnet20.parquet")
    (row,) = numbers[(numbers["mask"] == "snip") & (numbers["recipe"] == "gsw") & (numbers["sparsity"] == "90%")].iloc
    tests = [float(fixture()["resnet20", "snip", "90%", "gsw", str(seed)]["test"]) for seed in range(4)]
    assert row["mean"] == pytest.approx(sum(tests) / 4, abs=1e-12)
    assert len(row["cells"].split()) == 4
    assert row["low"] < row["difference"] < row["high"]
    with (written / "cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 300
    assert sum(cell["state"] == "diverged" for cell in cells) == 7
    assert sum(cell["state"] == "ticket failed" for cell in cells) == 8
    assert all(cell["key"] and cell["order_id"] and cell["theta0_id"] for cell in cells)
    paired = {(c["recipe"], c["mask_id"]) for c in cells if c["arch"] == "resnet20" and c["mask"] == "snip"}
    assert len({mask for recipe, mask in paired if recipe == "tost"} & {m for r, m in paired if r == "default"}) > 5


def test_what_a_report_does_not_write_any_more_is_removed(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    (tmp_path / "mine.txt").write_text("kept")
    fewer = make_report(report.store, report.plans)
    fewer.grids = fewer.grids[:2]
    write_report(fewer, tmp_path)
    tables = {path.name for path in tmp_path.glob("*.tex")}
    assert tables == {"claims.tex", "any-mask_resnet20.tex"}
    assert (tmp_path / "mine.txt").exists(), "only what it wrote itself"


def test_only_new_results_are_read_again(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.report import measured

    make_report(report.store, report.plans)
    read: list[str] = []
    monkeypatch.setattr(measured, "measure", lambda store, key: read.append(key))
    again = make_report(report.store, report.plans)
    assert read == []
    assert again.done == report.done


def test_foreign_numbers_that_stand_nowhere_are_told(report: Report) -> None:
    assert report.unplaced == ""
    odd = read_foreign(b"arch,mask,sparsity,recipe,value,source\nvgg16,snip,90%,default,1,elsewhere\n", "odd.csv")
    other = make_report(report.store, report.plans, odd)
    assert other.unplaced == "1 foreign number of axes or values that no table has: the first in odd.csv, line 2"


def test_no_two_tables_become_one_file() -> None:
    assert stems(["a b", "a_b", "A b", "a:b", "%"]) == ["a_b", "a_b-2", "A_b-3", "a_b-4", "table"]


def hostile_grid() -> Grid:
    made = Grid(HOSTILE, ("mask",), ("sparsity",), caption=HOSTILE)
    made.entries[(HOSTILE,), (HOSTILE,)] = Entry((1.0, 2.0), (-0.5, 0.25), (HOSTILE,))
    return made


def test_hostile_names_do_nothing(tmp_path: Path, report: Report) -> None:
    paths = write_tables(tmp_path, [hostile_grid()])
    assert {path.parent for path in paths} == {tmp_path}
    source = next(path for path in paths if path.suffix == ".tex").read_text()
    assert "\\input" not in source
    assert "\\textbackslash{}input\\{" in source
    assert tex(HOSTILE).count("\n") == 0
    from harness.report.site import page

    text = page(HOSTILE, HOSTILE, [hostile_grid()], report.frame, [], report.store, {})
    assert "<script>alert" not in text
    assert "&lt;script&gt;" in text


def test_a_page_opens_with_a_strict_policy(written: Path) -> None:
    text = (written / "report.html").read_text()
    head = text[: text.index("<title>")]
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', head)
    rules = {name: values for name, *values in (rule.split() for rule in policy.split(";"))}
    assert rules.pop("default-src") == ["'none'"]
    assert rules.pop("img-src") == ["data:"]
    for kind, tag in (("style-src", "style"), ("script-src", "script")):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert rules.pop(kind) == [f"'sha256-{digest}'"]
    assert not rules, "and nothing else is allowed"
    assert not re.search(r"<[^>]+ (?:on\w+|style)\s*=", text), "which would forbid these"


LATEX = pytest.mark.skipif(
    shutil.which("pdflatex") is None,
    reason="no pdflatex (Debian: texlive-latex-base, texlive-latex-recommended)",
)


@LATEX
def test_all_tables_compile_as_they_are(written: Path, tmp_path: Path) -> None:
    signs = "".join(map(chr, [*range(0xA1, 0x250), *range(0x370, 0x400), *range(0x1E00, 0x1F00)])) + "—…‘’“”€✓デ"
    accents = replace(hostile_grid(), name="accents", caption=signs)
    write_tables(tmp_path, [hostile_grid(), accents])
    for path in written.glob("*.tex"):
        shutil.copy(path, tmp_path)
    body = "\n".join(f"\\input{{{path.stem}}}\n\\clearpage" for path in sorted(tmp_path.glob("*.tex")))
    head = "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n"
    (tmp_path / "main.tex").write_text(f"{head}\\begin{{document}}\n{body}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    if keep := os.environ.get("HARNESS_SCREENSHOTS"):
        shutil.copy(tmp_path / "main.pdf", keep)


def test_a_line_of_latex_holds_one_number_and_the_cells_it_is_of(report: Report) -> None:
    grid = next(grid for grid in report.grids if grid.name == "any-mask, resnet20")
    numbers = [line for line in latex(grid).splitlines() if "sweep=synthetic" in line]
    assert len(numbers) == 14 * 3
    entry = grid.entry(("snip", "tost"), ("digits", "90%"))
    (line,) = [line for line in numbers if entry.lines[0].key[:12] in line and "pairs=" in line]
    assert f"cells={','.join(x.key[:12] for x in entry.lines)}" in line
    assert line.count("-", line.index("pairs=")) == 3, "three pairs; the fourth seed diverged"


def test_the_command_joins_sweeps_and_says_what_is_wrong(project: Path) -> None:
    done = run_sweep(project, "tiny.yaml", "--only", "mask=random", "--threads", "1")
    assert done.returncode == 0, done.stderr
    (project / "other.yaml").write_text((project / "tiny.yaml").read_text().replace("name: tiny", "name: other"))
    assert run_sweep(project, "other.yaml", "--only", "mask=random", "--threads", "1").returncode == 0
    harness = partial(report_command, project)
    done = harness("tiny")
    assert done.returncode == 0, done.stderr
    assert "random" in done.stdout
    assert (project / "runs" / "sweeps" / "tiny" / "report" / "report.html").exists()
    done = harness("tiny", "other", "-q")
    assert done.returncode == 0, done.stderr
    assert (project / "runs" / "reports" / "tiny+other" / "cells.csv").read_text().count("\n") == 1 + 4
    for arguments, said in (
        (["tinny"], "did you mean 'tiny'"),
        (["tiny", "--mix", "epoch"], "did you mean 'epochs'"),
        (["tiny", "--baselines", "no.csv"], "No such file"),
        ([], "name a sweep"),
        (["tiny", "--verify", "no.tex"], "No such file"),
    ):
        done = harness(*arguments)
        assert done.returncode == 2, arguments
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_labels_keep_no_folder_and_stay_apart() -> None:
    labels = [
        "file:/home/me/a.pt",
        "file:/home/you/a.pt(match=order)",
        "file:/home/you/a.pt",
        "file:./b.pt",
        "imagefolder:/data/cats/",
        "mine:/data (old)/x(size=8)",
        "resnet20(width=0.25)",
        "90%",
    ]
    assert without_folders(labels) == {
        "file:/home/me/a.pt": "file:a.pt",
        "file:/home/you/a.pt(match=order)": "file:a.pt(match=order)",
        "file:/home/you/a.pt": "file:a.pt (2)",
        "file:./b.pt": "file:b.pt",
        "imagefolder:/data/cats/": "imagefolder:cats",
        "mine:/data (old)/x(size=8)": "mine:x(size=8)",
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Müller & Çelik, García-López, Øre, Łukasz", r"Müller \& Çelik, García-López, Øre, Łukasz"),
        ("u\u0308", "ü"),
        ("β-run, Ω", r"$\beta$-run, $\Omega$"),
        ("Dąbrowski, Đorđe, Nguyễn", "Dabrowski, Dorde, Nguyen"),
        ("デ", "(U+30C7)"),
        ("a\u200bb\nc", "a b c"),
    ],
)
def test_latex_keeps_what_it_can_print(text: str, shown: str) -> None:
    assert tex(text) == shown


def test_a_table_says_which_signs_latex_replaced() -> None:
    assert lacking("Müller β – Dąbrowski デデ") == ["ą", "デ"]


def test_where_output_is_no_terminal_nothing_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "file:./" + "deep/" * 60 + "mask.pt"
    made = Grid("wide", ("mask",), ("sparsity",), caption="A caption. " * 40)
    made.entries[(long,), ("90%",)] = Entry((1.0, 2.0))
    show_tables(*on_terminal(made, 80))
    printed = capsys.readouterr().out
    assert long in printed
    assert " ".join(printed.split()).count("A caption.") == 40
    assert "…" not in printed
