"""A search: its trials as stages of a plan that grows, taken up in turn, judged after every epoch, and counted."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.claims import Observer
from harness.frontier import Frontier
from harness.plan import Plan
from harness.planfile import save_growing
from harness.planner import Planner
from harness.rows import rows_of
from harness.spec import Sweep
from harness.states import EARLY
from harness.store import Store
from harness.study import DONE, FAILED, OPEN, STOPPED, Standing, Study, Trial, value_of
from harness.trials import Trials


@dataclass
class Tried:
    """A study, its trials, and how they stand."""

    study: Study
    trials: Trials
    keys: dict[int, str] = field(default_factory=dict)
    ended: dict[int, Standing] = field(default_factory=dict)
    waiting: list[Trial] = field(default_factory=list)
    """Begun in an earlier call, or cut off: they go first."""
    exhausted: bool = False

    @property
    def left(self) -> int:
        """Return how many trials can still be begun."""
        return 0 if self.exhausted else max(0, self.study.samples - len(self.trials.begun))

    def best(self, mode: str) -> tuple[int, Standing] | None:
        """Return the best of the trials that ran to their end, the earliest of equals: its number and standing."""
        sign = 1 if mode == "max" else -1
        whole = [
            (sign * end.value, -number)
            for number, end in self.ended.items()
            if end.name == DONE and end.value is not None
        ]
        return (number := -max(whole)[1], self.ended[number]) if whole else None

    def settings(self, number: int) -> dict[str, Any]:
        """Return the settings of a trial."""
        return dict(next(trial.settings for trial in self.trials if trial.number == number))


class Campaign:
    """All studies of a search, as the store has them; and the plan of their trials, which grows."""

    def __init__(self, sweep: Sweep, store: Store, studies: list[Study], planner: Planner) -> None:
        assert sweep.search is not None  # who calls has looked # noqa: S101
        self.sweep, self.store, self.form, self.planner = sweep, store, sweep.search.form, planner
        self.plan = Plan(sweep.name, planner.plan.stages)
        self.observer = Observer()
        self.tried: list[Tried] = []
        for study in studies:
            tried = Tried(study, Trials(study, self.form))
            self.tried.append(tried)
            for trial in tried.trials:
                self.add(tried, trial)
                self._sort(tried, trial, self.standing(tried, trial))

    @property
    def unfinished(self) -> bool:
        """Return whether trials are to be run."""
        return any(tried.waiting or tried.left for tried in self.tried)

    @property
    def ended(self) -> int:
        """Return how many trials have ended."""
        return sum(len(tried.ended) for tried in self.tried)

    @property
    def folder(self) -> Path:
        """Return the sweep's folder."""
        return self.store.sweep(self.sweep.name)

    @property
    def path(self) -> Path:
        """Return the file of the plan that this call's trials read: another call's may know other trials."""
        return self.folder / "search" / f"plan-{platform.node()}-{os.getpid()}.json"

    def add(self, tried: Tried, trial: Trial) -> None:
        """Plan a trial's stages."""
        cell = tried.study.cell_for(self.sweep, trial.settings)
        key = tried.keys[trial.number] = self.planner.cell(cell)
        made = self.planner.plan
        cells, plugins = [*self.plan.cells, (cell, key)], list(self.sweep.names.plugins.values())
        self.plan = Plan(self.sweep.name, made.stages, cells, plugins=plugins, imports=made.imports)
        self.plan.give_worlds({key: cell.world})

    def catch_up(self) -> None:
        """Record what was trained since a call was killed, and stop what it had no time to stop."""
        for tried in self.tried:
            for trial in tried.trials:
                self._record(tried, trial, self.standing(tried, trial))

    def close(self, tried: Tried, trial: Trial) -> None:
        """Take in how a trial stands; one that was cut off is to be run again."""
        standing = self.standing(tried, trial)
        self._record(tried, trial, standing)
        self._sort(tried, trial, standing)

    def _record(self, tried: Tried, trial: Trial, standing: Standing) -> None:
        given = standing.epoch or tried.study.cell.protocol.epochs
        values = (pair for pair in self.values(tried, trial) if pair[0] <= given)
        tried.trials.record(trial, values, standing)

    def _sort(self, tried: Tried, trial: Trial, standing: Standing) -> None:
        if standing.name == OPEN:
            tried.waiting.append(trial)
        else:
            tried.ended[trial.number] = standing

    def values(self, tried: Tried, trial: Trial) -> Iterator[tuple[int, float]]:
        """Yield epoch and value of every row that a trial has left in the store."""
        rows = rows_of(self.store.folder("train", tried.keys[trial.number]))
        for count in range(1, len(rows) + 1):
            yield rows[count - 1]["epoch"], self.value(tried, rows[:count])

    def value(self, tried: Tried, rows: list[dict[str, Any]]) -> float:
        """Return what a trial is judged by after some epochs."""
        return value_of(rows, self.form.metric, tried.study.cell.protocol.report)

    def standing(self, tried: Tried, trial: Trial) -> Standing:
        """Return how a trial stands: as it is recorded, else in the store."""
        if (told := tried.trials.standing(trial)).name != OPEN:
            return told
        key = tried.keys[trial.number]
        frontier = Frontier(self.plan.part(key), self.store, self.observer)
        survey = frontier.survey()
        state = survey.todo.get(key)
        if state is None or state.name == EARLY:
            given = [pair for pair in self.values(tried, trial) if state is None or pair[0] <= state.epoch]
            if not given:
                return Standing(FAILED, reason="its rows are gone from the store")
            epoch, value = given[-1]
            if state is None and math.isnan(value):
                return Standing(FAILED, reason=f"its {self.form.metric} is no number")
            return Standing(STOPPED if state else DONE, value, epoch)
        if cause := frontier.blocked(survey).get(key):
            return Standing(FAILED, reason=f"{survey.todo[cause].name}: {survey.todo[cause].detail}")
        return Standing(OPEN)

    def save(self) -> None:
        """Write the plan as it is now, for this call's trials and as the sweep's newest."""
        save_growing(self.plan, self.store, self.sweep, self.path)

    def next(self) -> tuple[Tried, Trial] | None:
        """Return a trial to run: one that was cut off, else a new one of the study that has begun the fewest.

        Where none is left, those that other calls have begun meanwhile: theirs may be killed. Raises UserError where
        a trial's settings do not go together.
        """
        if found := self._waiting():
            return found
        for tried in sorted(self.tried, key=lambda each: len(each.trials.begun)):
            if tried.left and (trial := self._begin(tried)):
                return tried, trial
        for tried in self.tried:
            tried.trials.look()
            for trial in [trial for trial in tried.trials if trial.number not in tried.keys]:
                self.add(tried, trial)
                self._sort(tried, trial, self.standing(tried, trial))
        return self._waiting()

    def _waiting(self) -> tuple[Tried, Trial] | None:
        return next(((tried, tried.waiting.pop(0)) for tried in self.tried if tried.waiting), None)

    def _begin(self, tried: Tried) -> Trial | None:
        tried.trials.look()  # another call may have begun some
        while tried.left:
            settings = tried.trials.draw()
            if settings is None:
                tried.exhausted = True
                return None
            tried.study.cell_for(self.sweep, settings)  # what does not go together is refused before it counts
            if (trial := tried.trials.begin(settings)) is not None:
                self.add(tried, trial)
                return trial
        return None

    def judge(self, tried: Tried, trial: Trial, epoch: int, value: float) -> None:
        """Record a trial's value after an epoch; where it is behind, leave word that it is to stop."""
        tried.trials.report(trial, epoch, value)

    def order(self, tried: Tried, trial: Trial) -> Mapping[str, Any]:
        """Return what a trial's process must know."""
        key = tried.keys[trial.number]
        return {
            "key": key,
            "world": self.plan.stages[key].world,
            "stop": str(trial.stop.absolute()),
            "metric": self.form.metric,
            "report": tried.study.cell.protocol.report,
        }
