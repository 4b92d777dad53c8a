"""A trial of Ray Tune: it claims one stage and runs it, in a process that keeps its trainer for the trials after it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from harness.caches import point_caches
from harness.claims import Observer, take
from harness.events import in_words
from harness.frontier import Frontier
from harness.planfile import read_plan
from harness.presence import Presence
from harness.ray_group import RayGroup
from harness.rows import rows_of
from harness.shift import about, presence_owner
from harness.states import SEARCH
from harness.store import Store
from harness.study import value_of
from harness.supervisor import Setup, Supervisor
from harness.trainer import Trainer

WAIT = 0.5
"""Seconds between two looks at what another process runs."""


TROUBLE = "trouble"
"""How a trial ends that is no stage's fault; nothing more is started then."""

_kept: dict[tuple[str, int], Supervisor] = {}
"""What this process keeps from one trial to the next, by the plan's file and the number of ranks."""


def run_trial(order: Mapping[str, Any], report: Callable[[int, float], None]) -> str:
    """Run what an order names; return how that ended: as a supervisor says it, `taken`, `over`, or `trouble` and why.

    A sweep's order is one stage. A search's has a file `stop`: its stage is run after all that it lacks, every epoch of
    it is reported with what it is judged by, and the answer may be that file, which says to stop there.
    """
    if not order["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset for a trial without a GPU, which sees all then
    try:
        supervisor = _supervisor(order)
        return _run_search(order, supervisor, report) if "stop" in order else _run_stage(order["key"], supervisor)
    except Exception as error:  # told to the driver: a trial that raises would be suggested again, for ever
        _kept.clear()
        in_words(event=TROUBLE, message=str(error))
        return f"{TROUBLE}: {type(error).__name__}: {error}"


def _run_stage(key: str, supervisor: Supervisor) -> str:
    frontier = supervisor.frontier
    frontier.forget()
    stage = frontier.plan.stages[key]
    state = frontier.state(stage)
    if not state.claimable or frontier.result(key, with_artifact=key in frontier.plan.inner):
        return "taken"
    folder = frontier.store.folder(stage.kind, key)
    claim = take(folder, folder.generation, supervisor.owner())
    return supervisor.run(stage, claim) if claim else "taken"


def _run_search(order: Mapping[str, Any], supervisor: Supervisor, report: Callable[[int, float], None]) -> str:
    whole, stop, cancelled = supervisor.frontier, Path(order["stop"]), Path(order["cancelled"])
    store = whole.store
    if order["key"] not in whole.plan.stages:  # the plan grows with every trial
        whole = Frontier(read_plan(Path(order["plan"])).plan, store, whole.observer)
    supervisor.use(Frontier(whole.plan.part(order["key"]), store, whole.observer))
    rows = rows_of(store.folder("train", order["key"]))
    at_work = [""]

    def hear(**event: Any) -> None:
        if event["event"] == "start":
            at_work[0] = event["key"]
        if event["event"] != "epoch" or event["key"] != order["key"]:
            in_words(**event)
            return
        rows[event["row"]["epoch"] - 1 :] = [event["row"]]
        report(event["row"]["epoch"], value_of(rows, order["metric"], order["report"]))

    supervisor.tell = hear
    supervisor.stopping = lambda: cancelled.exists() or (at_work[0] == order["key"] and stop.exists())
    supervisor.because = lambda: _behind(stop) if at_work[0] == order["key"] else {}
    while _advance(supervisor) and not cancelled.exists():
        pass
    return "over"


def _behind(stop: Path) -> dict[str, Any]:
    """Return how a trial ends that the search has stopped; nothing where it was another who did."""
    try:
        return {"cause": SEARCH, "epoch": int(stop.read_text()), "message": "it was behind"}
    except FileNotFoundError:
        return {}


def _advance(supervisor: Supervisor) -> bool:
    """Run one missing stage of the plan, or wait for who runs it; return whether there may be another."""
    frontier = supervisor.frontier
    frontier.forget()
    survey = frontier.survey()
    if not survey.todo or frontier.blocked(survey):
        return False
    for key, state in survey.todo.items():
        stage = frontier.plan.stages[key]
        if not state.claimable or any(parent in survey.todo for parent in stage.parents.values()):
            continue
        folder = frontier.store.folder(stage.kind, key)
        if (claim := take(folder, folder.generation, supervisor.owner())) is not None:
            supervisor.run(stage, claim)
            return True
    time.sleep(WAIT)
    return True


def _supervisor(order: Mapping[str, Any]) -> Supervisor:
    """Return this process's supervisor for a plan and a number of ranks, made where there is none."""
    world = int(order["world"])
    name = (order["plan"], world)
    if name not in _kept:
        store, plan = Store(Path(order["store"])), read_plan(Path(order["plan"])).plan
        setup = Setup(**order["setup"], world=world)
        point_caches(setup.scratch)
        start: Callable[[str], Any] = partial(RayGroup, world=world, cpus=setup.threads) if world > 1 else Trainer
        presence = Presence(store, plan.name, presence_owner(setup), trial=True, **about(setup))
        _kept[name] = Supervisor(
            Frontier(plan, store, Observer(setup.lease)),
            setup,
            in_words,
            Path(order["cancelled"]).exists,
            start,
        )
        _kept[name].beside = presence.beat
    return _kept[name]
