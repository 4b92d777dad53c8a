"""A trial of Ray Tune: it claims one stage and runs it, in a process that keeps its trainer for the trials after it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.caches import point_caches
from harness.claims import Observer, take
from harness.events import in_words
from harness.frontier import Frontier
from harness.nodes import Lead, Shape
from harness.planfile import read_plan
from harness.presence import Presence
from harness.rows import rows_of
from harness.shift import about, presence_owner
from harness.states import SEARCH
from harness.store import Store
from harness.study import value_of
from harness.supervisor import Setup, Supervisor
from harness.trainer import Trainer

WAIT = 0.5
"""Seconds between two looks at what another process runs."""


@dataclass
class Kept:
    """What a process keeps from one trial to the next."""

    supervisor: Supervisor
    presence: Presence


_kept: dict[tuple[str, int], Kept] = {}


def run_trial(order: Mapping[str, Any]) -> str:
    """Run the stage that an order names, and return how it ended: as a supervisor says it, or `taken` or `trouble`."""
    if not order["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset for a trial without a GPU, which sees all then
    store = Store(Path(order["store"]))
    try:
        kept = _worker(order, store)
        frontier = kept.supervisor.frontier
        frontier.forget()
        stage = frontier.plan.stages[order["key"]]
        state = frontier.state(stage)
        folder = store.folder(stage.kind, stage.key)
        if not state.claimable or frontier.result(stage.key, with_artifact=stage.key in frontier.plan.inner):
            return "taken"
        claim = take(folder, folder.generation, kept.supervisor.owner())
        return kept.supervisor.run(stage, claim) if claim else "taken"
    except Exception as error:  # told to the driver: a trial that raises would be suggested again, for ever
        _kept.clear()
        in_words(event="trouble", message=str(error))
        return f"trouble: {type(error).__name__}: {error}"


def run_search_trial(order: Mapping[str, Any], report: Callable[[int, float], None]) -> str:
    """Run what a trial of a search lacks, its training last; return `over`, or `trouble` and why.

    Every epoch is reported, with what the trial is judged by; the answer may be a file that says to stop there.
    """
    if not order["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    store, stop, cancelled = Store(Path(order["store"])), Path(order["stop"]), Path(order["cancelled"])
    try:
        kept = _worker(order, store)
        supervisor, whole = kept.supervisor, kept.supervisor.frontier
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
    except Exception as error:  # told to the driver, as above
        _kept.clear()
        in_words(event="trouble", message=str(error))
        return f"trouble: {type(error).__name__}: {error}"
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


def _worker(order: Mapping[str, Any], store: Store) -> Kept:
    """Return this process's supervisor for a plan and a number of ranks, made where there is none."""
    world = int(order["world"])
    name = (order["plan"], world)
    if name not in _kept:
        plan = read_plan(Path(order["plan"])).plan
        setup = Setup(**order["setup"], world=world)
        point_caches(setup.scratch)
        lead = Lead(Shape(world), Path(), Trainer, threading.Event())
        presence = Presence(store, plan.name, presence_owner(setup), trial=True, **about(setup))
        supervisor = Supervisor(
            Frontier(plan, store, Observer(setup.lease)),
            setup,
            in_words,
            Path(order["cancelled"]).exists,
            lead.team if world > 1 else Trainer,
        )
        supervisor.beside = presence.beat
        _kept[name] = Kept(supervisor, presence)
    return _kept[name]
