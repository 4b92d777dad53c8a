"""What `--plan` prints: a sweep's cells, stages and costs in lines, in plain words, or as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.catalog import HERE
from harness.clean import orphans
from harness.driver import Driver
from harness.explain import Explanation, explain
from harness.launching import texts
from harness.outlook import Outlook, ahead, counted
from harness.planfile import as_saved
from harness.planner import data_folder
from harness.probe import reaches
from harness.report.remarks import reach
from harness.reviewing import remarks
from harness.terminal import tell, tell_json
from harness.words import count


def print_plan(driver: Driver, pilot: bool, budget: str, in_words: bool, as_json: bool) -> None:
    """Print what would run, and what it will cost; with `in_words`, what it is and what a reviewer would miss in it."""
    if driver.sweep.search:
        _search(driver, in_words, as_json)
        return
    if pilot and not driver.plan.missing():
        driver.pilot()
    survey = driver.frontier.survey()
    outlook = Outlook(driver.frontier, survey, driver.workers_machine())
    dropped = [] if driver.chosen else orphans(driver.store, driver.plan)
    submits = [] if driver.options.via in HERE else texts(driver.slurm(), driver.plan, driver.observer)
    reached = reaches([cell for cell, _ in driver.plan.cells], driver.sweep.names, driver.store.root / "cache")
    beyond = [said for label, one in reached.items() if (said := reach(label, **vars(one)))]
    words = None
    if in_words:
        saved, whole = as_saved(driver.plan, driver.sweep), [cell for cell, _ in driver.whole.cells]
        words = explain(driver.sweep, saved, survey, outlook, whole, beyond)
    if as_json:
        more = {
            "forecast": outlook.forecast().dump() if outlook.todo else None,
            "within_budget": len(outlook.within(budget)) if budget else None,
            "dropped": dropped,
            "submits": submits,
            "data_missing": driver.plan.missing(),
            "reach": {label: vars(one) for label, one in reached.items()},
            "masks_refused": {one.label: one.said for one in driver.imports if one.said},
            "masks_by_order": {one.label: one.pairs for one in driver.imports if one.pairs},
        }
        _tell_json({**counted(driver.plan, survey), **more}, words)
        return
    if words:
        tell(words.text())
        return
    lines = ahead(outlook, survey, budget)
    if dropped:
        shown = "; ".join(dropped[:3]) + (" ..." if len(dropped) > 3 else "")
        lines.append(f"  kept though no longer in the file: {count(len(dropped), 'finished cell')}: {shown}")
    lines += [f"  {one.label} by order: {_paired(one.pairs)}" for one in driver.imports if one.pairs]
    tell("\n".join([*lines, *(f"  {said}" for said in beyond), *submits]))


def _paired(pairs: Mapping[str, str]) -> str:
    """Return the first masks of a file and the last, with the weights that they are for."""
    shown = [f"{theirs} -> {name}" for name, theirs in pairs.items()]
    if len(shown) > 4:
        shown = [*shown[:3], "...", shown[-1]]
    return f"{', '.join(shown)} ({len(pairs)}, all with --json)"


def _search(driver: Driver, in_words: bool, as_json: bool) -> None:
    from harness.searching import campaign_of, describe_search, search_counted

    campaign = campaign_of(driver.sweep, driver.store, data_folder(driver.sweep, driver.data))
    lines, cells = describe_search(campaign), [tried.study.cell for tried in campaign.tried]
    words = Explanation(driver.sweep.name, [line.strip() for line in lines], remarks=remarks(driver.sweep, cells))
    if as_json:
        _tell_json(search_counted(campaign), words if in_words else None)
    else:
        tell(words.text() if in_words else "\n".join(lines))


def _tell_json(values: dict[str, Any], words: Explanation | None) -> None:
    tell_json({**values, **({"explanation": words.dump()} if words else {})})
