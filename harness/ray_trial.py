"""A trial of Ray Tune: it claims one stage and runs it, in a process that keeps its trainer for the trials after it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.claims import Observer, take
from harness.events import in_words
from harness.frontier import Frontier
from harness.nodes import Lead, Shape
from harness.planfile import read_plan
from harness.presence import Presence
from harness.shift import about, presence_owner
from harness.store import Store
from harness.supervisor import Setup, Supervisor
from harness.trainer import Trainer


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


def _worker(order: Mapping[str, Any], store: Store) -> Kept:
    """Return this process's supervisor for a plan and a number of ranks, made where there is none."""
    world = int(order["world"])
    name = (order["plan"], world)
    if name not in _kept:
        plan = read_plan(Path(order["plan"])).plan
        setup = Setup(**order["setup"], world=world)
        lead = Lead(Shape(world), Path(), Trainer, threading.Event())
        presence = Presence(store, plan.name, presence_owner(setup), **about(setup))
        supervisor = Supervisor(
            Frontier(plan, store, Observer(setup.lease)),
            setup,
            in_words,
            lambda: False,
            lead.team if world > 1 else Trainer,
        )
        supervisor.beside = presence.beat
        _kept[name] = Kept(supervisor, presence)
    return _kept[name]
