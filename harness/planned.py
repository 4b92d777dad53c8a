"""What `--plan` prints: a sweep's cells, stages and costs in lines, in plain words, or as JSON."""

from __future__ import annotations

import json
from typing import Any

from harness.clean import orphans
from harness.driver import Driver
from harness.errors import printable
from harness.explain import Explanation, explain
from harness.launching import HERE, texts
from harness.outlook import Outlook, ahead, counted
from harness.planfile import as_saved
from harness.planner import data_folder
from harness.reviewing import remarks
from harness.words import count

MOST = 20_000
"""Characters of a plan's lines that are printed."""


def print_plan(driver: Driver, pilot: bool, budget: str, in_words: bool, as_json: bool) -> None:
    """Print what would run, and what it will cost; with `in_words`, what it is and what a reviewer would miss in it."""
    if driver.sweep.search:
        text = _search(driver, in_words, as_json)
    else:
        text = _plan(driver, pilot, budget, in_words, as_json)
    print(text if as_json else printable(text, MOST))  # noqa: T201 - the result of the command


def _plan(driver: Driver, pilot: bool, budget: str, in_words: bool, as_json: bool) -> str:
    if pilot and not driver.plan.missing():
        driver.pilot()
    survey = driver.frontier.survey()
    outlook = Outlook(driver.frontier, survey, driver.machine())
    dropped = [] if driver.chosen else orphans(driver.store, driver.plan)
    submits = [] if driver.options.via in HERE else texts(driver.slurm(), driver.plan, driver.observer)
    words = None
    if in_words:
        saved, whole = as_saved(driver.plan, driver.sweep), [cell for cell, _ in driver.whole.cells]
        words = explain(driver.sweep, saved, survey, outlook, whole)
    if as_json:
        more = {
            "forecast": outlook.forecast().dump() if outlook.todo else None,
            "within_budget": len(outlook.within(budget)) if budget else None,
            "dropped": dropped,
            "submits": submits,
            "data_missing": driver.plan.missing(),
        }
        return _json({**counted(driver.plan, survey), **more}, words)
    if words:
        return words.text()
    lines = ahead(outlook, survey, budget)
    if dropped:
        shown = "; ".join(dropped[:3]) + (" ..." if len(dropped) > 3 else "")
        lines.append(f"  kept though no longer in the file: {count(len(dropped), 'finished cell')}: {shown}")
    return "\n".join([*lines, *submits])


def _search(driver: Driver, in_words: bool, as_json: bool) -> str:
    from harness.searching import campaign_of, describe_search, search_counted

    campaign = campaign_of(driver.sweep, driver.store, data_folder(driver.sweep, driver.data))
    lines, cells = describe_search(campaign), [tried.study.cell for tried in campaign.tried]
    words = Explanation(driver.sweep.name, [line.strip() for line in lines], remarks=remarks(driver.sweep, cells))
    if as_json:
        return _json(search_counted(campaign), words if in_words else None)
    return words.text() if in_words else "\n".join(lines)


def _json(values: dict[str, Any], words: Explanation | None) -> str:
    return json.dumps({**values, **({"explanation": words.dump()} if words else {})}, indent=1)
