"""Paper-style tables: mean ± std (n) over seeds, the difference to a baseline, and every hole with its reason."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.form import Table
from harness.names import DENSE
from harness.report.captions import caption
from harness.report.frame import Frame, Line
from harness.report.metrics import Metric, metric, percent

METRIC = "metric"
"""The level of columns that a table with several metrics has."""

Place = tuple[tuple[str, ...], tuple[str, ...]]
"""A row and a column."""

HEADS = {"dataset": "data set", "arch": "network", "mask": "mask", "sparsity": "sparsity", "recipe": "recipe"}


@dataclass(frozen=True)
class Entry:
    """A number of a table: its values over seeds, the paired differences to the baseline, the reasons of holes."""

    values: tuple[float, ...] = ()
    differences: tuple[float, ...] = ()
    holes: tuple[str, ...] = ()
    planned: bool = True
    show: Callable[[float], str] = percent

    @property
    def number(self) -> str:
        """Return mean ± std (n)."""
        if not self.values:
            return ""
        mean, n = statistics.fmean(self.values), len(self.values)
        return (
            f"{self.show(mean)} ± {self.show(statistics.stdev(self.values))} ({n})"
            if n > 1
            else f"{self.show(mean)} (1)"
        )

    @property
    def difference(self) -> str:
        """Return the mean paired difference to the baseline, signed."""
        return f"{statistics.fmean(self.differences):+.2f}" if self.differences else ""

    @property
    def hole(self) -> str:
        """Return how many seeds are missing, and why."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(self.holes).items()))

    @property
    def text(self) -> str:
        """Return the entry as plain text."""
        if not self.planned:
            return ""
        parts = [self.number or "–"]
        if self.difference:
            parts.append(self.difference)
        if self.hole:
            parts.append(f"[{self.hole}]")
        return " ".join(parts)


@dataclass
class Grid:
    """A finished table: its entries by row and column, and what a reader must know."""

    name: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    entries: dict[tuple[tuple[str, ...], tuple[str, ...]], Entry] = field(default_factory=dict)
    caption: str = ""

    @property
    def row_keys(self) -> list[tuple[str, ...]]:
        """Return the rows in order."""
        return list(dict.fromkeys(row for row, _ in self.entries))

    @property
    def column_keys(self) -> list[tuple[str, ...]]:
        """Return the columns in order."""
        return list(dict.fromkeys(column for _, column in self.entries))

    def entry(self, row: tuple[str, ...], column: tuple[str, ...]) -> Entry:
        """Return an entry; one that the grid never asked for is empty."""
        return self.entries.get((row, column), Entry(planned=False))

    @property
    def heads(self) -> list[str]:
        """Return the names of the row axes."""
        return [HEADS.get(axis, axis) for axis in self.rows]


def build(table: Table, frame: Frame) -> list[Grid]:
    """Lay a frame out as a table, one grid for every combination of the axes that it does not name.

    How many processes train a cell means nothing to its number, and so makes no other table.
    """
    others = [axis for axis in frame.varying if axis not in (*table.rows, *table.columns, "world")]
    blocks: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in frame.lines:
        blocks[_labels(line, others)].append(line)
    grids = []
    for labels, lines in blocks.items():
        suffix = "".join(f", {label}" for label in labels)
        columns = table.columns if table.metrics == ("accuracy",) else (*table.columns, METRIC)
        grid = Grid(f"{table.name}{suffix}", table.rows, columns)
        _fill(grid, table, lines)
        grid.caption = caption(table, lines)
        grids.append(grid)
    return grids


def _labels(line: Line, axes: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(line.cell.axis(axis)) for axis in axes)


def _fill(grid: Grid, table: Table, lines: Sequence[Line]) -> None:
    sparse = [line for line in lines if line.cell.mask.name != DENSE]
    order = {
        axis: {label: n for n, label in enumerate(_ordered(axis, sparse or lines))}
        for axis in (*table.rows, *table.columns)
    }
    order[METRIC] = {name: n for n, name in enumerate(table.metrics)}
    metrics = {name: metric(name) for name in table.metrics}
    groups: dict[Place, list[Line]] = defaultdict(list)
    for line in lines:
        for column in _columns(line, table, order):
            groups[_labels(line, table.rows), column].append(line)
    baseline = {
        (name, place, line.cell.seed): value
        for name, kind in metrics.items()
        for place, members in groups.items()
        for line in members
        if line.cell.recipe.text == table.baseline and (value := kind.read(line)) is not None
    }
    rows = sorted(dict.fromkeys(row for row, _ in groups), key=lambda row: _rank(row, table.rows, order))
    columns = sorted(dict.fromkeys(column for _, column in groups), key=lambda c: _rank(c, table.columns, order))
    for row, column, name in itertools.product(rows, columns, metrics):
        place = (row, (*column, name) if METRIC in grid.columns else column)
        members = groups.get((row, column))
        if members is None:
            grid.entries[place] = Entry(planned=False)
            continue
        grid.entries[place] = _entry((row, column), members, metrics[name], baseline, table)


def _entry(
    place: Place, members: Sequence[Line], kind: Metric, baseline: Mapping[tuple[str, Place, int], float], table: Table
) -> Entry:
    """Gather one number of a table over seeds."""
    values, differences = [], []
    base_place = _with_recipe(*place, table)
    for line in members:
        value = kind.read(line)
        if value is None:
            continue
        values.append(value)
        base = baseline.get((kind.name, base_place, line.cell.seed))
        if kind.compared and base is not None and base_place != place:
            differences.append(value - base)
    holes = tuple(line.reason for line in members if line.result is None)
    return Entry(tuple(values), tuple(differences), holes, show=kind.show)


def _ordered(axis: str, lines: Sequence[Line]) -> list[str]:
    """Return an axis's labels: sparsities by size, everything else in the sweep file's order."""
    if axis == "sparsity":
        return [s.label for s in sorted({line.cell.sparsity for line in lines}, key=lambda s: s.share)]
    return list(dict.fromkeys(str(line.cell.axis(axis)) for line in lines))


def _rank(labels: tuple[str, ...], axes: Sequence[str], order: dict[str, dict[str, int]]) -> tuple[int, ...]:
    return tuple(order[axis].get(label, -1) for axis, label in zip(axes, labels, strict=True))


def _columns(line: Line, table: Table, order: dict[str, dict[str, int]]) -> list[tuple[str, ...]]:
    """Return the columns a line stands in; a dense network stands under every sparsity."""
    if line.cell.mask.name != DENSE or "sparsity" not in table.columns:
        return [_labels(line, table.columns)]
    choices = [list(order[a]) if a == "sparsity" else [str(line.cell.axis(a))] for a in table.columns]
    return [tuple(labels) for labels in itertools.product(*choices)]


def _with_recipe(row: tuple[str, ...], column: tuple[str, ...], table: Table) -> Place:
    """Return the place where the baseline recipe of a row and column stands."""

    def put(labels: tuple[str, ...], axes: Sequence[str]) -> tuple[str, ...]:
        return tuple(table.baseline if axis == "recipe" else label for axis, label in zip(axes, labels, strict=True))

    return put(row, table.rows), put(column, table.columns)
