"""Figures drawn: one style everywhere, colour-blind safe, readable in grey, as wide as a column of a paper."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.report.figures import COLOURS, Figure, Panel
from harness.report.latex import stems
from harness.report.metrics import count
from harness.store import digest, read_json, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

STYLE = 1
"""Raised whenever the same numbers would be drawn otherwise."""
FORMATS = ("pdf", "svg")
MOST_PROCESSES = 8
COLUMN = 3.35
"""Inches of a column in the usual two-column formats."""
ROW = 1.45
"""Inches that a row of panels is high."""
# Dash and marker tell lines apart where there is no colour.
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RC: Any = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6,
    "legend.frameon": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 2.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.3,
    "grid.color": "0.85",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "harness",
    "font.family": "DejaVu Sans",
    "figure.constrained_layout.use": True,
    "text.parse_math": False,
}


def write_figures(folder: Path, figures: Sequence[Figure]) -> list[Path]:
    """Write every figure as PDF and SVG, those whose numbers did not change not at all; return the files."""
    manifest = folder / "figures.json"
    before = (read_json(manifest) or {}).get("figures")
    before = before if isinstance(before, dict) else {}
    names = stems(figure.name for figure in figures)
    now = {
        name: digest({"style": STYLE, "matplotlib": version("matplotlib"), "figure": figure.dump()})
        for name, figure in zip(names, figures, strict=True)
    }
    paths = [folder / f"{name}.{ending}" for name in now for ending in FORMATS]
    stale = {
        name: figure
        for name, figure in zip(names, figures, strict=True)
        if before.get(name) != now[name] or not all((folder / f"{name}.{ending}").exists() for ending in FORMATS)
    }
    for name, drawn in zip(stale, _rendered(list(stale.values())), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        for ending, data in zip(FORMATS, drawn, strict=True):
            write_whole(folder / f"{name}.{ending}", data)
    for name in before.keys() - now.keys():
        for ending in FORMATS if Path(name).name == name else ():
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
    if now != before:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(manifest, json.dumps({"figures": now}, indent=1).encode())
    return paths


def _rendered(figures: Sequence[Figure]) -> Iterator[list[bytes]]:
    """Yield every figure in all formats, drawn by several processes where there are many."""
    processes = min(MOST_PROCESSES, len(os.sched_getaffinity(0)), len(figures) // 4)
    if processes < 2:
        yield from (render(figure, FORMATS) for figure in figures)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from pool.map(partial(render, formats=FORMATS), figures, chunksize=2)


def render(figure: Figure, formats: Sequence[str]) -> list[bytes]:
    """Return a figure in some formats; the same bytes for the same numbers."""
    import matplotlib as mpl

    mpl.use("agg")
    with mpl.rc_context(RC):
        canvas = draw(figure)
        found = []
        for form in formats:
            buffer = io.BytesIO()
            undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(form, {})
            canvas.savefig(buffer, format=form, metadata=undated, dpi=200)
            found.append(buffer.getvalue())
            canvas.set_layout_engine("none")  # the first format's layout holds for the next
        return found


def draw(figure: Figure) -> Canvas:
    """Draw a figure; to be called inside the style's context."""
    from matplotlib.figure import Figure as Canvas

    panels = figure.panels
    across = 1 if len(panels) == 1 else 2
    down = math.ceil(len(panels) / across)
    labels = list(dict.fromkeys(series.label for panel in panels for series in panel.series))
    if any(panel.level for panel in panels):
        labels.append("dense")
    below = 0.16 * math.ceil(len(labels) / 4) if len(labels) > 1 else 0.0
    high = max([ROW, *(0.35 + 0.2 * len(panel.rows) for panel in panels)])
    canvas = Canvas(figsize=(COLUMN, 0.3 + high * down + below))
    signed = figure.kind == "gain"
    there = [abs(value) for panel in panels for row in panel.matrix for value in row if value is not None]
    scale = max(there, default=1.0) or 1.0 if signed else 1.0
    grid = canvas.subplots(down, across, squeeze=False, sharey=not any(panel.matrix for panel in panels))
    for number, axes in enumerate(axes for row in grid for axes in row):
        if number >= len(panels):
            axes.set_axis_off()
        elif panels[number].matrix:
            _matrix(axes, panels[number], scale, signed)
        else:
            _lines(axes, panels[number], labels)
            for axis in figure.log:
                _logarithmic(axes, axis)
        if number < len(panels) and number + across >= len(panels):
            axes.set_xlabel(figure.x)
    canvas.suptitle(figure.title, fontsize=7)
    canvas.supylabel(figure.y, fontsize=7)
    if len(labels) > 1:
        canvas.legend(*_handles(grid[0][0], panels, labels), loc="outside lower center", ncols=min(4, len(labels)))
    return canvas


def _looks(label: str, labels: Sequence[str]) -> dict[str, Any]:
    n = labels.index(label)
    turn = n + n // len(COLOURS)  # a second round of colours meets other dashes
    return {
        "color": COLOURS[n % len(COLOURS)],
        "linestyle": DASHES[turn % len(DASHES)],
        "marker": MARKERS[turn % len(MARKERS)],
    }


def _lines(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    axes.set_title(panel.title)
    if panel.shade:
        axes.axvspan(*panel.shade, color="0.92", zorder=0)
    for series in panel.series:
        looks = _looks(series.label, labels)
        every = max(1, len(series.x) // 8)
        axes.plot(series.x, _gaps(series.y), markevery=every, **looks)
        if any(a != b for a, b in zip(series.low, series.high, strict=True)):
            axes.fill_between(series.x, _gaps(series.low), _gaps(series.high), color=looks["color"], alpha=0.15, lw=0)
    if panel.level:
        axes.axhline(panel.level[1], color="0.4", linestyle=(0, (4, 2)), linewidth=0.8)
    if panel.ticks:
        crowded = len(panel.ticks) > 6
        axes.set_xticks([x for x, _ in panel.ticks], [label for _, label in panel.ticks], rotation=60 if crowded else 0)


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _handles(axes: Axes, panels: Sequence[Panel], labels: Sequence[str]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    found = {series.label: series for panel in panels for series in panel.series}
    handles = [
        Line2D([], [], **_looks(label, labels))
        if label in found
        else Line2D([], [], color="0.4", linestyle=(0, (4, 2)), linewidth=0.8)
        for label in labels
    ]
    return handles, list(labels)


def _logarithmic(axes: Axes, axis: str) -> None:
    """Give an axis a logarithmic scale with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{axis}scale")("log")
    lines = getattr(axes, f"{axis}axis")
    lines.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    lines.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    lines.set_minor_formatter(NullFormatter())


def _matrix(axes: Axes, panel: Panel, scale: float, signed: bool) -> None:
    """Draw a matrix with its numbers in it, so that it is read without its colours."""
    numbers = [_gaps(row) for row in panel.matrix]
    least = -scale if signed else 0.0
    axes.imshow(numbers, cmap="PuOr" if signed else "Greys", vmin=least, vmax=scale, aspect="auto")
    axes.grid(visible=False)
    axes.set_title(panel.title)
    axes.set_xticks(range(len(panel.columns)), panel.columns, rotation=45 if len(panel.columns) > 4 else 0)
    axes.set_yticks(range(len(panel.rows)), panel.rows)
    for y, row in enumerate(numbers):
        for x, value in enumerate(row):
            dark = abs(value) > 0.6 * scale
            shown = "–" if value != value else f"{value:+.2f}" if signed else f"{value:.2f}"
            axes.text(x, y, shown, ha="center", va="center", fontsize=5.5, color="white" if dark else "black")
