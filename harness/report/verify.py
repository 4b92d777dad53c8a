"""`harness report --verify paper.tex`: a paper's tables against those that the store gives now, row by row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness.errors import UserError
from harness.report.grids import Grid
from harness.report.latex import LABELS, MARK, latex

MOST_FILES = 200
ELSEWHERE = f"{MARK} elsewhere"
"""A comment in a table of numbers that are not from here: it is passed over."""
_KINDS = r"(?:tabular[xy*]?|tabulary|longtable|xltabular|supertabular|array|(?:long|tall)?tblr|NiceTabular[X*]?)"
_BEGIN = re.compile(rf"\\begin\{{{_KINDS}\}}")
_END = re.compile(rf"\\end\{{{_KINDS}\}}")
_RULES = re.compile(
    r"\\(?:c?midrule|bottomrule|toprule|addlinespace|hline|cline)(?:\([lr]*\))?(?:\{[^}]*\}|\[[^\]]*\])?"
    r"|\\end\{[^}]*\}|\\\\\[[^\]]*\]"
)
_SHA = re.compile(r"foreign=([0-9a-f]{64})")


@dataclass(frozen=True)
class Number:
    """A number of a row as it is printed, and the comment behind it, which says what it is of."""

    line: int
    text: str
    mark: str


@dataclass(frozen=True)
class Row:
    """A row of a table: its labels and its numbers, those left out excepted."""

    line: int
    labels: str
    numbers: list[Number]
    heads: str = ""
    """The table's head."""
    columns: Sequence[str] = ()
    """The head's last line, over the numbers."""
    grid: str = ""
    """The table that it is of."""

    @cached_property
    def marks(self) -> frozenset[str]:
        """Return what its numbers are of."""
        return frozenset(number.mark for number in self.numbers)


@dataclass(frozen=True)
class Finding:
    """Something that the store does not bear out."""

    file: Path
    line: int
    said: str

    @property
    def text(self) -> str:
        """Return the finding in one line."""
        return f"{self.file}:{self.line}: {self.said}"


@dataclass
class Verified:
    """What was found in a paper."""

    numbers: int = 0
    """Numbers that are as the store has them."""
    findings: list[Finding] = field(default_factory=list)


def verify(paper: Path, tables_of: Callable[[str, Iterable[str]], Sequence[Grid]]) -> Verified:
    """Check a paper and all that it inputs. Raises UserError for a file that cannot be read.

    `tables_of`: from the sweeps that a number's comment names, as `a` or `a+b`, and the hashes of files of foreign
    numbers, to the tables as they are now.
    """
    verified = Verified()
    now: dict[str, list[Row]] = {}
    files = list(_files(paper, []))
    hashes = {found for _, lines in files for line in lines for found in _SHA.findall(line)}
    for path, lines in files:
        for first, table in _tables(lines):
            for name in _sweeps(table):
                if name not in now:
                    grids = tables_of(name, hashes)
                    now[name] = [row for grid in grids for row in _rows(latex(grid).splitlines(), 1, grid.name)]
            _check(path, first, table, [row for name in _sweeps(table) for row in now[name]], verified)
    return verified


def _files(path: Path, seen: list[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Yield a file and those that it inputs, each once. LaTeX looks for them beside the paper."""
    if path.resolve() in seen:
        return
    if len(seen) >= MOST_FILES:
        raise UserError(f"{path}: over {MOST_FILES} files; verify it part by part")
    seen.append(path.resolve())
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name the paper's .tex file") from None
    yield path, lines
    for line in lines:
        for name in re.findall(r"\\(?:input|include|subfile)\s*\{([^}#\\]+)\}", _code(line)):
            below = str(seen[0].parent / name.strip())
            found = next((p for p in (Path(below), Path(f"{below}.tex")) if p.is_file()), None)
            if found is None:
                raise UserError(f"{path}: inputs {name.strip()}, which is not beside {seen[0].name}; put it there")
            yield from _files(found, seen)


def _code(line: str) -> str:
    """Return a line of LaTeX without its comment."""
    return re.split(r"(?<!\\)%", line)[0]


def _tables(lines: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield every tabular with the number of its first line, from 1."""
    start = depth = 0
    for number, line in enumerate(lines, 1):
        code = _code(line)
        if depth == 0 and _BEGIN.search(code):
            start = number
        depth = max(0, depth + len(_BEGIN.findall(code)) - len(_END.findall(code)))
        if start and depth == 0:
            yield start, lines[start - 1 : number]
            start = 0


def _sweeps(table: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(found[1] for line in table if (found := re.search(rf"{MARK} .*?sweep=(\S+)", line))))


def _rows(table: Sequence[str], first: int, grid: str = "") -> list[Row]:
    """Return the rows of a table whose lines this tool wrote; `first` is the number of its first line."""
    rows: list[Row] = []
    heads: list[str] = []
    top = False
    for number, line in enumerate(table, first):
        shown, marked, said = line.partition(MARK)
        if line.rstrip().endswith(LABELS):
            labels = _plain(shown)
            rows.append(Row(number, labels, [], " ".join(map(_plain, heads)), _columns(heads, labels), grid))
        elif marked and rows:
            rows[-1].numbers.append(Number(number, _plain(shown), said.strip()))
        elif not rows and top and r"\midrule" not in line:
            heads.append(_code(line))
        top = top or r"\toprule" in line
    return rows


def _columns(heads: Sequence[str], labels: str) -> list[str]:
    """Return what stands over each number in the last line of a head that has anything there."""
    skip = len(labels.split(" & "))
    for line in reversed(heads):
        cells = [" ".join(cell.split()) for cell in line.strip().removesuffix("\\\\").split("&")][skip:]
        if any(cells):
            return cells
    return []


def _plain(text: str) -> str:
    return " ".join(re.sub(r"^\s*&|&\s*$", "", text.strip()).split())


def _check(path: Path, first: int, table: Sequence[str], now: Sequence[Row], verified: Verified) -> None:
    rows = _rows(table, first)
    if not rows:
        if not any(ELSEWHERE in line for line in table) and any(re.search(r"\d", _code(line)) for line in table):
            said = f"a table of numbers none of which is marked; if they are from elsewhere, write {ELSEWHERE} in it"
            verified.findings.append(Finding(path, first, said))
        return
    body = False
    for number, line in enumerate(table, first):
        text = _RULES.sub("", _code(line))
        if body and MARK not in line and re.search(r"\d", text):
            verified.findings.append(Finding(path, number, f"has no mark: {text.strip()!r}"))
        body = body or r"\midrule" in line or number == rows[0].line
    of = _likest(rows, now)
    for row in rows:
        _check_row(path, row, of, verified, headed=row is rows[0])


def _likest(rows: Sequence[Row], now: Sequence[Row]) -> list[Row]:
    """Return the rows of the one of today's tables that a table of the paper is: several may have the same numbers."""
    marks = {mark for row in rows for mark in row.marks}
    labelled: dict[str, set[str]] = {}
    for row in rows:
        labelled.setdefault(row.labels, set()).update(row.marks)
    grids: dict[str, list[Row]] = {}
    for other in now:
        grids.setdefault(other.grid, []).append(other)

    def shared(others: Sequence[Row]) -> tuple[int, int, bool]:
        in_place = sum(bool(other.marks & labelled.get(other.labels, set())) for other in others)
        held = {mark for other in others for mark in other.marks}
        return in_place, len(marks & held), others[0].heads == rows[0].heads

    return max(grids.values(), key=shared, default=[])


def _check_row(path: Path, row: Row, now: Sequence[Row], verified: Verified, headed: bool) -> None:
    """Compare a row with the one of today's tables that it has most in common with."""

    def shared(other: Row) -> tuple[int, bool]:
        return len(row.marks & other.marks), other.labels == row.labels

    alike = max(now, key=shared, default=None)
    if alike is None or not row.marks & alike.marks:
        said = f"{row.labels!r}: the table of today has no number of these cells: the sweep or its results have changed"
        verified.findings.append(Finding(path, row.line, said))
        return
    if alike.labels != row.labels:
        said = f"the numbers behind {row.labels!r} are those of {alike.labels!r}"
        verified.findings.append(Finding(path, row.line, said))
        return
    if headed and len(row.numbers) == len(alike.numbers) and row.heads != alike.heads:
        said = f"the table's head is {row.heads!r}, where the numbers are of {alike.heads!r}"
        verified.findings.append(Finding(path, row.line, said))
    at = 0
    for place, number in enumerate(row.numbers):
        places = [n for n, other in enumerate(alike.numbers) if other.mark == number.mark]
        later = [n for n in places if n >= at]
        equal = [n for n in later if alike.numbers[n].text == number.text]
        head = row.columns[place : place + 1]
        match = next((n for n in equal if alike.columns[n : n + 1] == head), None)
        if not places:
            said = f"{number.text!r}: no number of {row.labels!r} is of these cells any more"
        elif not later:
            said = f"{number.text!r} stands in another column than its own"
        elif not equal:
            said = f"{number.text!r} is {alike.numbers[later[0]].text!r} in the store now"
        elif match is None:
            own = " ".join(alike.columns[equal[0] : equal[0] + 1])
            said = f"{number.text!r} stands under {' '.join(head)!r}, not under {own!r}"
        else:
            at = match + 1
            verified.numbers += 1
            continue
        verified.findings.append(Finding(path, number.line, said))
