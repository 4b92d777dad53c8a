"""A search under Ray Tune: its trials are dispatched as stages are, and judged after every epoch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from harness.display import Display
from harness.plan import Plan
from harness.ray_run import Share, common_order, dispatch, start_ray
from harness.search_run import Campaign, Tried
from harness.store import Store
from harness.study import FAILED, Trial
from harness.supervisor import Setup

Task = tuple[Tried, Trial]


class SearchTrials:
    """A campaign's trials, as a dispatcher hands them out."""

    def __init__(self, campaign: Campaign) -> None:
        self.campaign, self.store, self.observer = campaign, campaign.store, campaign.observer
        total = sum(tried.study.samples for tried in campaign.tried)
        self.display = Display(campaign.ended, total, 0, "trials")
        campaign.save()

    @property
    def plan(self) -> Plan:
        """Return the plan of the trials begun so far."""
        return self.campaign.plan

    def next(self, under_way: Collection[Task]) -> tuple[Task, Mapping[str, Any]] | None:
        """Return a trial that was cut off, or begin a new one."""
        found = self.campaign.next()
        if found is None:
            return None
        self.campaign.save()
        return found, self.campaign.order(*found)

    @property
    def over(self) -> bool:
        """Return that nothing is left where there was nothing to hand out."""
        return True

    def judge(self, task: Task, epoch: int, value: float) -> None:
        """Leave word that a trial is to stop where it is behind."""
        self.campaign.judge(*task, epoch, value)

    def ended(self, task: Task, outcome: str) -> bool:
        """Take in how a trial stands in the store; one that was cut off waits for another try."""
        tried, trial = task
        self.campaign.close(tried, trial)
        standing = tried.ended.get(trial.number)
        if standing is None:
            self.display.say(f"trial {trial.number} of {tried.study.label} ended early, and is to go on")
            return False
        self.display.stages(self.campaign.ended)
        if standing.name == FAILED:
            self.display.say(f"{standing.name}: trial {trial.number} of {tried.study.label}: {standing.reason}")
        return standing.name == FAILED


def search_with_ray(
    campaign: Campaign, store: Store, setup: Setup, share: Share, most: int | None, cancelled: Path
) -> bool:
    """Run a search's trials; return whether it was stopped. Raises UserError."""
    start_ray(share)
    worlds = {tried.study.cell.world for tried in campaign.tried}
    common = common_order(campaign.path, store, setup, share, cancelled)
    return dispatch(SearchTrials(campaign), worlds, share, common, most)
