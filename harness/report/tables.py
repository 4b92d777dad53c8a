"""Paper-style tables: mean ± std (n) over seeds, the difference to a baseline, and every hole with its reason."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from harness.declared import EFFECT, Table
from harness.foreign import Foreign
from harness.report.captions import caption
from harness.report.effects import fill_effects
from harness.report.emphasis import emphasise
from harness.report.frame import Frame, Line
from harness.report.grids import METRIC, Entry, Grid, Labels, Placed
from harness.report.guard import refusal
from harness.report.metrics import Metric, metric
from harness.report.pairing import Pair, pairs

Order = Mapping[str, Mapping[str, int]]


def build(table: Table, frame: Frame) -> list[Grid]:
    """Lay a frame out as a table, one grid for every combination of the axes that it does not name."""
    grids = []
    for suffix, block, lines in blocks_of(table, frame):
        columns = table.columns if len(table.values) == 1 else (*table.columns, METRIC)
        grid = Grid(f"{table.name}{suffix}", table.rows, columns, lines=lines)
        grids.append(grid)
        grid.refusal = refusal(table, lines)
        if grid.refusal:
            continue
        order = _order(table, lines)
        if EFFECT in table.rows:
            fill_effects(grid, table, lines, lambda labels, order=order: _rank(labels, table.columns, order))  # type: ignore[misc]
        else:
            _fill(grid, table, lines, pairs(frame, table.compared, lines), order)
            _add_foreign(grid, table, frame, block, order)
    emphasise(grids, table)
    for grid in grids:
        if not grid.refusal:
            grid.caption = caption(table, grid)
    return grids


def blocks_of(table: Table, frame: Frame) -> Iterator[tuple[str, dict[str, str], list[Line]]]:
    """Yield a table's blocks: the ending of each one's name, the axes and labels that are all of its own, its lines."""
    named = (*table.rows, *table.columns)
    known = [axis for axis in table.blocks if axis in frame.varying]
    others = known + [axis for axis in frame.varying if axis not in (*named, *known) and not _shown(axis, named)]
    if EFFECT in table.rows:
        others = [axis for axis in others if axis != "recipe"]
    blocks: dict[Labels, list[Line]] = defaultdict(list)
    for line in frame.lines:
        blocks[_labels(line, others)].append(line)
    for labels, lines in blocks.items():
        told = (label if axis in frame.axes else f"{axis} {label}" for axis, label in zip(others, labels, strict=True))
        yield "".join(f", {text}" for text in told), dict(zip(others, labels, strict=True)), lines


def _shown(axis: str, named: Sequence[str]) -> bool:
    """Return whether a part's knob is seen in the recipe's label, which the table names."""
    return "." in axis and ("recipe" in named or EFFECT in named)


def _labels(line: Line, axes: Iterable[str]) -> Labels:
    return tuple(line.axis(axis) for axis in axes)


def _order(table: Table, lines: Sequence[Line]) -> dict[str, dict[str, int]]:
    sparse = [line for line in lines if not line.dense]
    order = {
        axis: {label: n for n, label in enumerate(_ordered(axis, sparse or lines))}
        for axis in (*table.rows, *table.columns)
    }
    order[METRIC] = {name: n for n, name in enumerate(table.values)}
    return order


def _ordered(axis: str, lines: Sequence[Line]) -> list[str]:
    """Return an axis's labels: sparsities by size, everything else in the sweep file's order."""
    if axis == "sparsity":
        return list(dict.fromkeys(line.axis(axis) for line in sorted(lines, key=lambda line: line.facts.share)))
    return list(dict.fromkeys(line.axis(axis) for line in lines))


def _rank(labels: Labels, axes: Sequence[str], order: Order) -> tuple[int, ...]:
    return tuple(order[axis].get(label, -1) for axis, label in zip(axes, labels, strict=True))


def _fill(grid: Grid, table: Table, lines: Sequence[Line], paired: Mapping[int, Pair], order: Order) -> None:
    metrics = {name: metric(name) for name in table.values}
    groups: dict[Placed, list[Line]] = defaultdict(list)
    for line in lines:
        for column in _columns(line, table, order):
            groups[_labels(line, table.rows), column].append(line)
    rows = sorted(dict.fromkeys(row for row, _ in groups), key=lambda row: _rank(row, table.rows, order))
    columns = sorted(dict.fromkeys(column for _, column in groups), key=lambda c: _rank(c, table.columns, order))
    for row, column, name in itertools.product(rows, columns, metrics):
        place = (row, (*column, name) if METRIC in grid.columns else column)
        members = groups.get((row, column))
        grid.entries[place] = Entry(planned=False) if members is None else _entry(members, metrics[name], paired)


def _entry(members: Sequence[Line], kind: Metric, paired: Mapping[int, Pair]) -> Entry:
    """Gather one number of a table over seeds."""
    values, found = [], []
    for line in members:
        value = kind.read(line)
        if value is None:
            continue
        values.append(value)
        pair = paired.get(id(line)) if kind.compared else None
        if pair is not None and kind.read(pair.base) is not None:
            found.append(pair)
    used = [pair for pair in found if pair.comparable]
    return Entry(
        tuple(values),
        tuple(_difference(pair, kind) for pair in used),
        tuple(line.reason for line in members if line.measured is None),
        sum(kind.compared and line.at_chance for line in members),
        show=kind.show,
        value=kind.name,
        lines=tuple(members),
        pairs=tuple(found),
        expected=kind.compared and any(id(line) in paired for line in members),
    )


def _difference(pair: Pair, kind: Metric) -> float:
    own, base = kind.read(pair.line), kind.read(pair.base)
    if own is None or base is None:
        raise ValueError("a pair without its numbers")
    return own - base


def _columns(line: Line, table: Table, order: Order) -> list[Labels]:
    """Return the columns a line stands in; a dense network stands under every sparsity."""
    if not line.dense or "sparsity" not in table.columns:
        return [_labels(line, table.columns)]
    choices = [list(order[a]) if a == "sparsity" else [line.axis(a)] for a in table.columns]
    return [tuple(labels) for labels in itertools.product(*choices)]


def _add_foreign(grid: Grid, table: Table, frame: Frame, block: Mapping[str, str], order: Order) -> None:
    """Put foreign numbers where their axes say; an axis that a file leaves open has the grid's only value."""
    only = {axis: found.pop() for axis in frame.axes if len(found := {line.axis(axis) for line in grid.lines}) == 1}
    rows, columns = grid.row_keys, grid.column_keys
    for foreign in frame.foreign:
        here = {**only, **foreign.labels}
        if any(label not in {line.axis(axis) for line in grid.lines} for axis, label in _beside(foreign, table)):
            continue
        outside = {axis: label for axis, label in only.items() if axis not in (*table.rows, *table.columns)} | dict(
            block
        )
        if foreign.metric not in table.values or any(here.get(axis) != label for axis, label in outside.items()):
            continue
        if not all(axis in here for axis in (*table.rows, *table.columns)):
            continue
        row = tuple(here[axis] for axis in table.rows)
        column = tuple(here[axis] for axis in table.columns)
        place = (row, (*column, foreign.metric) if METRIC in grid.columns else column)
        if place[1] not in columns:
            continue
        own, number = row, 1
        while grid.entry(row, place[1]).planned:
            row = (*own[:-1], f"{own[-1]} (foreign{f' {number}' if number > 1 else ''})")
            number += 1
        if row not in rows:
            alike = [n for n, other in enumerate(rows, 1) if other[0] == row[0]]
            rows.insert(max(alike, default=len(rows)), row)
        grid.entries[row, place[1]] = _foreign_entry(foreign)
    grid.entries = {place: grid.entry(*place) for place in itertools.product(rows, columns)}


def _beside(foreign: Foreign, table: Table) -> list[tuple[str, str]]:
    """Return the labels of a foreign number that a table does not show, and that must be those of its cells."""
    return [(axis, label) for axis, label in foreign.labels.items() if axis not in (*table.rows, *table.columns)]


def _foreign_entry(foreign: Foreign) -> Entry:
    return Entry(show=metric(foreign.metric).show, value=foreign.metric, foreign=foreign)
