"""A paper's tables against the store: what is right passes, and whatever was changed is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.report.assemble import make_report, write_report
from harness.report.latex import LABELS, MARK
from harness.report.verify import Verified, verify
from harness.store import Result
from tests.harness.synthetic import write_fixture_store

PAPER = r"""
\documentclass{article}
\usepackage{booktabs}
\begin{document}
% \input{not-there}
\input{tables/any-mask_resnet32}
\include{tables/claims}
\end{document}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    store, saved = write_fixture_store(folder)
    write_report(make_report(store, [saved]), folder / "tables")
    (folder / "paper.tex").write_text(PAPER)
    return folder


@pytest.fixture
def paper(whole: Path, tmp_path: Path) -> Path:
    """A paper of one's own to change."""
    shutil.copytree(whole / "tables", tmp_path / "tables", ignore=shutil.ignore_patterns("figures"))
    shutil.copy(whole / "paper.tex", tmp_path)
    return tmp_path / "paper.tex"


def checked(paper: Path, whole: Path) -> Verified:
    from harness.planfile import find_plan, read_plan
    from harness.store import Store

    store = Store(whole / "runs")
    return verify(
        paper,
        lambda named, _: (
            make_report(store, [read_plan(find_plan(store, name)) for name in named.split("+")], rebuild=True).grids
        ),
    )


def edit(paper: Path, old: str, new: str, table: str = "any-mask_resnet32") -> None:
    path = paper.parent / "tables" / f"{table}.tex"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_what_was_written_is_borne_out(paper: Path, whole: Path) -> None:
    found = checked(paper, whole)
    assert found.findings == []
    assert found.numbers > 13 * 3


def test_each_table_is_held_against_itself_though_others_have_its_numbers_under_other_labels(
    paper: Path, whole: Path
) -> None:
    tables = sorted((paper.parent / "tables").glob("*.tex"))
    paper.write_text("\n".join(f"\\input{{tables/{table.name}}}" for table in tables))
    found = checked(paper, whole)
    assert [finding.text for finding in found.findings] == []
    assert found.numbers == sum(table.read_text().count(MARK) - table.read_text().count(LABELS) for table in tables)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("89.00 $\\pm$ 0.20 (4)", "89.10 $\\pm$ 0.20 (4)", "is '89.00 $\\\\pm$ 0.20 (4)' in the store now"),
        ("[$+0.22$, $+2.66$]", "[$+0.92$, $+1.66$]", "in the store now"),
        ("1 diverged", "0 diverged", "in the store now"),
        ("\\textbf{90.44", "{90.44", "in the store now"),
        ("snip & gsw", "snip & tost", "the numbers behind 'snip & tost' are those of 'snip & gsw'"),
        ("& 98\\% \\\\", "& 99\\% \\\\", "the table's head is"),
        ("88.50 $\\pm$ 0.40 (5)", "98.50 $\\pm$ 0.40 (5)", "in the store now"),
        ("\\bottomrule", "mine & better & 99.9 & 99.9 & 99.9 \\\\\n\\bottomrule", "has no mark: 'mine & better"),
        ("%@ sweep=synthetic value=test@last cells=", "%@ ", "is of these cells any more"),
        ("\\midrule", "\\midrule\nOurs & magic & 99.99 & 99.98 & 99.97 \\\\", "has no mark: 'Ours & magic"),
        ("\\bottomrule", "[99.99] \\\\\n\\bottomrule", "has no mark: '[99.99]"),
    ],
)
def test_what_was_changed_is_found(old: str, new: str, said: str, paper: Path, whole: Path) -> None:
    edit(paper, old, new)
    found = checked(paper, whole)
    assert any(said in finding.text for finding in found.findings), [f.text for f in found.findings]
    assert all(finding.file.name == "any-mask_resnet32.tex" for finding in found.findings)


def lines_of(paper: Path, *labels: str) -> tuple[list[str], list[int]]:
    path = paper.parent / "tables" / "any-mask_resnet32.tex"
    lines = path.read_text().splitlines()
    return lines, [next(n for n, line in enumerate(lines) if line.startswith(label)) for label in labels]


def write(paper: Path, lines: list[str]) -> None:
    (paper.parent / "tables" / "any-mask_resnet32.tex").write_text("\n".join(lines))


def test_numbers_moved_with_their_marks_are_found(paper: Path, whole: Path) -> None:
    lines, (at,) = lines_of(paper, "lth & tost")
    lines[at + 1], lines[at + 2] = lines[at + 2], lines[at + 1]
    write(paper, lines)
    said = [finding.said for finding in checked(paper, whole).findings]
    assert len(said) == 2
    assert all("' stands under '" in text for text in said)


def test_seeds_cut_from_a_mark_are_found(paper: Path, whole: Path) -> None:
    lines, (at,) = lines_of(paper, "snip & ls")
    head, _, cells = lines[at + 1].partition("cells=")
    lines[at + 1] = f"{head}cells={cells.partition(',')[2]}"
    write(paper, lines)
    assert "is of these cells any more" in checked(paper, whole).findings[0].said


def without_column(paper: Path, head: str) -> None:
    """Take the second of three columns away, and one of the heads."""
    lines, _ = lines_of(paper)
    kept = []
    behind = 0
    for line in lines:
        behind = 0 if line.endswith(f"{MARK} labels") or line.strip() == "\\\\" else behind + 1
        second = behind == 2 and line.startswith("  &")
        if not second:
            kept.append(line.replace(f"{head} & ", "").replace(f" & {head}", "", 1))
    write(paper, kept)


def test_columns_left_out_are_no_fault_but_heads_over_other_numbers_are(paper: Path, whole: Path) -> None:
    without_column(paper, "95\\%")
    found = checked(paper, whole)
    assert found.findings == []
    assert found.numbers > 13 * 2


def test_heads_over_other_numbers_are_found_though_a_column_was_left_out(paper: Path, whole: Path) -> None:
    without_column(paper, "98\\%")
    said = {finding.said.partition("' stands ")[2] for finding in checked(paper, whole).findings}
    assert "under '95\\\\%', not under '98\\\\%'" in said


def test_a_row_of_another_table_is_found(paper: Path, whole: Path) -> None:
    lines, (at,) = lines_of(paper, "lth & tost")
    other = (paper.parent / "tables" / "any-mask_resnet20.tex").read_text().splitlines()
    theirs = next(n for n, line in enumerate(other) if line.startswith("lth & tost"))
    lines[at : at + 4] = other[theirs : theirs + 4]
    write(paper, lines)
    assert any("has no number of these cells" in finding.said for finding in checked(paper, whole).findings)


def test_macros_that_input_by_argument_are_passed_over(paper: Path, whole: Path) -> None:
    paper.write_text(
        PAPER.replace("\\begin{document}", "\\newcommand{\\sec}[1]{\\input{sections/#1}}\n\\begin{document}")
    )
    assert checked(paper, whole).findings == []


def test_a_table_without_any_mark_must_say_that_it_is_from_elsewhere(paper: Path, whole: Path) -> None:
    table = "\\begin{tabular}{l}\n1 \\\\\n\\end{tabular}\n"
    paper.write_text(PAPER.replace("\\end{document}", f"{table}\\end{{document}}"))
    (finding,) = checked(paper, whole).findings
    assert "none of which is marked" in finding.said
    paper.write_text(PAPER.replace("\\end{document}", f"{table.replace('1', f'1 {MARK} elsewhere')}\\end{{document}}"))
    assert checked(paper, whole).findings == []


def test_a_verdict_is_checked_too(paper: Path, whole: Path) -> None:
    edit(paper, "equivalent %@", "better %@", "claims")
    (finding,) = checked(paper, whole).findings
    assert "'better' is 'equivalent' in the store now" in finding.said


def test_a_result_that_became_another_makes_the_paper_stale(paper: Path, tmp_path: Path) -> None:
    store, saved = write_fixture_store(tmp_path)
    key = next(cell.key for cell in saved.cells if cell.labels[1:5] == ("resnet32", "snip", "90%", "ls"))
    path = store.path("train", key) / "result-0001.json"
    result = Result.load(path, 1)
    assert result is not None
    other = Result(2, result.artifact, result.parents, {**result.metrics, "test@last": 1.0}, result.stamp, {})
    path.with_name("result-0002.json").write_bytes(other.dump())
    said = [finding.said for finding in checked(paper, tmp_path).findings]
    assert any("in the store now" in text for text in said)


def test_a_file_that_is_not_there_is_told(paper: Path, whole: Path) -> None:
    (paper.parent / "tables" / "claims.tex").unlink()
    with pytest.raises(UserError, match=r"inputs tables/claims, which is not beside paper\.tex"):
        checked(paper, whole)
