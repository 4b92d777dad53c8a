"""`harness report --verify paper.tex`: every number of a paper's tables computed anew, from the store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import UserError
from harness.facts import Facts
from harness.foreign import foreign_copy, read_foreign
from harness.planfile import plans_in_force, read_plan
from harness.report.frame import Line
from harness.report.grids import Entry
from harness.report.latex import LABELS, MARK, entry_tex
from harness.report.measured import Measured, measure
from harness.report.metrics import metric
from harness.report.stats import effect, verdict
from harness.store import Store

MOST_FILES = 200
_KEY = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Finding:
    """A number that the store does not bear out."""

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
    wrong: int = 0
    """Numbers with a mark that are not what the store says."""
    findings: list[Finding] = field(default_factory=list)
    unmarked: list[str] = field(default_factory=list)
    """Tables that hold no number of the harness, and so nothing that could be checked."""


def verify(paper: Path, store: Store) -> Verified:
    """Check a paper and all that it inputs. Raises UserError for a file that cannot be read."""
    verified, backing = Verified(), Backing(store)
    for path, lines in _files(paper, []):
        _check(path, lines, backing, verified)
    return verified


def _files(path: Path, seen: list[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Yield a file and those that it inputs, each once. LaTeX looks for them beside the paper."""
    if path.resolve() in seen:
        return
    if len(seen) >= MOST_FILES:
        raise UserError(f"{path}: over {MOST_FILES} files")
    seen.append(path.resolve())
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    yield path, lines
    for line in lines:
        for name in re.findall(r"\\(?:input|include|subfile)\s*\{([^}]+)\}", _code(line)):
            below = seen[0].parent / name.strip()
            found = next((p for p in (below, below.with_name(f"{below.name}.tex")) if p.is_file()), None)
            if found is None:
                raise UserError(f"{path}: inputs {name.strip()}, which is not beside {seen[0].name}")
            yield from _files(found, seen)


def _code(line: str) -> str:
    """Return a line of LaTeX without its comment."""
    return re.split(r"(?<!\\)%", line)[0]


def _check(path: Path, lines: list[str], backing: Backing, verified: Verified) -> None:
    for first, table in _tables(lines):
        if not any(MARK in line for line in table):
            if any(re.search(r"\d", _code(line)) for line in table):
                verified.unmarked.append(f"{path}:{first}")
            continue
        body = False
        for number, line in enumerate(table, first):
            body = body or r"\midrule" in line or MARK in line
            if said := _fault(line, backing, verified) if body else "":
                verified.findings.append(Finding(path, number, said))


def _tables(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield every tabular with the number of its first line, from 1."""
    start = None
    for number, line in enumerate(lines, 1):
        if re.search(r"\\begin\{(tabular|tabularx|tabular\*|longtable)\}", line):
            start = number
        if start is not None and re.search(r"\\end\{(tabular|tabularx|tabular\*|longtable)\}", line):
            yield start, lines[start - 1 : number]
            start = None


def _fault(line: str, backing: Backing, verified: Verified) -> str:
    """Return what is wrong with a line of a table's body; nothing where it is borne out, or holds no number."""
    shown, _, said = line.partition(MARK)
    if not said:
        text = re.sub(r"\\(c?midrule|bottomrule|toprule|end|addlinespace|multicolumn)\b.*", "", _code(line))
        return f"has no mark: {text.strip()!r}" if re.search(r"\d", text) else ""
    if line.strip().endswith(LABELS):
        return ""
    verified.numbers += 1
    fault = _against(re.sub(r"^\s*&?\s*", "", shown).strip(), said, backing)
    verified.wrong += bool(fault)
    return fault


def _against(shown: str, said: str, backing: Backing) -> str:
    """Return what is wrong with a number, as a paper has it, by what its mark says it is of."""
    try:
        now = entry_tex(backing.entry(said.strip()))
    except ValueError as error:
        return f"{shown!r}: {error}"
    if _bare(shown) == _bare(now):
        return ""
    return f"{shown!r} is {now!r} in the store now"


def _bare(text: str) -> tuple[str, int]:
    """Return a number without bold type and reasons of holes, whose count stays: reasons are no result's numbers."""
    text = re.sub(r"^\\textbf\{(.*?)\}(?= |$)", r"\1", text)
    holes = re.search(r" ?\(([^()]*[a-z][^()]*)\)$", text)
    return (text[: holes.start()], sum(map(int, re.findall(r"\d+(?= )", holes[1])))) if holes else (text, 0)


class Backing:
    """The results that a paper's numbers name, read from the store by key."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.known: dict[str, Line] = {}
        self.plans: dict[str, set[str]] = {}

    def entry(self, said: str) -> Entry:
        """Return the number that a comment stands for, computed anew. Raises ValueError where it cannot be."""
        fields = {name: value for name, _, value in (item.partition("=") for item in said.split())}
        if "foreign" in fields:
            return self.foreign(fields)
        if not {"sweep", "value"} <= set(fields):
            raise ValueError(f"its mark says nothing of a sweep or a value: {said[:80]!r}")
        value = fields["value"]
        if "+" in value:
            raise ValueError(f"it mixes the columns {value}")
        kind = metric(value)
        current = self.current(fields["sweep"])
        if "terms" in fields:
            return self.effect(fields, current)
        lines = [self.line(key, current) for key in fields.get("cells", "").split(",")]
        read = {line.key: kind.read(line) for line in lines}
        pairs = [pair.split("-") for pair in fields.get("pairs", "").split(",") if pair]
        differences = []
        for own, base in pairs:
            one, other = kind.read(self.line(own, current)), kind.read(self.line(base, current))
            if one is None or other is None:
                raise ValueError(f"its difference is of {own} and {base}, one of which has no result")
            differences.append(one - other)
        values = tuple(found for found in read.values() if found is not None)
        missing = tuple("missing" for found in read.values() if found is None)
        return Entry(values, tuple(differences), missing, show=kind.show, value=value)

    def effect(self, fields: Mapping[str, str], current: set[str]) -> Entry:
        """Return an effect computed anew from its terms."""
        kind = metric(fields["value"])
        sums: dict[tuple[str, str], float] = {}
        for term in fields["terms"].split(";"):
            place, _, weighted = term.partition(":")
            cell, _, seed = place.partition("/")
            total = 0.0
            for weight, key in re.findall(r"([+-][\d.e-]+?)\*([0-9a-f]{12})", weighted):
                value = kind.read(self.line(key, current))
                if value is None:
                    raise ValueError(f"it is of {key}, which has no result")
                total += float(weight) * value
            sums[cell, seed] = total
        if not sums:
            raise ValueError("its mark names no result")
        found = effect(sums, float(fields.get("level", 0.95)))
        words = verdict(found, float(fields["margin"])) if "margin" in fields else ""
        return Entry(value=fields["value"], effect=found, words=words)

    def line(self, key: str, current: set[str]) -> Line:
        """Return a cell by the first digits of its key. Raises ValueError where no sweep has it any more."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key")
        if key not in self.known:
            found = sorted((self.store.root / "stages" / "train" / key[:2]).glob(f"{key}*"))
            measured: Measured | None = measure(self.store, found[0].name) if len(found) == 1 else None
            self.known[key] = Line({}, Facts(), key, measured)
        if key not in current:
            there = "its result is there still" if self.known[key].measured else "nor has the store a result of it"
            raise ValueError(f"no sweep that it names has the cell {key} any more; {there}")
        return self.known[key]

    def current(self, names: str) -> set[str]:
        """Return the first digits of the keys that some sweeps' plans in force have."""
        found: set[str] = set()
        for name in names.split("+"):
            if name not in self.plans:
                plans = [read_plan(path) for path in plans_in_force(self.store, name)]
                if not plans:
                    raise ValueError(f"the store has no sweep {name!r}")
                self.plans[name] = {cell.key[:12] for plan in plans for cell in plan.cells}
            found |= self.plans[name]
        return found

    def foreign(self, fields: Mapping[str, str]) -> Entry:
        """Return a number from elsewhere as the store's copy of its file has it."""
        sha256 = fields["foreign"]
        for path in (self.store.imported(sha256), foreign_copy(self.store, sha256)):
            if re.fullmatch(r"[0-9a-f]{64}", sha256) and path.is_file():
                for row in read_foreign(path.read_bytes(), ""):
                    if str(row.line) == fields.get("line"):
                        return Entry(show=metric(row.metric).show, value=row.metric, foreign=row)
        raise ValueError(f"the store has no file of foreign numbers {sha256[:12]} with a line {fields.get('line')}")
