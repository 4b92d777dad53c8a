"""A search under Ray Tune: its trials are dispatched as any stage is, and judged after every epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.display import Display
from harness.errors import UserError
from harness.failure_limit import check_limit, reached
from harness.ray_run import Share, dispatch, fits, start_ray
from harness.ray_trial import run_search_trial
from harness.search_run import FAILED, Campaign, Tried
from harness.store import Store
from harness.study import Trial
from harness.supervisor import Setup

SAID = "said"
"""What a trial's last report holds: how it ended. In the others it is empty."""


def search_with_ray(
    campaign: Campaign, store: Store, setup: Setup, share: Share, most: int | None, cancelled: Path
) -> bool:
    """Run a search's trials; return whether it was stopped. Raises UserError."""
    nodes = start_ray(share)
    worlds = {tried.study.cell.world for tried in campaign.tried}
    fits(max(worlds), share, nodes)
    total = sum(tried.study.samples for tried in campaign.tried)
    ended = sum(len(tried.ended) for tried in campaign.tried)
    display = Display(ended, total, 0, "trials")
    common = {
        "plan": str(campaign.path.absolute()),
        "store": str(store.root.absolute()),
        "cancelled": str(cancelled.absolute()),
        "gpus": share.gpus,
        "setup": {name: value for name, value in asdict(setup).items() if name != "world"},
    }
    campaign.save()
    with display.shown():
        halted = lambda: cancelled.exists() or reached(store, campaign.sweep.name) is not None  # noqa: E731
        searcher = _searcher(campaign, common, display, halted)
        stopped = dispatch(_trial, searcher, share, alike=len(worlds) == 1, most=most)
    if searcher.mistake:
        raise searcher.mistake
    if searcher.trouble:
        display.say(searcher.trouble)
    return stopped


def _trial(config: Mapping[str, Any]) -> None:
    from ray import tune

    said = run_search_trial(config, lambda epoch, value: tune.report({SAID: "", "epoch": epoch, "value": value}))
    tune.report({SAID: said})


def _searcher(campaign: Campaign, common: Mapping[str, Any], display: Display, halted: Callable[[], bool]) -> Any:
    """Return a searcher of Tune's that hands out a campaign's trials and takes in what comes of them.

    Tune calls it with every report before the trial may go on, so that a trial sees at once that it is to stop.
    """
    from ray.tune.search import Searcher

    class Trials(Searcher):
        def __init__(self) -> None:
            super().__init__(metric=SAID, mode="max")
            self.under_way: dict[str, tuple[Tried, Trial]] = {}
            self.trouble = ""
            self.mistake: UserError | None = None

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            try:
                found = None if self.trouble or self.mistake or halted() else campaign.next()
            except UserError as error:  # raised again when Tune is left, which would print a traceback
                found, self.mistake = None, error
            if found is None:
                finished: Any = Searcher.FINISHED  # a word of its own, which its annotation forgets
                return None if self.under_way else finished
            self.under_way[trial_id] = found
            campaign.save()
            return {**common, **campaign.order(*found)}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            if result[SAID]:
                self.trouble = result[SAID] if result[SAID].startswith("trouble") else self.trouble
            else:
                campaign.judge(*self.under_way[trial_id], result["epoch"], result["value"])

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            tried, trial = self.under_way.pop(trial_id)
            campaign.close(tried, trial)
            standing = tried.ended.get(trial.number)
            if standing is None:  # it was cut off, and waits for another try
                display.say(f"trial {trial.number} of {tried.study.label} ended early, and is to go on")
                return
            display.stages(display.done + 1)
            if standing.name == FAILED:
                display.say(f"{standing.name}: trial {trial.number} of {tried.study.label}: {standing.reason}")
                found = check_limit(campaign.plan, campaign.store, campaign.observer)
                if found is not None:
                    display.say(str(found))

        def save(self, checkpoint_path: str) -> None:
            """Save nothing: what is done stands in the store."""

        def restore(self, checkpoint_path: str) -> None:
            """Restore nothing."""

        def __reduce__(self) -> tuple[Any, ...]:
            """Be nothing in Tune's snapshots, which are never read."""
            return object, ()

    return Trials()
