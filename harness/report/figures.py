"""What figures show, as plain numbers: from the lines of a frame to panels of series and matrices."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from harness.report.frame import Frame, Line
from harness.report.guard import mixed
from harness.report.overlaps import Overlaps
from harness.report.pairing import pairs

SHOWN = ("dataset", "arch", "mask", "sparsity", "recipe")
"""Axes that figures tell apart; any other makes figures of its own."""
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's palette (2008) without its yellow: told apart by everybody."""
MOST_PANELS = 6
MOST_SERIES = 16


@dataclass(frozen=True)
class Series:
    """A line: points in order, and a band around them where there is one."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes: series, or a matrix."""

    title: str
    series: Sequence[Series] = ()
    ticks: Sequence[tuple[float, str]] = ()
    level: tuple[str, float] | None = None
    """A dashed line across: the dense network."""
    shade: tuple[float, float] | None = None
    """From where to where the background is shaded: the ghost window."""
    matrix: Sequence[Sequence[float | None]] = ()
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A figure before it is drawn."""

    name: str
    kind: str
    title: str
    x: str
    y: str
    panels: Sequence[Panel] = field(default_factory=list)
    log: str = ""
    """Axes with a logarithmic scale: x, y, or both."""

    def dump(self) -> dict[str, Any]:
        """Return the figure as plain values."""
        return asdict(self)


def figures_of(frame: Frame, wanted: Sequence[str], baseline: str, overlaps: Overlaps) -> list[Figure]:
    """Return the figures of every network on every data set, and of all else that varies and that they do not show.

    What a table would refuse to mix is not drawn.
    """
    others = [axis for axis in frame.varying if axis not in (*SHOWN, "ticket_seed") and "." not in axis]
    blocks: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in frame.lines:
        if line.measured:
            blocks[tuple(line.axis(axis) for axis in ("arch", "dataset", *others))].append(line)
    found = []
    for (arch, dataset, *rest), lines in blocks.items():
        where = ", ".join([f"{arch} on {dataset}", *rest])
        for kind in wanted if not mixed(lines) else ():
            figure = _make(kind, frame, lines, baseline, overlaps)
            if any(panel.series or panel.matrix for panel in figure.panels):
                found.append(replace(figure, name=f"{kind}, {where}", title=f"{figure.title}: {where}"))
    return found


def _make(kind: str, frame: Frame, lines: Sequence[Line], baseline: str, overlaps: Overlaps) -> Figure:
    if kind == "gain":
        return _gain(frame, lines, baseline)
    if kind == "overlap":
        return _overlap(lines, overlaps)
    makers: Mapping[str, Callable[[Sequence[Line]], Figure]] = {
        "accuracy": _accuracy,
        "curves": _curves,
        "density": _density,
        "near-zero": _near_zero,
        "cost": _cost,
    }
    return makers[kind](lines)


def _by(lines: Iterable[Line], axis: str) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        found[line.axis(axis)].append(line)
    return dict(found)


def _sparse(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if not line.dense and line.facts.share > 0]


def _shares(lines: Iterable[Line]) -> dict[str, float]:
    """Return the sparsities' labels, rising, with their shares."""
    return dict(sorted({line.axis("sparsity"): line.facts.share for line in lines}.items(), key=lambda pair: pair[1]))


def _spread(label: str, places: Sequence[tuple[float, Sequence[float]]]) -> Series:
    """Return a line of means with a band of one standard deviation either way."""
    x, y, low, high = [], [], [], []
    for place, values in places:
        mean = statistics.fmean(values)
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        x.append(place)
        y.append(mean)
        low.append(mean - std)
        high.append(mean + std)
    return Series(label, x, y, low, high)


def _values(lines: Iterable[Line]) -> list[float]:
    return [line.value for line in lines if line.value is not None]


def _accuracy(lines: Sequence[Line]) -> Figure:
    """Accuracy against sparsity: a panel a mask, a line a recipe, the dense network's mean across."""
    places = {label: float(n) for n, label in enumerate(_shares(_sparse(lines)))}
    dense = _values(line for line in lines if line.dense and not line.facts.parts)
    panels = []
    for mask, members in _by(_sparse(lines), "mask").items():
        series = []
        for recipe, some in _by(members, "recipe").items():
            points = [(places[s], _values(at)) for s, at in _by(some, "sparsity").items() if _values(at)]
            series.append(_spread(recipe, sorted(points)))
        level = ("dense", statistics.fmean(dense)) if dense else None
        panels.append(Panel(mask, series[:MOST_SERIES], [(x, s) for s, x in places.items()], level))
    return Figure("", "accuracy", "Accuracy against sparsity", "sparsity", "test accuracy (%)", panels[:MOST_PANELS])


def _gain(frame: Frame, lines: Sequence[Line], baseline: str) -> Figure:
    """Mean paired difference to the baseline: a panel a recipe, masks against sparsities."""
    found = pairs(frame, {"recipe": baseline}, lines)
    sparsities = list(_shares(_sparse(lines)))
    panels = []
    for recipe, members in _by(_sparse(lines), "recipe").items():
        masks = _by(members, "mask")
        matrix = []
        for some in masks.values():
            at = _by(some, "sparsity")
            matrix.append(
                [_mean_difference([found[id(x)] for x in at.get(s, []) if id(x) in found]) for s in sparsities]
            )
        if any(value is not None for row in matrix for value in row):
            panels.append(Panel(recipe, matrix=matrix, rows=list(masks), columns=sparsities))
    return Figure("", "gain", f"Gain over {baseline} (points)", "sparsity", "", panels[:MOST_PANELS])


def _mean_difference(found: Sequence[Any]) -> float | None:
    values = [
        pair.line.value - pair.base.value
        for pair in found
        if pair.comparable and pair.line.value is not None and pair.base.value is not None
    ]
    return statistics.fmean(values) if values else None


def _sparsest(lines: Sequence[Line]) -> list[Line]:
    """Return the lines of the highest sparsity."""
    shares = _shares(_sparse(lines))
    return [line for line in _sparse(lines) if shares and line.axis("sparsity") == list(shares)[-1]]


def _curves(lines: Sequence[Line]) -> Figure:
    """Dev accuracy by epoch at the highest sparsity: a panel a mask, a line a recipe; shaded while ghosts live."""
    panels = []
    chosen = _sparsest(lines) or [line for line in lines if line.dense]
    for mask, members in _by(chosen, "mask").items():
        series, last = [], 0
        for recipe, some in _by(members, "recipe").items():
            curves = [line.measured.curves for line in some if line.measured and line.measured.curves]
            rows = [curve.get("dev_accuracy") or curve.get("train_accuracy") or () for curve in curves]
            columns = [[v for v in column if v is not None] for column in zip(*rows, strict=False)]
            points = [(float(epoch), values) for epoch, values in enumerate(columns, 1) if values]
            if points:
                series.append(_spread(recipe, points))
            last = max([last, *(n for c in curves for n, ghost in enumerate(c.get("ghosts", ()), 1) if ghost)])
        panels.append(Panel(mask, series[:MOST_SERIES], shade=(0.0, float(last)) if last else None))
    where = f" at {chosen[0].axis('sparsity')}" if chosen and not chosen[0].dense else ""
    return Figure("", "curves", f"Learning curves{where}", "epoch", "dev accuracy (%)", panels[:MOST_PANELS])


def _density(lines: Sequence[Line]) -> Figure:
    """Share of weights kept in every layer: a panel a sparsity, a line a mask."""
    panels = []
    members = _by(_sparse(lines), "sparsity")
    for sparsity in _shares(_sparse(lines)):
        series = []
        for mask, some in _by(members[sparsity], "mask").items():
            rows = [_kept(line) for line in some]
            if columns := list(zip(*rows, strict=False)):
                series.append(Series(mask, list(range(1, len(columns) + 1)), [statistics.fmean(c) for c in columns]))
        panels.append(Panel(sparsity, series[:MOST_SERIES]))
    return Figure("", "density", "Density of every layer", "layer", "weights kept (%)", panels[-MOST_PANELS:], "y")


def _kept(line: Line) -> list[float]:
    layers: Mapping[str, Sequence[int]] = line.metrics.get("layers") or {}
    return [100 * kept / size for size, kept, _ in layers.values() if size]


def _overlap(lines: Sequence[Line], overlaps: Overlaps) -> Figure:
    """Intersection over union of masks of the same seed: a panel a sparsity, masks against masks."""
    panels = []
    members = _by(_sparse(lines), "sparsity")
    for sparsity in list(_shares(_sparse(lines)))[-MOST_PANELS:]:
        stages: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
        for line in members[sparsity]:
            key = line.identity.mask_key
            if key and line.measured and key in line.measured.parents:
                stages[line.axis("mask")][line.axis("seed")] = (key, line.measured.parents[key])
        names = list(stages)
        matrix = [[overlaps.mean(stages[a], stages[b]) for b in names] for a in names]
        if len(names) > 1 and any(value is not None for row in matrix for value in row):
            panels.append(Panel(sparsity, matrix=matrix, rows=names, columns=names))
    return Figure("", "overlap", "Intersection over union of masks", "", "", panels)


def _near_zero(lines: Sequence[Line]) -> Figure:
    """Share of activations near zero, site by site, at the highest sparsity: a panel a mask, a line a recipe."""
    panels = []
    chosen = _sparsest(lines) or [line for line in lines if line.dense]
    for mask, members in _by(chosen, "mask").items():
        series = []
        for recipe, some in _by(members, "recipe").items():
            rows = [[100 * site[0] for site in (line.metrics.get("activations") or {}).values()] for line in some]
            columns = list(zip(*[row for row in rows if row], strict=False))
            if columns:
                points = [(float(n), list(column)) for n, column in enumerate(columns, 1)]
                series.append(_spread(recipe, points))
        panels.append(Panel(mask, series[:MOST_SERIES]))
    where = f" at {chosen[0].axis('sparsity')}" if chosen and not chosen[0].dense else ""
    title = f"Activations near zero{where}"
    return Figure("", "near-zero", title, "activation", "near zero (%)", panels[:MOST_PANELS])


def _cost(lines: Sequence[Line]) -> Figure:
    """Accuracy against all operations of training, those of ghosts and rescaling among them."""
    panels = []
    for mask, members in _by(_sparse(lines), "mask").items():
        series = []
        for recipe, some in _by(members, "recipe").items():
            points = list(_spent(some))
            if points:
                series.append(_spread(recipe, sorted(points)))
        panels.append(Panel(mask, series[:MOST_SERIES]))
    title = "Accuracy against the cost of training"
    return Figure("", "cost", title, "operations of training", "test accuracy (%)", panels[:MOST_PANELS], "x")


def _spent(lines: Sequence[Line]) -> Iterator[tuple[float, list[float]]]:
    for some in _by(lines, "sparsity").values():
        metrics = [line.metrics for line in some if line.value is not None]
        spent = [
            float(m.get("training_flops") or 0) + (m.get("ghost_operations") or 0) + (m.get("rescale_operations") or 0)
            for m in metrics
        ]
        if spent and min(spent) > 0:
            yield statistics.fmean(spent), _values(some)
