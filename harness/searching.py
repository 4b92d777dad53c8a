"""A sweep file with `search:`: its plan in words, its trials run, and the best settings printed and written."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from ruamel.yaml import YAML

from harness.errors import UserError
from harness.failure_limit import reached, set_limit
from harness.failures import halted
from harness.planner import Planner
from harness.ray_run import Share
from harness.ray_search import search_with_ray
from harness.rounds import CANCELLED
from harness.search_run import Campaign, Tried
from harness.spec import Sweep
from harness.store import Store, write_whole
from harness.study import DONE, STOPPED, Standing, make_studies
from harness.supervisor import Setup
from harness.terminal import note, show_tables
from harness.tuned import Best, TunedFile
from harness.words import count

FILE = "tuned.yaml"


def campaign_of(sweep: Sweep, store: Store, data: Path) -> Campaign:
    """Return a search as it stands in the store."""
    planner = Planner(sweep, store, data)
    return Campaign(sweep, store, make_studies(sweep, store, planner), planner)


def describe_search(campaign: Campaign) -> list[str]:
    """Say what a search would try, and how much of it is done."""
    form = campaign.form
    lines = [f"{campaign.sweep.name}: {count(len(campaign.tried), 'place')} to tune by {form.metric} on the dev split"]
    for tried in campaign.tried:
        space = "; ".join(map(str, tried.study.space)) or "nothing to tune"
        trials = f"{count(tried.study.samples, 'trial')} of {tried.study.cell.protocol.epochs} epochs"
        begun = f", {len(tried.ended)} ended" if tried.ended else ""
        lines.append(f"  {tried.study.label}: {trials}{begun}: {space}")
    if form.asha:
        lines.append(
            f"  who is behind after {form.asha.grace}, {form.asha.grace * form.asha.reduction:g}, ... epochs is stopped"
        )
    return lines


def search_counted(campaign: Campaign) -> dict[str, Any]:
    """Return what a search would try, and how much of it is done, as plain values."""
    places = [
        {
            "place": tried.study.label,
            "trials": tried.study.samples,
            "ended": len(tried.ended),
            "epochs": tried.study.cell.protocol.epochs,
            "space": [str(dimension) for dimension in tried.study.space],
        }
        for tried in campaign.tried
    ]
    return {"sweep": campaign.sweep.name, "metric": campaign.form.metric, "places": places}


def run_search(
    sweep: Sweep, store: Store, data: Path, setup: Setup, share: Share, most: int | None, stop_after: int | None
) -> int:
    """Run what a search lacks, print what was found and write it to a file; return the exit code. Raises UserError."""
    mark = store.sweep(sweep.name) / CANCELLED
    mark.unlink(missing_ok=True)
    campaign = campaign_of(sweep, store, data)
    campaign.catch_up()
    set_limit(campaign.plan, store, campaign.observer, stop_after, {})
    stopped = False
    if campaign.unfinished:
        try:
            stopped = search_with_ray(campaign, store, setup, share, most, mark)
        finally:
            campaign.path.unlink(missing_ok=True)
        campaign = campaign_of(sweep, store, data)  # with what other calls have found meanwhile
    best = {id(tried): tried.best(campaign.form.best) for tried in campaign.tried}
    show_tables(_table(campaign, best))
    if any(best.values()):
        path = _write(campaign, best)
        typer.echo(f"the best settings are in {path}; a sweep file uses them by `tuned: {path.name}`", err=True)
    if stopped:
        typer.echo("stopped; the same command goes on from here", err=True)
        return 130
    if found := reached(store, sweep.name):
        for line in halted(found, campaign.plan, store):
            note(line)
    return 0 if all(best.values()) and not campaign.unfinished else 1


def _table(campaign: Campaign, best: dict[int, tuple[int, Standing] | None]) -> Table:
    table = Table(title=f"{campaign.sweep.name}: {campaign.form.metric}, on the dev split", title_justify="left")
    for head in ("place", "trials", "stopped", "failed", "best", "settings"):
        number = head in ("trials", "stopped", "failed", "best")
        table.add_column(head, justify="right" if number else "left", overflow="fold")
    for tried in campaign.tried:
        ends = Counter(standing.name for standing in tried.ended.values())
        found = best[id(tried)]
        settings = tried.settings(found[0]) if found else {}
        table.add_row(
            tried.study.label,
            f"{tried.trials.spent()}",
            f"{ends[STOPPED]}",
            f"{len(tried.ended) - ends[STOPPED] - ends[DONE]}",
            f"{found[1].value:.4g}" if found else "–",
            "\n".join(f"{axis}={value}" for axis, value in settings.items()) or "as they are",
        )
    return table


def _write(campaign: Campaign, best: dict[int, tuple[int, Standing] | None]) -> Path:
    """Write the best settings for other sweeps to use; return the file."""
    form, sweep = campaign.form, campaign.sweep
    entries = [_entry(tried, found) for tried in campaign.tried if (found := best[id(tried)])]
    body = TunedFile(
        search=sweep.name,
        metric=form.metric,
        mode=form.best,
        searcher=form.searcher,
        scheduler="asha" if form.asha else "none",
        seed=form.seed,
        space={axis: str(value) for axis, value in form.space.items()},
        tuned=entries,
    )
    text = io.StringIO()
    text.write("# Written by a search, which never looked at the test images. Use it by `tuned:` in a sweep file.\n")
    YAML().dump(body.model_dump(mode="json"), text)
    path = Path(sweep.document.file).parent / form.write if form.write else campaign.folder / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.getvalue().encode())
    except OSError as error:
        raise UserError(
            f"search.write: {path}: {error.strerror}; name another file, the trials are in the store"
        ) from None
    return path


def _entry(tried: Tried, found: tuple[int, Standing]) -> Best:
    ends = Counter(standing.name for standing in tried.ended.values())
    return Best(
        at=dict(tried.study.at),
        set=tried.settings(found[0]),
        trials=tried.trials.spent(),
        stopped=ends[STOPPED],
        failed=len(tried.ended) - ends[STOPPED] - ends[DONE],
        value=found[1].value or 0.0,
        trial=found[0],
    )
