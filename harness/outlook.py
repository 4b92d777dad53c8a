"""What lies ahead of a sweep, for a person: cells, stages and sharing, and what the rest will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.cell import Cell
from harness.costs import Costs, Place
from harness.forecast import Forecast, forecast, within
from harness.frontier import Frontier, Survey
from harness.launch.local import Machine
from harness.pilot import pilot, remember
from harness.plan import Plan, Stage
from harness.sealed import keep_note, read_note
from harness.store import KINDS, Result
from harness.words import count, given_span, size, span

FORECAST = "forecast.json"
SHOWN_CELLS = 12


def counted(plan: Plan, survey: Survey) -> dict[str, Any]:
    """Return cells, stages and sharing as plain values."""
    kinds = Counter(stage.kind for stage in plan.stages.values())
    needed = Counter(plan.stages[key].kind for key in survey.todo)
    return {
        "sweep": plan.name,
        "cells": len(plan.cells),
        "united": plan.united,
        "stages": {kind: {"all": kinds[kind], "to_run": needed[kind]} for kind in KINDS if kinds[kind]},
        "to_do": {name: number for name, number in sorted(survey.count().items()) if name != "done"},
        "trainings_unshared": plan.unshared_trainings(),
        "axes": by_axis([cell for cell, _ in plan.cells]),
    }


def describe(plan: Plan, survey: Survey) -> list[str]:
    """Return cells, stages and sharing in lines."""
    seen = counted(plan, survey)
    united = f" ({plan.united} duplicates united)" if plan.united else ""
    lines = [f"{plan.name}: {len(plan.cells)} cells{united}, {len(plan.stages)} stages"]
    lines += [f"  {kind:8s} {of['all']:7,}   to run {of['to_run']:7,}" for kind, of in seen["stages"].items()]
    states = ", ".join(f"{number:,} {name}" for name, number in seen["to_do"].items())
    lines.append(f"  to do: {states or 'nothing, all is there'}")
    trainings, unshared = seen["stages"].get("train", {"all": 0})["all"], seen["trainings_unshared"]
    lines.append(f"  trainings: {trainings:,} with shared tickets; {unshared:,} if every cell made its own")
    return lines + [f"  {line}" for line in _axis_lines(seen["axes"])]


def by_axis(cells: Sequence[Cell]) -> dict[str, dict[str, int]]:
    """Return the values of every axis with the number of cells that have them."""
    axes = ("dataset", "arch", "mask", "sparsity", "recipe", "seed")
    return {axis: dict(Counter(str(cell.axis(axis)) for cell in cells)) for axis in axes}


def _axis_lines(axes: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    for axis, values in axes.items():
        shown = ", ".join(f"{label} ({number})" for label, number in list(values.items())[:SHOWN_CELLS])
        yield f"{axis + ':':10s} {shown}{' ...' if len(values) > SHOWN_CELLS else ''}"


class Outlook:
    """The forecast of a plan on a machine, and what to compare it with afterwards."""

    def __init__(self, frontier: Frontier, survey: Survey, machine: Machine) -> None:
        self.frontier, self.plan, self.todo, self.machine = frontier, frontier.plan, list(survey.todo), machine
        device = machine.device.partition(":")[0]
        self.costs = Costs.of(self.plan, survey.results, Place(device, machine.threads))
        self.cache = frontier.store.root / "cache"
        self.unknown: list[Stage] = remember(self.costs, self.todo, self.cache)

    def compute(self, *seconds: float) -> str:
        """Return a worker's seconds as time of what it occupies, in one unit: the first, and a range of the others."""
        hours = [s * (self.machine.threads if self.machine.device == "cpu" else 1) / 3600 for s in seconds]
        unit, scale = ("hours", 1) if hours[0] >= 1 else ("minutes", 60)
        mid, *ends = (f"{h * scale:.1f}" for h in hours)
        what = "core" if self.machine.device == "cpu" else "GPU"
        return f"{mid} {what}-{unit}" + (f" ({' to '.join(ends)})" if ends else "")

    def pilot(self, say: Callable[[str], None]) -> None:
        """Try out what nothing exact is known of."""
        pilot(self.frontier, self.costs, self.unknown, self.cache, say)
        self.unknown = remember(self.costs, self.todo, self.cache)

    def forecast(self) -> Forecast:
        """Return the forecast of what is to be run."""
        return forecast(self.plan, self.todo, self.costs, self.machine.workers)

    def lines(self) -> Iterator[str]:
        """Yield the forecast in lines."""
        if not self.todo:
            return
        seen = self.forecast()
        if seen.basis:
            low, mid, high = seen.work
            basis = ", ".join(f"{basis} ({count(number, 'stage')})" for basis, number in seen.basis.items())
            known = len(self.todo) - sum(seen.unknown.values())
            part = f" for {known:,} of {count(len(self.todo), 'stage')}" if seen.unknown else ""
            yield f"  forecast{part}: {self.compute(mid, low, high)}, from records of {basis}"
            first, middle, last = seen.wall
            yield (
                f"  done in {span(middle)} ({span(first)} to {span(last)}) with {count(seen.slots, 'slot')}; "
                f"the longest chain alone takes {span(seen.chain)}"
            )
            unsized = f", and {count(seen.unsized, 'artifact')} of unknown size" if seen.unsized else ""
            yield f"  disk: {size(seen.bytes)}{unsized}; {seen.files:,} files"
        if seen.unknown:
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in seen.unknown.items())
            yield f"  nothing like them was ever run: {kinds}, left out of the forecast; --pilot tries them out"

    def within(self, budget: str) -> list[tuple[Cell, str]]:
        """Return the cells that fit into a budget of compute time. Raises UserError where it is no time."""
        seconds = given_span("--budget", budget)
        share = self.machine.threads if self.machine.device == "cpu" else 1
        return within(self.plan.cells, self.plan, self.todo, self.costs, seconds / share)[0]

    def keep(self, folder: Path) -> None:
        """Write the forecast beside the plan, unless an earlier call, of which this one is the rest, left one."""
        earlier = read_note(folder / FORECAST)
        if earlier and earlier["basis"] and set(self.todo) < set(earlier["todo"]):
            return
        keep_note(folder / FORECAST, {"todo": self.todo, **self.forecast().dump()})

    def outcome(self, folder: Path, wall: float) -> str:
        """Return what the stages were forecast to take, and what they took; empty where nothing was foretold."""
        said = read_note(folder / FORECAST)
        if not said or not said["basis"]:
            return ""
        done: dict[str, Result] = {}
        for key in said["todo"]:
            if key in self.plan.stages and (result := self.frontier.any_result(key)) is not None:
                done[key] = result
        taken = sum(float(r.provenance.get("seconds_of_all_attempts", 0.0)) for r in done.values())
        low, mid, high = said["work"]
        part = "" if len(done) == len(said["todo"]) else f" for {len(done):,} of {len(said['todo']):,} stages"
        if unseen := sum(said["unknown"].values()):
            part += f", {unseen:,} of which nothing was known and no forecast was made"
        return (
            f"forecast: {self.compute(mid, low, high)} in {span(said['wall'][1])}; "
            f"it took {self.compute(taken)} in {span(wall)}{part}"
        )


def ahead(outlook: Outlook, survey: Survey, budget: str = "") -> list[str]:
    """Return in lines a plan, what the rest of it will cost on a machine, and what of it a budget covers."""
    plan = outlook.plan
    lines = [*describe(plan, survey), *outlook.lines()]
    if budget:
        fitting = outlook.within(budget)
        lines.append(f"  within {budget}: {count(len(fitting), 'cell')} of {len(plan.cells):,}")
        lines += [f"    {line}" for line in _axis_lines(by_axis([cell for cell, _ in fitting]))] if fitting else []
    return lines


def data_stages(plan: Plan) -> Plan:
    """Return the plan of a plan's data sets alone, which a pilot needs."""
    stages = {key: stage for key, stage in plan.stages.items() if stage.kind == "data"}
    return Plan(plan.name, stages, [], plan.absent, plan.plugins, plan.imports, beside=list(stages))
