"""A sweep's tables and curves as a W&B report: made from the store, and saved by a child process."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from harness.attempts import attempt_chains
from harness.errors import UserError
from harness.planfile import SavedPlan
from harness.report.assemble import Report, make_report
from harness.report.frame import Line
from harness.report.grids import Entry, Grid
from harness.store import read_json, write_whole
from harness.terminal import command
from harness.tracking.run_record import StageInfo, stage_infos
from harness.tracking.sync import Mirror

ADDRESSES = "reports.json"
"""The file of a project's folder in the store that holds the address of every sweep's report."""

RunLink = Callable[[str], tuple[str, str] | None]
"""Key of a stage -> the address of its newest run and that of the run's group; None where it has no run."""


def save_report(mirror: Mirror, saved: SavedPlan) -> str:
    """Save a sweep's report, over that of an earlier call; return its address. Raises UserError, WandbUnavailable."""
    if not mirror.list_runs():  # and W&B has no project to save it in
        name, sync = saved.plan.name, command("wandb", "sync", saved.plan.name, store=mirror.store.root)
        raise UserError(f"wandb: {mirror.project} has no run of {name} yet; first `{sync}`, then this again")
    content = report_content(make_report(mirror.store, [saved]), run_links(mirror, saved), str(mirror.project))
    file = mirror.project.folder(mirror.store) / ADDRESSES
    known: dict[str, Any] = read_json(file) or {}
    place = {"entity": mirror.project.entity, "project": mirror.project.name, "known": known.get(saved.plan.name, "")}
    (address,) = mirror.process.call("write_report", content=content, **place)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps({**known, saved.plan.name: address}, indent=1).encode())
    return str(address)


def run_links(mirror: Mirror, saved: SavedPlan) -> RunLink:
    """Return what finds the addresses of a stage's newest run and its group."""
    infos: Mapping[str, StageInfo] = stage_infos([saved])

    def link(key: str) -> tuple[str, str] | None:
        info = infos[key]
        chains = attempt_chains(mirror.store.folder(info.stage.kind, key))
        current = [mirror.newest(f"{key}-{chain.first}") for chain in chains if chain.current]
        group = f"{mirror.project}/groups/{quote(info.group, safe='')}"
        return (f"{mirror.project}/runs/{current[-1]}", group) if current else None

    return link


def report_content(report: Report, link: RunLink, project: str) -> dict[str, Any]:
    """Return a report as plain values: its title, and blocks in order, each a heading, Markdown, or a chart."""
    name = report.name
    opening = (
        f"{escaped(report.summary)}.\n\nEvery number is the store's, as `harness report {name}` prints it; "
        f"`harness wandb report {name}` writes this report anew. Numbers lead to their [runs]({project}/table)."
    )
    blocks: list[tuple[str, Any]] = [("text", opening)]
    for grid in report.grids:
        blocks += [("heading", grid.name), ("text", _table(grid, link))]
    by_place: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in report.frame.lines:
        by_place[line.axis("arch"), line.axis("dataset")].append(line)
    for (arch, dataset), lines in by_place.items():
        sparse = [line for line in lines if not line.dense]
        if sparse and any(line.measured for line in lines):
            charts = _charts(sparse, {"arch": arch, "dataset": dataset}, report.plans[0].plan.name)
            blocks += [("heading", f"{arch} on {dataset}"), *(("chart", chart) for chart in charts)]
    return {"title": f"{name}: tables and curves", "summary": report.summary, "blocks": blocks}


def _table(grid: Grid, link: RunLink) -> str:
    """Return a table as Markdown whose numbers lead to their runs."""
    if grid.refusal:
        return f"No table: {escaped(grid.refusal)}."
    columns = grid.column_keys
    heads = [*grid.heads, *(", ".join(filter(None, column)) for column in columns)]
    rows = [
        [*map(escaped, row), *(_entry(grid.entry(row, column), link) for column in columns)] for row in grid.row_keys
    ]
    return f"{_markdown(heads, rows)}\n\n{escaped(grid.caption)}"


def _entry(entry: Entry, link: RunLink) -> str:
    """Return a number, a link to its run or its group of runs, and each of several seeds a link to its run."""
    text = f"**{escaped(entry.text)}**" if entry.strong else escaped(entry.text)
    runs = [(line.axis("seed"), *found) for line in entry.lines if (found := link(line.key))]
    if not runs or not text:
        return text
    groups = {group for _, _, group in runs}
    address = runs[0][1] if len(runs) == 1 or len(groups) > 1 else groups.pop()
    seeds = " ".join(f"[{escaped(seed)}]({run})" for seed, run, _ in runs)
    return f"[{text}]({address})" + (f" seeds {seeds}" if len(runs) > 1 else "")


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(map(escaped, heads)), ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return "".join(f"\\{c}" if c in "\\|`*_<>[]" else c for c in " ".join(str(text).split()))


def _charts(lines: Sequence[Line], place: Mapping[str, str], sweep: str) -> Iterator[dict[str, Any]]:
    """Yield accuracy against sparsity and learning curves of one network on one data set."""
    where = {**place, "role": "cell", "status": "current"}
    top = max(lines, key=lambda line: line.facts.share).axis("sparsity")
    recipes = list(dict.fromkeys(line.axis("recipe") for line in lines))
    points = {recipe: {**where, "recipe": recipe} for recipe in recipes}
    curves = {f"{top} sparse": {**where, "sparsity": top}}
    yield {"title": "Accuracy against sparsity", "sweep": sweep, "runs": points}
    yield {"title": f"Learning curves by recipe at {top}", "sweep": sweep, "runs": curves, "x": "epoch"}


def write_report(content: Mapping[str, Any], entity: str, project: str, known: str) -> str:
    """Save a report's content, over the report at a known address where that is still there; return its address."""
    import wandb_workspaces.reports.v2 as wr

    make = {"heading": wr.H2, "text": wr.MarkdownBlock, "chart": partial(_panel_grid, entity, project)}
    blocks: list[Any] = [wr.TableOfContents(), *(make[kind](value) for kind, value in content["blocks"])]
    report: Any = None
    with contextlib.suppress(TypeError, ValueError):  # what it makes of a report that is no more
        report = wr.Report.from_url(known) if known else None
    report = report or wr.Report(entity=entity, project=project)
    report.title, report.description, report.width = content["title"][:128], content["summary"], "fluid"
    report.blocks = blocks
    report.save()
    return str(report.url)


def _panel_grid(entity: str, project: str, chart: Mapping[str, Any]) -> Any:
    import wandb_workspaces.expr as expr
    import wandb_workspaces.reports.v2 as wr

    whole: Any = {"title": chart["title"], "layout": wr.Layout(x=0, y=0, w=24, h=10)}
    if "x" in chart:
        mean = {"groupby": wr.Config("recipe"), "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
        panel, groups = wr.LinePlot(x=chart["x"], y=["dev_accuracy"], **mean, **whole), []
    else:
        accuracy, share = wr.SummaryMetric("accuracy"), wr.Config("sparsity_share")
        panel, groups = wr.ScatterPlot(x=share, y=accuracy, **whole), ["config.mask", "config.sparsity_share"]
    runsets = []
    for name, where in chart["runs"].items():
        filters: list[Any] = [expr.Config(axis) == value for axis, value in where.items()]
        filters.append(expr.Tags().isin([chart["sweep"]]))
        runsets.append(wr.Runset(entity=entity, project=project, name=name, filters=filters, groupby=groups))
    return wr.PanelGrid(runsets=runsets, panels=[panel], hide_run_sets=len(runsets) == 1)
