"""A sketch of a report to browse: what it shows, in words of our own, before any server is asked to draw it.

A sketch is plain values, and JSON. `harness wandb report` turns it into a W&B report and workspace views; another
tool could turn it into something else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.report.assemble import Report
from harness.report.figures import COLOURS
from harness.report.frame import Line
from harness.report.grids import Entry, Grid
from harness.track.page import plain

VERSION = 1
MOST_RUNS = 1000
"""Runs of a view: what W&B's workspace shows."""
MOST_FAILURES = 200

Whereabouts = Callable[[str], Mapping[str, str] | None]
"""Key of a stage -> project, run and group of its newest run; None where it has none."""


def sketch(report: Report, where: Whereabouts) -> dict[str, Any]:
    """Return the sketch of a sweep's report: tables, charts by network and data set, failures, a view a table."""
    named = report.plans[0].plan.name
    return {
        "version": VERSION,
        "sweep": report.name,
        "title": f"{report.name}: tables and curves",
        "summary": report.summary,
        "tables": [_table(grid, where) for grid in report.grids],
        "charts": [chart for part in _parts(report) for chart in _charts(part, named, where)],
        "gains": [
            _matrix(figure.title, panel)
            for figure in report.figures
            if figure.kind == "gain"
            for panel in figure.panels
        ],
        "failures": _failures(report.frame.lines, where),
        "views": [view for grid in report.grids if (view := _view(report, grid, where)) is not None],
    }


def _table(grid: Grid, where: Whereabouts) -> dict[str, Any]:
    """Return a table: every number with the runs it is of."""
    return {
        "name": grid.name,
        "refusal": grid.refusal,
        "caption": grid.caption,
        "heads": [*grid.heads, *(", ".join(filter(None, column)) for column in grid.column_keys)],
        "rows": [
            {"labels": list(row), "entries": [_entry(grid.entry(row, column), where) for column in grid.column_keys]}
            for row in grid.row_keys
        ],
    }


def _entry(entry: Entry, where: Whereabouts) -> dict[str, Any]:
    runs = [{"seed": line.axis("seed"), **found} for line in entry.lines if (found := where(line.key)) is not None]
    return {"text": entry.text, "strong": entry.strong, "runs": runs}


def _parts(report: Report) -> list[list[Line]]:
    """Return the cells of every network on every data set."""
    found: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in report.frame.lines:
        found[line.axis("dataset"), line.axis("arch")].append(line)
    return [lines for lines in found.values() if any(line.measured for line in lines)]


def _charts(lines: Sequence[Line], sweep: str, where: Whereabouts) -> list[dict[str, Any]]:
    """Return accuracy against sparsity, accuracy by recipe and learning curves of one network on one data set."""
    dataset, arch = lines[0].axis("dataset"), lines[0].axis("arch")
    there = [found for line in lines if line.measured and (found := where(line.key)) is not None]
    sparse = [line for line in lines if not line.dense]
    if not there or not sparse:
        return []
    axes = {"dataset": dataset, "arch": arch, "role": "cell", "life": "current"}
    common = {"project": there[0]["project"], "sweep": sweep, "place": f"{arch} on {dataset}"}
    recipes = list(dict.fromkeys(line.axis("recipe") for line in sparse))
    top = max(sparse, key=lambda line: line.facts.share).axis("sparsity")
    return [
        {
            **common,
            "kind": "points",
            "title": "Accuracy against sparsity",
            "x": "sparsity_share",
            "y": "accuracy",
            "runs": [{"name": recipe, "where": {**axes, "recipe": recipe}} for recipe in recipes],
            "group": ["mask", "sparsity_share"],
        },
        {
            **common,
            "kind": "bars",
            "title": "Accuracy by recipe, all masks and sparsities",
            "y": "accuracy",
            "runs": [{"name": arch, "where": axes}],
            "group": ["recipe"],
        },
        {
            **common,
            "kind": "lines",
            "title": f"Learning curves by recipe at {top}",
            "x": "epoch",
            "y": "dev_accuracy",
            "runs": [{"name": top, "where": {**axes, "sparsity": top}}],
            "group": ["recipe"],
        },
    ]


def _matrix(title: str, panel: Any) -> dict[str, Any]:
    return {"title": f"{title}: {panel.title}", "rows": panel.rows, "columns": panel.columns, "values": panel.matrix}


def _failures(lines: Sequence[Line], where: Whereabouts) -> list[dict[str, Any]]:
    """Return the cells that will stay without a result, with what keeps them from it."""
    found = [line for line in lines if line.measured is None and line.given_up]
    return [
        {"cell": line.short, "reason": line.reason, "cause": line.cause, "run": where(line.key)}
        for line in found[:MOST_FAILURES]
    ]


def _view(report: Report, grid: Grid, where: Whereabouts) -> dict[str, Any] | None:
    """Return the view of a table: its runs, each named as the table does and coloured by recipe."""
    lines = {id(line): line for entry in grid.entries.values() for line in entry.lines}
    recipes = list(dict.fromkeys(line.axis("recipe") for line in report.frame.lines))
    runs: dict[str, dict[str, str]] = {}
    projects: dict[str, None] = {}
    for line in lines.values():
        found = where(line.key)
        if found is None or len(runs) >= MOST_RUNS:
            continue
        projects[found["project"]] = None
        colour = COLOURS[recipes.index(line.axis("recipe")) % len(COLOURS)]
        runs[found["run"]] = {"name": line.short, "colour": colour, "project": found["project"]}
    if not runs or grid.refusal:
        return None
    axes = list(dict.fromkeys(axis for axis in (*grid.rows, *grid.columns) if axis in report.frame.axes))
    return {
        "name": f"{report.name}: {grid.name}",
        "projects": list(projects),
        "runs": runs,
        "columns": [*axes, "seed"],
        "values": ["accuracy", plain("test@best-dev"), "density"],
    }
