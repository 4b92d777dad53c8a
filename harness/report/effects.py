"""What each part of a recipe does, and each pair of parts: contrasts over all combinations of the parts."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from harness.declared import EFFECT, Table
from harness.report.frame import Line
from harness.report.grids import ALL, Entry, Grid, Labels
from harness.report.metrics import metric
from harness.report.pairing import MASKS, Pair, lacking
from harness.report.stats import effect
from tost.catalog import PARTS

MOST_PARTS = 6
Recipe = frozenset[str]
Units = Mapping[tuple[str, str], Mapping[Recipe, Line]]
"""(cell, seed) -> the result of every combination of parts."""


def fill_effects(grid: Grid, table: Table, lines: Sequence[Line], rank: Callable[[Labels], object]) -> None:
    """Fill a grid with the main effects of parts and the interactions of pairs, per column and over all of them.

    The main effect of a part is the mean over all combinations of the other parts of the difference that it makes; the
    interaction of two is half the difference of one's effect with and without the other (Box, Hunter and Hunter, 1978).
    Where the grid has not every combination, effects are not separable: then it says what is missing, and is empty.
    """
    sparse = [line for line in lines if not line.dense]
    parts = sorted({part for line in sparse for part in line.facts.parts}, key=_rank_of_part)
    groups: dict[tuple[Labels, Labels], list[Line]] = defaultdict(list)
    others = [axis for axis in table.rows if axis != EFFECT]
    for line in sparse:
        groups[tuple(line.axis(a) for a in others), tuple(line.axis(a) for a in table.columns)].append(line)
    grid.refusal = _refusal(parts, groups)
    if grid.refusal:
        return
    columns = sorted(dict.fromkeys(column for _, column in groups), key=rank)  # type: ignore[arg-type]
    wanted = [frozenset(s) for size in (1, 2) for s in itertools.combinations(parts, size)]
    kind = metric(table.values[0])
    for labels, subset in itertools.product(dict.fromkeys(labels for labels, _ in groups), wanted):
        name = " × ".join(part for part in parts if part in subset)
        row = tuple(name if axis == EFFECT else labels[others.index(axis)] for axis in table.rows)
        units = {column: _units(groups.get((labels, column), []), ", ".join(column)) for column in columns}
        for column in columns:
            grid.entries[row, column] = _entry(units[column], subset, kind.name, len(parts))
        if len(columns) > 1:
            every = {place: found for some in units.values() for place, found in some.items()}
            whole = tuple(ALL if n == 0 else "" for n in range(len(table.columns)))
            grid.entries[row, whole] = _entry(every, subset, kind.name, len(parts))


def _rank_of_part(part: str) -> tuple[int, str]:
    return (list(PARTS).index(part) if part in PARTS else len(PARTS), part)


def _refusal(parts: Sequence[str], groups: Mapping[tuple[Labels, Labels], Sequence[Line]]) -> str:
    if not parts:
        return "no recipe of the grid has a part whose effect could be told"
    if len(parts) > MOST_PARTS:
        return f"{len(parts)} parts have {2 ** len(parts)} combinations; at most {MOST_PARTS} parts are told apart"
    every = [frozenset(s) for size in range(len(parts) + 1) for s in itertools.combinations(parts, size)]
    for (_, column), lines in groups.items():
        by_parts: dict[Recipe, set[str]] = defaultdict(set)
        for line in lines:
            by_parts[frozenset(line.facts.parts)].add(line.axis("recipe"))
        if missing := [wanted for wanted in every if wanted not in by_parts]:
            shown = ", ".join("+".join(p for p in parts if p in recipe) or "default" for recipe in missing[:4])
            more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            return (
                f"effects and interactions need all {len(every)} combinations of {', '.join(parts)}; "
                f"{', '.join(column)} lacks {shown}{more}. Write recipe: subsets({'+'.join(parts)})"
            )
        if twice := [sorted(labels) for labels in by_parts.values() if len(labels) > 1]:
            return f"{' and '.join(twice[0])} are of the same parts with other knobs; name the knob in its blocks"
    return ""


def _units(lines: Sequence[Line], cell: str) -> Units:
    """Return by seed the results of every combination, of one cell."""
    found: dict[tuple[str, str], dict[Recipe, Line]] = defaultdict(dict)
    for line in lines:
        found[cell, line.axis("seed")][frozenset(line.facts.parts)] = line
    return found


def _entry(units: Units, subset: Recipe, name: str, parts: int) -> Entry:
    """Return an effect with what it is of; a seed for which a combination has no result is left out, and counted."""
    kind = metric(name)
    terms = []
    holes: list[str] = []
    shared: list[Pair] = []
    for (cell, seed), combinations in units.items():
        lacks = [line for line in combinations.values() if kind.read(line) is None]
        plain = combinations[frozenset()]
        apart = [line for line in combinations.values() if lacking(line, plain) not in ("", MASKS)]
        if lacks or apart:
            holes.append(lacks[0].reason if lacks else "not paired")
            continue
        shared += [Pair(line, plain, lacking(line, plain)) for line in combinations.values() if line is not plain]
        weighted = tuple((line, _sign(recipe, subset) / 2 ** (parts - 1)) for recipe, line in combinations.items())
        terms.append((cell, seed, weighted))
    lines = tuple(line for combinations in units.values() for line in combinations.values())
    values = {
        (cell, seed): math.fsum(weight * float(kind.read(line) or 0.0) for line, weight in weighted)
        for cell, seed, weighted in terms
    }
    found = effect(values) if values else None
    return Entry(holes=tuple(holes), value=name, lines=lines, pairs=tuple(shared), effect=found, terms=tuple(terms))


def _sign(recipe: Recipe, subset: Recipe) -> int:
    return math.prod(1 if part in recipe else -1 for part in subset)
