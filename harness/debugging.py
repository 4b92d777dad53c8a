"""What is to be debugged: one stage of a sweep, and a store beside the real one in which it is run."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Callable
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
from harness.store import DEBUGGING, Store, write_whole
from harness.supervisor import Setup
from harness.terminal import command

STEP = re.compile(r"([0-9a-f]{4,32})(?:@(?:(\d+):)?(\d+))?")


def own_store(root: Path) -> Store:
    """Return a store to debug in. Raises UserError where results are kept there."""
    store = Store(root)
    if not store.for_debugging and any((store.root / part).exists() for part in ("stages", "sweeps")):
        raise UserError(
            f"{root}: is a store of results, which harness debug never writes into; name another folder with --into, "
            "or remove this one if an older harness debug made it"
        )
    return store


def _mark(store: Store) -> None:
    """Mark a store as one to debug in."""
    if not store.for_debugging:
        store.root.mkdir(parents=True, exist_ok=True)
        write_whole(store.root / DEBUGGING, b"Made by harness debug; it may be removed at any time.\n")


def _drop_damaged(store: Store, real: Store) -> None:
    """Remove copies of users' files that are not those of the real store, which are then taken anew."""
    for copy in (store.root / "plugins").glob("*"):
        theirs = real.root / "plugins" / copy.name
        if theirs.is_dir() and _contents(copy) != _contents(theirs):
            shutil.rmtree(copy)


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Case:
    """A stage, the plan it is of, the store to run it in, and the one that finished stages are taken from."""

    saved: SavedPlan
    stage: Stage
    store: Store
    real: Store

    def make_ready(self, setup: Setup) -> None:
        """Have everything the stage is made from: taken over where it is finished, else run.

        Raises UserError where some of it cannot be made.
        """
        before = [key for key in self.saved.plan.ancestors(self.stage.key) if key != self.stage.key]
        part = self.saved.plan.part(self.stage.key)
        part.beside, part.stages = before, {key: stage for key, stage in part.stages.items() if key in before}
        merged = Merged()
        take_beside(self.store, self.real)
        for key, stage in part.stages.items():
            own = self.store.folder(stage.kind, key)
            if (result := own.result()) and not own.has(result.artifact):
                shutil.rmtree(own.path)  # a result without its file is enough for a table, but not to go on from
            take_stage(self.store, stage.kind, self.real.folder(stage.kind, key), merged)
        self._run(part, setup)

    def _run(self, part: Plan, setup: Setup) -> None:
        frontier = Frontier(part, self.store, Observer())
        if part.stages and frontier.survey().todo:
            release(frontier, "all")
            saved = SavedPlan(Path(), part, [], source=self.saved.source)
            with contextlib.redirect_stdout(sys.stderr):  # results alone go to stdout
                if unwritable := run_in_this_process(saved, self.store, setup):
                    raise OSError(str(unwritable))
            frontier.forget()
            if left := frontier.survey().todo:
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
        _mark(store)
        saved = read_plan(save_plan(plan, store, loaded, whole=True))
    else:
        saved = read_plan(find_plan(real, sweep))
        _mark(store)
        _drop_damaged(store, real)
    if not given and len(saved.plan.leaves) > 1:
        shown = command("status", sweep, store=real.root)
        raise UserError(
            f"{sweep} has {len(saved.plan.leaves)} cells; say which: --cell {_example(saved)}, "
            f"or --like KEY with the first digits of a stage's key, as `{shown}` shows them"
        )
    key = find_stage(saved, given, option) if given else saved.plan.leaves[0]
    say(f"{saved.plan.stages[key].label} ({saved.plan.stages[key].kind} {key[:8]})")
    return Case(saved, saved.plan.stages[key], store, real)


def _example(saved: SavedPlan) -> str:
    labels, _ = saved.places()[0]
    every = [labels for labels, _ in saved.places()]
    varying = [axis for axis in labels if axis != "ticket_seed" and len({each[axis] for each in every}) > 1]
    return ",".join(f"{axis}={labels[axis]}" for axis in varying)
