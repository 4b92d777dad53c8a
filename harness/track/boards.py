"""A sketch drawn on a W&B server: one report, updated in place, and one saved workspace view for every table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.track.target import Target


def draw_report(sketch: Mapping[str, Any], target: Target, project: str, known: str) -> str:
    """Save the report, over the one of an earlier call where it is still there; return its address."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.MarkdownBlock(_opening(sketch)), wr.TableOfContents()]
    for table in sketch["tables"]:
        blocks += [wr.H2(table["name"]), wr.MarkdownBlock(table_text(table, target))]
    places = list(dict.fromkeys(chart["place"] for chart in sketch["charts"]))
    for place in places:
        charts = [chart for chart in sketch["charts"] if chart["place"] == place]
        blocks += [wr.H2(place), *(_grid(chart, target.entity) for chart in charts)]
    if sketch["gains"]:
        blocks += [wr.H2("Gain of recipes"), *(wr.MarkdownBlock(_matrix_text(gain)) for gain in sketch["gains"])]
    if sketch["failures"]:
        blocks += [wr.H2("Failures"), wr.MarkdownBlock(_failures_text(sketch["failures"], target))]
    report = _known_report(known)
    if report is None:
        report = wr.Report(entity=target.entity, project=project, title=sketch["title"])
    report.title, report.description, report.blocks = sketch["title"][:128], sketch["summary"], blocks
    report.width = "fluid"
    report.save()
    return str(report.url)


def _known_report(address: str) -> Any:
    """Return the report that was saved before; None where somebody has deleted it."""
    import wandb_workspaces.reports.v2 as wr

    try:
        return wr.Report.from_url(address) if address else None
    except (TypeError, ValueError):  # what it makes of a report that is no more; any other error is told
        return None


def _opening(sketch: Mapping[str, Any]) -> str:
    name = sketch["sweep"]
    return (
        f"{escaped(sketch['summary'])}.\n\nEvery number is the store's, as `harness report {name}` prints it; "
        f"`harness wandb report {name}` writes this report anew. Numbers lead to their runs."
    )


def _grid(chart: Mapping[str, Any], entity: str) -> Any:
    import wandb_workspaces.expr as expr
    import wandb_workspaces.reports.v2 as wr

    runsets = []
    for runs in chart["runs"]:
        filters: list[Any] = [expr.Config(name) == value for name, value in runs["where"].items()]
        runsets.append(
            wr.Runset(
                entity=entity,
                project=chart["project"],
                name=runs["name"],
                filters=[*filters, expr.Tags().isin([chart["sweep"]])],
                groupby=[f"config.{axis}" for axis in chart["group"]] if chart["kind"] == "points" else [],
            )
        )
    return wr.PanelGrid(runsets=runsets, panels=[panel(chart)], hide_run_sets=len(runsets) == 1)


def panel(chart: Mapping[str, Any]) -> Any:
    """Return a chart as a panel."""
    import wandb_workspaces.reports.v2 as wr

    wide = wr.Layout(x=0, y=0, w=24, h=10)
    if chart["kind"] == "points":
        x, y = wr.Config(chart["x"]), wr.SummaryMetric(chart["y"])
        return wr.ScatterPlot(title=chart["title"], x=x, y=y, layout=wide)
    spread: dict[str, Any] = {}
    if chart["group"]:
        how = wr.Config(chart["group"][0])
        spread = {"groupby": how, "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    if chart["kind"] == "bars":
        metrics: list[Any] = [wr.SummaryMetric(chart["y"])]
        return wr.BarPlot(title=chart["title"], metrics=metrics, layout=wide, **spread)
    return wr.LinePlot(title=chart["title"], x=chart["x"], y=[chart["y"]], layout=wide, **spread)


def table_text(table: Mapping[str, Any], target: Target) -> str:
    """Return a table as Markdown whose numbers lead to their runs."""
    if table["refusal"]:
        return f"No table: {escaped(table['refusal'])}."
    rows = [
        [*map(escaped, row["labels"]), *(_entry_text(entry, target) for entry in row["entries"])]
        for row in table["rows"]
    ]
    return f"{_markdown(table['heads'], rows)}\n\n{escaped(table['caption'])}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(map(escaped, heads)), ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _entry_text(entry: Mapping[str, Any], target: Target) -> str:
    """Return a number, a link to its group of runs, and each seed a link to its run."""
    text, runs = escaped(entry["text"]), entry["runs"]
    if entry["strong"]:
        text = f"**{text}**"
    if not runs or not text:
        return text
    groups = {(run["project"], run["group"]) for run in runs}
    address = run_url(target, runs[0])
    if len(runs) > 1 and len(groups) == 1:
        address = target.url(runs[0]["project"], f"/groups/{_quoted(runs[0]['group'])}")
    seeds = " ".join(f"[{escaped(run['seed'])}]({run_url(target, run)})" for run in runs)
    return f"[{text}]({address})" + (f" seeds {seeds}" if len(runs) > 1 else "")


def run_url(target: Target, run: Mapping[str, str]) -> str:
    """Return the address of a run."""
    return target.url(run["project"], f"/runs/{run['run']}")


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def _matrix_text(gain: Mapping[str, Any]) -> str:
    rows = [
        [escaped(name), *("–" if value is None else f"{value:+.2f}" for value in values)]
        for name, values in zip(gain["rows"], gain["values"], strict=True)
    ]
    return f"**{escaped(gain['title'])}**\n\n{_markdown(['mask', *gain['columns']], rows)}"


def _failures_text(failures: Sequence[Mapping[str, Any]], target: Target) -> str:
    rows = []
    for failure in failures:
        name = escaped(failure["cell"])
        linked = f"[{name}]({run_url(target, failure['run'])})" if failure["run"] else name
        rows.append([linked, escaped(failure["reason"]), escaped(failure["cause"])])
    return _markdown(["cell", "what happened", "cause"], rows)


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return "".join(f"\\{c}" if c in "\\|`*_<>[]" else c for c in " ".join(str(text).split()))


def draw_view(view: Mapping[str, Any], target: Target, project: str, known: str) -> str:
    """Save a table's view of one project, over that of an earlier call where it is still there; return its address."""
    import wandb_workspaces.expr as expr
    import wandb_workspaces.workspaces as ws

    runs = {run: said for run, said in view["runs"].items() if said["project"] == project}
    space = _known_view(known)
    if space is None:
        space = ws.Workspace(entity=target.entity, project=project, name=view["name"])
    space.name = "".join(c for c in view["name"] if c.isprintable())[:100]
    space.sections = [ws.Section(name="Results", panels=_view_panels(view), is_open=True, pinned=True)]
    space.runset_settings = ws.RunsetSettings(
        filters=[expr.Metric("ID").isin(list(runs))],
        order=[expr.Ordering(expr.Summary("accuracy"), ascending=False)],
        run_settings={run: ws.RunSettings(color=said["colour"]) for run, said in runs.items()},
        pinned_columns=[
            "run:displayName",
            *(f"config:{axis}.value" for axis in view["columns"]),
            *(f"summary:{name}" for name in view["values"]),
        ],
    )
    space.save()
    return str(space.url)


def _known_view(address: str) -> Any:
    """Return the view that was saved before; None where somebody has deleted it."""
    import wandb_workspaces.workspaces as ws

    try:
        return ws.Workspace.from_url(address) if address else None
    except (TypeError, ValueError):  # what it makes of a view that is no more; any other error is told
        return None


def _view_panels(view: Mapping[str, Any]) -> list[Any]:
    lines = {"kind": "lines", "title": "Dev accuracy", "x": "epoch", "y": "dev_accuracy", "group": []}
    bars = {"kind": "bars", "title": "Accuracy", "y": "accuracy", "group": ["recipe"]}
    return [panel(lines), panel(bars)]
