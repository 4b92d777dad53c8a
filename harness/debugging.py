"""What is to be debugged: one stage of a sweep, and a store beside the real one in which it is run."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.asked import FILES, find_stage, plan_file
from harness.claims import Observer
from harness.errors import UserError
from harness.frontier import Frontier
from harness.launching import run_in_this_process
from harness.merge import Merged, take_beside, take_stage
from harness.orders import artifacts, order_for
from harness.plan import Plan, Stage
from harness.planfile import SavedPlan, find_plan, read_plan, save_plan
from harness.retry import release
from harness.store import Store
from harness.supervisor import Setup

STEP = re.compile(r"([0-9a-f]{4,32})(?:@(?:(\d+):)?(\d+))?")


@dataclass(frozen=True)
class Case:
    """A stage, the plan it is of, the store to run it in, and the one that finished stages are taken from."""

    saved: SavedPlan
    stage: Stage
    store: Store
    real: Store

    @property
    def own(self) -> bool:
        """Return whether it is run in a store beside the real one."""
        return self.store.root != self.real.root

    def make_ready(self, setup: Setup) -> None:
        """Have everything the stage is made from: taken over where it is finished, else run.

        Raises UserError where some of it cannot be made.
        """
        before = [key for key in self.saved.plan.ancestors(self.stage.key) if key != self.stage.key]
        part = self.saved.plan.part(self.stage.key)
        part.beside, part.stages = before, {key: stage for key, stage in part.stages.items() if key in before}
        if self.own:
            merged = Merged()
            take_beside(self.store, self.real)
            for key, stage in part.stages.items():
                own = self.store.folder(stage.kind, key)
                if (result := own.result()) and not own.has(result.artifact):
                    shutil.rmtree(own.path)  # a result without its file is enough for a table, but not to go on from
                take_stage(self.store, stage.kind, self.real.folder(stage.kind, key), merged)
        self._run(part, setup)

    def run(self, setup: Setup) -> Mapping[str, Any] | None:
        """Run the stage, and what it is made from, as a worker does; return its metrics, None where it failed."""
        part = self.saved.plan.part(self.stage.key)
        self._run(part, setup, told=False)
        result = Frontier(part, self.store, Observer()).result(self.stage.key, with_artifact=False)
        return result.metrics if result else None

    def _run(self, part: Plan, setup: Setup, told: bool = True) -> None:
        frontier = Frontier(part, self.store, Observer())
        if part.stages and frontier.survey().todo:
            release(frontier, "all")
            saved = SavedPlan(Path(), part, [], source=self.saved.source)
            with contextlib.redirect_stdout(sys.stderr):  # results alone go to stdout
                run_in_this_process(saved, self.store, setup)
            frontier.forget()
            if told and (left := frontier.survey().todo):
                key, state = next((pair for pair in left.items() if pair[1].over), next(iter(left.items())))
                raise UserError(
                    f"{part.stages[key].label} could not be made, and {self.stage.label} rests on it: {state.detail}; "
                    f"look at that one: --like {key[:8]}"
                )

    def order(self, setup: Setup, attempt: Path, resumed: bool) -> dict[str, Any]:
        """Return the order for the stage; `resumed`: it may go on from checkpoints of the real store's attempts."""
        parents = artifacts(Frontier(self.saved.plan, self.store, Observer()), self.stage)
        if parents is None:
            raise UserError(f"{self.stage.label}: what it is made from went away meanwhile; run the same command again")
        earlier = sorted(self.real.path(self.stage.kind, self.stage.key).glob("attempt-*")) if resumed else []
        order = order_for(self.stage, self.store, attempt, earlier, parents)
        return {**order, "device": setup.device, "threads": setup.threads, "checkpoint_every": 1e9}

    def step(self, given: str) -> tuple[int, int]:
        """Return the epoch, from 1 on, and the step in it that KEY, KEY@STEP or KEY@EPOCH:STEP means.

        Epoch 0: the step is counted through. Without one, it is that at which the newest attempt diverged.
        """
        match = STEP.fullmatch(given)
        assert match is not None  # by check_step # noqa: S101
        if match[3]:
            return int(match[2] or 0), int(match[3])
        folder = self.real.folder(self.stage.kind, self.stage.key)
        end = folder.end(folder.generation) or {}
        if "step" not in end:
            raise UserError(
                f"--replay {given}: its newest attempt in {self.real.root} did not diverge; "
                f"name a step: {given}@EPOCH:STEP"
            )
        return int(end["epoch"]), int(end["step"])


def check_step(given: str) -> str:
    """Return the key of a step that is given as KEY@EPOCH:STEP. Raises UserError for what is none."""
    match = STEP.fullmatch(given)
    if match is None or any(part is not None and int(part) == 0 for part in match.groups()[1:]):
        raise UserError(
            f"--replay {given}: write KEY@EPOCH:STEP as failures name them, both from 1 on, KEY@STEP counted from the "
            "start of training, or KEY alone for the step that it diverged at"
        )
    return match[1]


def open_case(
    sweep: str, given: str, option: str, real: Store, store: Store, data: Path | None, say: Callable[[str], None]
) -> Case:
    """Return a stage of a sweep that is named by its file, or of the newest plan of the one so called."""
    if sweep.endswith(FILES):
        loaded, plan = plan_file(sweep, store, data)
        if missing := plan.missing():
            raise UserError("\n".join(missing))
        saved = read_plan(save_plan(plan, store, loaded, whole=True))
    else:
        saved = read_plan(find_plan(real, sweep))
    if not given and len(saved.plan.leaves) > 1:
        raise UserError(
            f"{sweep} has {len(saved.plan.leaves)} cells; say which: --cell {_example(saved)}, "
            "or --like KEY with the first digits of a stage's key, as `harness status` shows them"
        )
    key = find_stage(saved, given, option) if given else saved.plan.leaves[0]
    say(f"{saved.plan.stages[key].label} ({saved.plan.stages[key].kind} {key[:8]})")
    return Case(saved, saved.plan.stages[key], store, real)


def _example(saved: SavedPlan) -> str:
    labels, _ = saved.places()[0]
    every = [labels for labels, _ in saved.places()]
    varying = [axis for axis in labels if axis != "ticket_seed" and len({each[axis] for each in every}) > 1]
    return ",".join(f"{axis}={labels[axis]}" for axis in varying)
