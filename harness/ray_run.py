"""Ray Tune as a dispatcher: a trial is a stage, suggested when it is ready. Nothing of Tune's own is ever restored."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from harness.claims import Observer
from harness.display import Display
from harness.errors import UserError
from harness.failure_limit import check_limit, reached
from harness.form import Launch
from harness.frontier import Frontier
from harness.plan import Plan
from harness.ray_group import rank_resources
from harness.ray_trial import TROUBLE, run_trial
from harness.states import FAILED
from harness.store import Store
from harness.supervisor import Setup
from harness.words import count

TRIALS = 10**9
"""Trials that Tune may start: the searcher says when there are no more."""
OUTCOME = "outcome"
"""What a trial's last report holds: how it ended. In the reports of its epochs it is empty."""

Task = TypeVar("Task")


@dataclass(frozen=True)
class Share:
    """What a rank is given of a Ray cluster, and where the cluster is: an address, or empty for one of this machine."""

    cpus: int = 1
    gpus: float = 0.0
    address: str = ""

    @classmethod
    def of(cls, launch: Launch, threads: int | None, has_gpus: bool) -> Share:
        """Return a rank's share as a sweep file and the command line want it: a GPU where there is any."""
        gpus = launch.gpus if launch.gpus is not None else float(has_gpus)
        return cls(threads or launch.threads or 1, gpus, launch.address or "")

    def rank(self, world: int) -> dict[str, float]:
        """Return what every rank is given; only one that trains alone may have a fraction of a GPU."""
        if world > 1:
            return rank_resources(self.cpus, self.gpus > 0)
        return {"CPU": float(self.cpus), **({"GPU": self.gpus} if self.gpus else {})}


class Work(Protocol[Task]):
    """What is dispatched: the stages of a sweep, or the trials of a search."""

    store: Store
    observer: Observer
    display: Display

    @property
    def plan(self) -> Plan:
        """Return the plan that tasks are from; a search's grows."""

    def next(self, under_way: Collection[Task]) -> tuple[Task, Mapping[str, Any]] | None:
        """Return a task that can start now and its order, with its `world`; None where there is none at the moment.

        Raises UserError where the sweep file does not allow it.
        """

    @property
    def over(self) -> bool:
        """Return whether nothing is left; asked where nothing is under way."""

    def judge(self, task: Task, epoch: int, value: float) -> None:
        """Take in what a training is judged by after an epoch."""

    def ended(self, task: Task, outcome: str) -> bool:
        """Take in how a trial ended: as a supervisor says it, `died` or `taken`; return whether a stage failed."""


@dataclass
class ReadyStages:
    """The stages of a sweep, each ready when its parents are done. What they left behind is read from the store."""

    frontier: Frontier
    display: Display
    todo: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan, self.store, self.observer = self.frontier.plan, self.frontier.store, self.frontier.observer
        self.look()

    def look(self) -> None:
        """Read from the store what is left."""
        self.frontier.forget()
        survey = self.frontier.survey()
        blocked = self.frontier.blocked(survey)
        heights = self.plan.heights
        left = [key for key in survey.todo if key not in blocked]
        self.todo = sorted(left, key=lambda key: -heights[key])
        self.display.stages(len(self.plan.stages) - len(survey.todo))

    def next(self, under_way: Collection[str]) -> tuple[str, Mapping[str, Any]] | None:
        """Return a stage that no trial and no other worker runs."""
        left = set(self.todo)
        for key in self.todo:
            stage = self.plan.stages[key]
            waits = key in under_way or left.intersection(stage.parents.values())
            if not waits and self.frontier.state(stage).claimable:
                return key, {"key": key, "world": stage.world}
        return None

    @property
    def over(self) -> bool:
        """Return whether no stage is left, after another look: other workers may have finished some."""
        self.look()
        return not self.todo

    def judge(self, task: str, epoch: int, value: float) -> None:
        """Judge nothing: no stage of a sweep is stopped early."""

    def ended(self, task: str, outcome: str) -> bool:
        """Look at the store again; say which stage failed."""
        if outcome in FAILED:
            self.display.say(f"{outcome}: {self.plan.stages[task].label}")
        self.look()
        return outcome not in ("published", "taken", "stopped")


def start_ray(share: Share) -> None:
    """Join a Ray cluster, or start one of this machine. Raises UserError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Tune's own would make a stop look like an end
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own report of a run of thousands of trials
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if not ray.is_initialized():
        try:
            ray.init(address=share.address or "local", include_dashboard=False, log_to_driver=False, logging_level=40)
        except (ConnectionError, ValueError) as error:
            raise UserError(
                f"launch.address {share.address}: no Ray cluster there ({error}); start one, or leave it out"
            ) from None


def dispatch(work: Work[Task], worlds: set[int], share: Share, common: Mapping[str, Any], most: int | None) -> bool:
    """Run what is handed out as trials of Ray Tune, at most so many at once; return whether that was stopped.

    `worlds`: the numbers of processes that trials may have; `common`: what every trial must know. Raises UserError.
    """
    from ray import tune

    fits(max(worlds, default=1), share)
    searcher = _searcher(work, share, common)
    with work.display.shown(), tempfile.TemporaryDirectory(prefix="ray-tune-") as folder:
        alike = len(worlds) == 1  # kept actors of one size would starve another's
        chosen = {"search_alg": searcher, "num_samples": TRIALS, "reuse_actors": alike, "max_concurrent_trials": most}
        tuner = tune.Tuner(
            tune.with_resources(_trial, lambda config: _bundle(config["world"], share)),
            tune_config=tune.TuneConfig(**chosen),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        try:
            tuner.fit()
            stopped = False
        except KeyboardInterrupt:
            stopped = True
    if searcher.mistake:
        raise searcher.mistake
    if searcher.trouble:
        work.display.say(searcher.trouble)
    return stopped


def run_with_ray(
    plan: Plan, path: Path, store: Store, setup: Setup, share: Share, most: int | None, cancelled: Path
) -> bool:
    """Run what a plan lacks as trials of Ray Tune; return whether it was stopped. Raises UserError."""
    start_ray(share)
    work = ReadyStages(Frontier(plan, store, Observer(setup.lease)), Display(0, len(plan.stages), 0))
    worlds = {plan.stages[key].world for key in work.todo}
    return dispatch(work, worlds, share, common_order(path, store, setup, share, cancelled), most)


def common_order(plan: Path, store: Store, setup: Setup, share: Share, cancelled: Path) -> dict[str, Any]:
    """Return what every trial of a run must know."""
    return {
        "plan": str(plan.absolute()),
        "store": str(store.root.absolute()),
        "cancelled": str(cancelled.absolute()),
        "gpus": share.gpus,
        "setup": {name: value for name, value in asdict(setup).items() if name != "world"},
    }


def _trial(config: Mapping[str, Any]) -> None:
    from ray import tune

    def report(epoch: int, value: float) -> None:
        tune.report({OUTCOME: "", "epoch": epoch, "value": value})

    tune.report({OUTCOME: run_trial(config, report)})


def _bundle(world: int, share: Share) -> Any:
    """Return what a trial asks for: one that only supervises a group leaves the rest to the ranks."""
    from ray import tune

    return tune.PlacementGroupFactory([share.rank(1) if world == 1 else {"CPU": 0, "memory": 1}])


def _searcher(work: Work[Task], share: Share, common: Mapping[str, Any]) -> Any:
    """Return the searcher of Tune's that hands out work, and takes in what comes of it.

    Tune calls it with every report before the trial may go on, so that a trial sees at once that it is to stop.
    """
    from ray.tune.search import Searcher

    cancelled = Path(common["cancelled"])

    class Dispatcher(Searcher):
        def __init__(self) -> None:
            super().__init__(metric=OUTCOME, mode="max")
            self.under_way: dict[str, Task] = {}
            self.worlds: dict[str, int] = {}
            self.held: tuple[Task, Mapping[str, Any]] | None = None
            self.outcomes: dict[str, str] = {}
            self.trouble = ""
            self.mistake: UserError | OSError | None = None

        @contextlib.contextmanager
        def minding(self) -> Iterator[None]:
            """Keep an error to be raised again when Tune is left, which would print a traceback and kill what runs."""
            try:
                yield
            except (UserError, OSError) as error:
                if self.mistake is None and self.under_way:
                    work.display.say(f"{error}; no trial is begun any more, those at work go on to their end")
                self.mistake = self.mistake or error

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            halted = self.trouble or self.mistake or cancelled.exists() or reached(work.store, work.plan.name)
            found = None
            with self.minding():
                found = None if halted else self.held or work.next(self.under_way.values())
            self.held = None
            if found is not None:
                task, order = found
                if order["world"] > 1 and self.worlds and not _room([*self.worlds.values(), order["world"]], share):
                    self.held = found  # until trials have ended: nothing smaller that comes after it goes first
                    return None
                self.under_way[trial_id], self.worlds[trial_id] = task, order["world"]
                return {**common, **order}
            finished: Any = Searcher.FINISHED  # a word of its own, which its annotation forgets
            return finished if not self.under_way and (halted or self.mistake or work.over) else None

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            if result[OUTCOME]:
                self.outcomes[trial_id] = result[OUTCOME]
            else:
                with self.minding():
                    work.judge(self.under_way[trial_id], result["epoch"], result["value"])

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            outcome = self.outcomes.pop(trial_id, "died")
            if outcome.startswith(TROUBLE):
                self.trouble = outcome
            self.worlds.pop(trial_id)
            task = self.under_way.pop(trial_id)
            with self.minding():
                if work.ended(task, outcome) and (found := check_limit(work.plan, work.store, work.observer)):
                    work.display.say(str(found))

        def save(self, checkpoint_path: str) -> None:
            """Save nothing: what is done stands in the store."""

        def restore(self, checkpoint_path: str) -> None:
            """Restore nothing."""

        def __reduce__(self) -> tuple[Any, ...]:
            """Be nothing in Tune's snapshots, which are never read."""
            return object, ()

    return Dispatcher()


def _room(worlds: Collection[int], share: Share) -> bool:
    """Return whether a cluster has what so many groups of ranks are given, all at once."""
    import ray

    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    wanted: Counter[str] = Counter()
    for world in worlds:
        wanted.update({name: world * amount for name, amount in share.rank(world).items()})
    return all(there.get(name, 0.0) >= amount for name, amount in wanted.items())


def fits(world: int, share: Share) -> None:
    """Raise UserError where the cluster cannot hold a group of `world` ranks, over all its nodes."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    rank = share.rank(world)
    held = sum(int(min(node.get(name, 0) // amount for name, amount in rank.items())) for node in alive)
    if held < world:
        each = ", ".join(f"{amount:g} {name}" for name, amount in rank.items())
        raise UserError(
            f"world: {world} needs {each} for each of its processes; {count(len(alive), 'node')} of Ray "
            f"{'has' if len(alive) == 1 else 'have'} room for {held}; ask for fewer, or name a larger cluster under "
            "launch.address"
        )
