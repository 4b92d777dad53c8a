"""Which numbers of a table stand out: the best of those compared, or those that differ from the baseline for sure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from harness.declared import Table
from harness.report.grids import Entry, Grid, Labels, Placed
from harness.report.metrics import metric
from harness.report.stats import holm, paired_p

ALPHA = 0.05


def emphasise(grids: Sequence[Grid], table: Table) -> None:
    """Set in bold what the table asks for; nothing that has fewer seeds because others diverged."""
    if table.emphasis == "best":
        for grid in grids:
            _best(grid, table)
    elif table.emphasis == "significant":
        for family in [grids] if table.family == "table" else [[grid] for grid in grids]:
            _significant(family)


def _best(grid: Grid, table: Table) -> None:
    """The highest mean of the entries that differ in nothing but what is compared; all that print alike with it."""
    groups: dict[tuple[Labels, ...], list[tuple[Placed, Entry]]] = defaultdict(list)
    for (row, column), entry in grid.entries.items():
        if len(entry.values) > 1 and metric(entry.value).compared:
            rest = _without(row, grid.rows, table), _without(column, grid.columns, table)
            groups[rest].append(((row, column), entry))
    for members in groups.values():
        top = max(statistics.fmean(entry.values) for _, entry in members)
        for place, entry in members if len(members) > 1 else ():
            if entry.show(statistics.fmean(entry.values)) == entry.show(top) and not _diverged(entry):
                grid.entries[place] = entry.in_bold()


def _without(labels: Labels, axes: Labels, table: Table) -> Labels:
    return tuple(label for label, axis in zip(labels, axes, strict=True) if axis not in table.compared)


def _significant(grids: Sequence[Grid]) -> None:
    """Those whose paired t test says so, adjusted for all that were to be compared, holes among them (Holm, 1979)."""
    asked: dict[tuple[str, ...], list[tuple[Grid, Placed]]] = defaultdict(list)
    tests: dict[tuple[str, ...], float] = {}
    for grid in grids:
        for place, entry in grid.entries.items():
            if entry.expected:  # a dense network stands under every sparsity, and is one test
                name = (entry.value, *(line.key for line in entry.lines))
                asked[name].append((grid, place))
                tests[name] = paired_p(entry.differences)
    for name, p in zip(tests, holm(list(tests.values())), strict=True):
        for grid, place in asked[name]:
            entry = grid.entries[place]
            grid.entries[place] = replace(entry, p=p, strong=p < ALPHA and not _diverged(entry))


def _diverged(entry: Entry) -> bool:
    return any("diverged" in reason for reason in entry.holes)
