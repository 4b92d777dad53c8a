"""Ray Tune as a dispatcher: a trial is a stage, suggested when it is ready. Nothing of Tune's own is ever restored."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.claims import Observer
from harness.display import Display
from harness.errors import UserError
from harness.failure_limit import check_limit, reached
from harness.form import Launch
from harness.frontier import Frontier
from harness.plan import Plan
from harness.ray_trial import run_trial
from harness.states import FAILED
from harness.store import Store
from harness.supervisor import Setup
from harness.words import count

TRIALS = 10**9
"""Trials that Tune may start: the searcher says when there are no more."""


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


@dataclass
class Ready:
    """Which stages may be started, told from the store; and which are under way in this run's trials."""

    frontier: Frontier
    display: Display
    trials: dict[str, str] = field(default_factory=dict)
    """Trial -> the key of its stage."""
    trouble: str = ""
    todo: list[str] = field(default_factory=list)
    cancelled: Callable[[], bool] = lambda: False

    def __reduce__(self) -> tuple[Any, ...]:
        """Be nothing in Tune's snapshots, which are never read."""
        return object, ()

    def look(self) -> None:
        """Read from the store what is left."""
        self.frontier.forget()
        survey = self.frontier.survey()
        blocked = self.frontier.blocked(survey)
        heights = self.frontier.plan.heights
        left = [key for key in survey.todo if key not in blocked]
        self.todo = sorted(left, key=lambda key: -heights[key])
        self.display.stages(len(self.frontier.plan.stages) - len(survey.todo))

    def next(self, trial: str) -> str | None:
        """Return a stage that can start now, for a trial; None where there is none at the moment."""
        if self.cancelled():
            return None
        under_way = set(self.trials.values())
        left = set(self.todo)
        for key in self.todo:
            stage = self.frontier.plan.stages[key]
            waits = key in under_way or left.intersection(stage.parents.values())
            if not waits and self.frontier.state(stage).claimable:
                self.trials[trial] = key
                return key
        return None

    @property
    def over(self) -> bool:
        """Return whether no trial can come any more."""
        return bool(self.trouble) or (not self.trials and (not self.todo or self.cancelled()))

    def ended(self, trial: str, outcome: str) -> None:
        """Take in how a trial ended; what it left behind is looked up in the store."""
        key = self.trials.pop(trial, "")
        if outcome.startswith("trouble"):
            self.trouble = outcome
        if outcome in FAILED and key:
            self.display.say(f"{outcome}: {self.frontier.plan.stages[key].label}")
        if outcome not in ("published", "taken", "stopped"):
            found = check_limit(self.frontier.plan, self.frontier.store, self.frontier.observer)
            if found is not None:
                self.display.say(str(found))
        self.look()


def start_ray(share: Share) -> list[dict[str, Any]]:
    """Join a Ray cluster, or start one of this machine; return its nodes as Ray describes them. Raises UserError."""
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
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes


def dispatch(trial: Callable[..., None], searcher: Any, share: Share, alike: bool, most: int | None) -> bool:
    """Run trials as a searcher of Tune's suggests them, at most so many at once; return whether that was stopped.

    `alike`: whether all trials ask for the same resources, so that one's process can serve the next.
    """
    from ray import tune

    with tempfile.TemporaryDirectory(prefix="ray-tune-") as folder:
        chosen = {"search_alg": searcher, "num_samples": TRIALS, "reuse_actors": alike, "max_concurrent_trials": most}
        tuner = tune.Tuner(
            tune.with_resources(trial, lambda config: _bundle(config["world"], share)),
            tune_config=tune.TuneConfig(**chosen),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt:
            return True
    return False


def run_with_ray(
    plan: Plan, path: Path, store: Store, setup: Setup, share: Share, most: int | None, cancelled: Path
) -> bool:
    """Run what a plan lacks as trials of Ray Tune; return whether it was stopped. Raises UserError."""
    nodes = start_ray(share)
    fits(max(stage.world for stage in plan.stages.values()), share, nodes)
    ready = Ready(Frontier(plan, store, Observer(setup.lease)), Display(0, len(plan.stages), 0))
    ready.look()
    alike = len({plan.stages[key].world for key in ready.todo}) == 1  # kept actors of one size would starve another's
    orders = {
        "plan": str(path.absolute()),
        "store": str(store.root.absolute()),
        "cancelled": str(cancelled.absolute()),
        "gpus": share.gpus,
        "setup": {name: value for name, value in asdict(setup).items() if name != "world"},
    }
    ready.cancelled = lambda: cancelled.exists() or reached(store, plan.name) is not None
    with ready.display.shown():
        stopped = dispatch(_trial, _searcher(ready, orders), share, alike, most)
    if ready.trouble:
        ready.display.say(ready.trouble)
    return stopped


def _trial(config: Mapping[str, Any]) -> None:
    from ray import tune

    tune.report({"outcome": run_trial(config)})


def _bundle(world: int, share: Share) -> Any:
    """Ask for all ranks in one bundle: a trial that had several would see no GPU."""
    from ray import tune

    wanted: dict[str, float] = {"CPU": world * share.cpus}
    if share.gpus:
        wanted["GPU"] = share.gpus if world == 1 else world
    return tune.PlacementGroupFactory([wanted])


def _searcher(ready: Ready, orders: Mapping[str, Any]) -> Any:
    """Return a searcher of Tune's that suggests ready stages and waits for the rest."""
    from ray.tune.search import Searcher

    class Stages(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="outcome", mode="max")
            self.outcomes: dict[str, str] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            if (key := ready.next(trial_id)) is not None:
                return {**orders, "key": key, "world": ready.frontier.plan.stages[key].world}
            if not ready.trials:
                ready.look()
            finished: Any = Searcher.FINISHED  # a word of its own, which its annotation forgets
            return finished if ready.over else None

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            self.outcomes[trial_id] = str(result.get("outcome", ""))

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            said = (result or {}).get("outcome", self.outcomes.pop(trial_id, ""))
            ready.ended(trial_id, "died" if error else str(said))

        def save(self, checkpoint_path: str) -> None:
            """Save nothing: what is done stands in the store."""

        def restore(self, checkpoint_path: str) -> None:
            """Restore nothing."""

    return Stages()


def fits(world: int, share: Share, nodes: list[dict[str, Any]]) -> None:
    """Raise UserError where no node of the cluster can hold as many processes."""
    needed = _bundle(world, share).required_resources
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in alive):
        most = ", ".join(f"{max((n.get(name, 0) for n in alive), default=0):g} {name}" for name in needed)
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in needed.items())
        raise UserError(
            f"world: {world} needs {wanted} on one node; the largest of {count(len(alive), 'node')} has {most}. "
            "Training over several nodes is done with --via and a Slurm profile"
        )
