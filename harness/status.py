"""`harness status`: where a sweep stands, who works on it, what failed and what failures have in common."""

from __future__ import annotations

import gc
import heapq
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.allocation import APART
from harness.asked import FILES, beside, plan_of, sweep_file
from harness.claims import BEATS_PER_LEASE, LEASE, Observer
from harness.completing import sweeps_here
from harness.costs import units
from harness.efficiency import Efficiency, efficiency
from harness.errors import SchedulerUnavailable, UserError, printable
from harness.failure_limit import Reached, reached
from harness.failures import CRASHED, REMEDIES, Group, debugged, group_failures, last_lines, quoted
from harness.hosts import MOST_FAULTS, avoided
from harness.index import Standing, stand
from harness.launch.kept import PendingJobs, briefly, pending_jobs
from harness.launch.slurm import Slurm
from harness.plan import Plan
from harness.planfile import SavedPlan
from harness.presence import Present, present
from harness.states import EARLY, FAILED, State
from harness.store import KINDS, Store
from harness.terminal import STORE, answered, command, examples, note, show_tables, tell_json
from harness.words import count, span

if TYPE_CHECKING:
    from rich.console import Group as Renderable

STATES = ("todo", "running", "lost", "stopped", EARLY, *FAILED, "done")
REFRESH = 2.0
"""Seconds between two looks of --watch."""
SLOWEST = 3
MOST_AGAIN = 5
"""Stages run again that are shown."""
HOUR = 3600.0


class Jobs:
    """A sweep's jobs on the cluster that its workers were last submitted to, if they ever were."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.launcher: Slurm | None = None
        self.pending: list[PendingJobs] | None = None
        """What waits in the queue; None where nothing was ever submitted to a cluster, or the queue is not known."""
        self.trouble = ""
        """Why the queue is not known."""
        self.looked: float | None = None
        self._used: tuple[object, Efficiency | None] = (None, None)

    def look(self) -> None:
        """Ask the scheduler, unless that was done just before."""
        if self.looked is not None and time.monotonic() - self.looked < APART:
            return
        self.pending, self.trouble = None, ""
        try:
            if launcher := briefly(self.store, self.name):
                self.launcher = launcher
                self.pending = pending_jobs(launcher)
        except (SchedulerUnavailable, UserError) as error:
            self.trouble = str(error)
        self.looked = time.monotonic()

    def efficiency(self, plan: Plan, standing: Standing) -> Efficiency | None:
        """Measure what the jobs used; once for what is finished, since accounting is asked too."""
        seen = (len(standing.done), dict(standing.states))
        if seen != self._used[0]:
            self._used = seen, efficiency(plan, standing, self.launcher)
        return self._used[1]


@dataclass
class Status:
    """Everything that the command shows."""

    saved: SavedPlan
    standing: Standing
    counts: Mapping[str, Mapping[str, int]]
    cells_done: int
    workers: list[Present]
    at_work: Mapping[str, str]
    """Worker, as `host pid` -> the stage it runs."""
    groups: list[Group]
    hour: int
    """Stages finished during the last hour, by the clocks of those who made them."""
    left: float | None
    """Seconds of work left, None where nothing is known of some kind of stage."""
    slowest: list[tuple[str, float]]
    avoided: list[str]
    efficiency: Efficiency | None
    """What finished stages used: those of its jobs, where it was submitted to a cluster."""
    jobs: Jobs
    store: Store
    given: str
    """The sweep's name or file, as it was asked for."""
    more: tuple[object, ...]
    """Options that every command about it needs."""

    @property
    def file(self) -> str:
        """Return the sweep's file, as it is found from here."""
        return self.given if self.given.endswith(FILES) else sweep_file(self.saved, self.store)

    @property
    def halted(self) -> Reached | None:
        """Return why no stage is begun any more."""
        return reached(self.store, self.saved.plan.name)

    @property
    def again(self) -> list[tuple[str, State, int]]:
        """Return the stages that are run again, or about to be, since a trainer died: key, state, the attempt."""
        return [
            (key, state, state.generation - (state.name == "running"))
            for key, state in self.standing.states.items()
            if state.name in ("running", "stopped") and state.cause in CRASHED
        ]

    @property
    def eta(self) -> float | None:
        """Return the seconds until all is done, at the present number of workers and if no chain is in the way."""
        busy = max(len(self.at_work), sum(not w.about.get("slots") for w in self.workers))
        return self.left / busy if self.left is not None and busy else None


def gather(
    saved: SavedPlan,
    store: Store,
    observer: Observer,
    rebuild: bool,
    given: str = "",
    more: tuple[object, ...] = (),
    jobs: Jobs | None = None,
) -> Status:
    """Look at a sweep; `given`: the name or file that it was asked for by, `more`: what commands about it need too."""
    plan, jobs = saved.plan, jobs or Jobs(store, saved.plan.name)
    jobs.look()
    standing = stand(plan, store, observer, rebuild)
    ago = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - HOUR))
    long = heapq.nlargest(SLOWEST, ((d.seconds, k) for k, d in standing.done.items() if k in plan.stages))
    return Status(
        saved,
        standing,
        standing.counts(plan),
        sum(cell.key in standing.done for cell in saved.cells),
        list(present(store, plan.name)),
        {_who(owner): plan.stages[key].label for key, (owner, _, _) in standing.owners.items()},
        group_failures(saved, store, standing),
        sum(done.finished > ago for done in standing.done.values()),
        _left(saved, standing),
        [(plan.stages[key].label, seconds) for seconds, key in long],
        avoided(store),
        jobs.efficiency(plan, standing),
        jobs,
        store,
        given or plan.name,
        more,
    )


def _who(owner: Any) -> str:
    return f"{owner.host} {owner.processes[0].pid}"


def _left(saved: SavedPlan, standing: Standing) -> float | None:
    """Return the seconds of the stages to be run, each as the median of finished ones of its kind, network and data."""
    sorts: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    kinds: dict[str, list[float]] = defaultdict(list)

    def sort(key: str) -> tuple[Any, ...]:
        stage = saved.plan.stages[key]
        return stage.kind, id(stage.spec.get("arch")), stage.parents.get("data")

    for key, done in standing.done.items():
        took = done.seconds / units(saved.plan.stages[key])
        sorts[sort(key)].append(took)
        kinds[saved.plan.stages[key].kind].append(took)
    usual: dict[Any, float] = {name: statistics.median(rates) for name, rates in (*sorts.items(), *kinds.items())}
    total = 0.0
    blocked = standing.blocked(saved.plan)
    for key in standing.states:
        if key in blocked:
            continue
        stage = saved.plan.stages[key]
        rate = usual.get(sort(key), usual.get(stage.kind))
        if rate is None:
            return None
        total += rate * units(stage)
    return total


def as_json(status: Status) -> dict[str, Any]:
    """Return the status as plain values."""
    plan = status.saved.plan
    return {
        "sweep": plan.name,
        "cells": len(status.saved.cells),
        "cells_done": status.cells_done,
        "stages": {kind: dict(counts) for kind, counts in status.counts.items()},
        "workers": [
            {
                "host": worker.owner.host,
                "pid": worker.owner.processes[0].pid,
                "job": worker.owner.job,
                "device": worker.about.get("device"),
                "heartbeats": worker.beats,
                "seconds_since_heartbeat_by_file_time": round(worker.age, 1),
                "stage": status.at_work.get(_who(worker.owner)),
            }
            for worker in status.workers
        ],
        "pending": None if status.jobs.pending is None else [asdict(each) for each in status.jobs.pending],
        "scheduler_trouble": status.jobs.trouble,
        "running": [
            {"stage": plan.stages[key].label, "key": key, "worker": _who(owner), "heartbeats": beats}
            for key, (owner, beats, _) in status.standing.owners.items()
        ],
        "finished_in_the_last_hour": status.hour,
        "seconds_of_work_left": status.left,
        "eta_seconds": status.eta,
        "slowest": [{"stage": label, "seconds": seconds} for label, seconds in status.slowest],
        "failures": [
            {
                "cause": group.cause,
                "message": group.message,
                "example": group.example,
                "stages": len(group.stages),
                "cells": len(group.cells),
                "condition": group.condition.text if group.condition else "",
                "log": group.log,
                "last_lines": last_lines(Path(group.log)) if group.cause in CRASHED and group.log else [],
            }
            for group in status.groups
        ],
        "again": [
            {"stage": plan.stages[key].label, "key": key, "cause": s.cause, "message": s.detail, "attempt": attempt}
            for key, s, attempt in status.again
        ],
        "stopped": str(status.halted or ""),
        "hosts_avoided": status.avoided,
        "efficiency": status.efficiency and status.efficiency.as_json(),
        "file_operations": status.standing.operations,
    }


def render(status: Status, wrapped: bool = False) -> Renderable:
    """Return the status for a terminal; commands are `wrapped` only where they cannot be copied anyway."""
    from rich.console import Group as Lines
    from rich.table import Table
    from rich.text import Text

    shown = [s for s in STATES if s in ("todo", "running", "done") or any(c.get(s) for c in status.counts.values())]
    table = Table(title=f"{status.saved.plan.name}: {status.cells_done} of {len(status.saved.cells)} cells done")
    table.add_column("stage")
    for state in shown:
        table.add_column(state, justify="right")
    for kind in KINDS:
        if counts := status.counts.get(kind):
            table.add_row(kind, *(f"{counts.get(state, 0):,}" for state in shown))
    lines: list[Any] = [table, Text(_pace(status))]
    if status.halted is not None:
        lines.append(Text(printable(f"stopped: {status.halted}")))
    lines += [Text(printable(text)) for text in _pending(status.jobs)]
    if status.workers:
        lines.append(_workers(status))
    if status.efficiency and status.efficiency.launcher:
        lines += [_used(status.efficiency), *(Text(line) for line in status.efficiency.lines())]
    if status.slowest:
        lines.append(Text("slowest: " + "; ".join(f"{label} {span(seconds)}" for label, seconds in status.slowest)))
    lines += [Text(printable(text)) for text in _again(status)]
    told = [text for group in status.groups for text in _told(group, status)]
    lines += [Text(text, no_wrap=not wrapped, overflow="fold" if wrapped else "ignore") for text in told]
    lines += [Text(f"avoided, since {MOST_FAULTS} stages met a fault of its device: {host}") for host in status.avoided]
    return Lines(*lines)


def _pace(status: Status) -> str:
    said = [f"{status.hour:,} stages finished in the last hour"]
    if status.left is not None and status.standing.states:
        said.append(f"about {span(status.left)} of work left")
    early = Counter(state.label for state in status.standing.states.values() if state.name == EARLY)
    if early:
        said.append("by a search: " + ", ".join(f"{label} ({number})" for label, number in sorted(early.items())))
    silent = sum(time.time() - changed > LEASE for _, _, changed in status.standing.owners.values())
    if silent:
        said.append(f"{silent:,} running without a heartbeat for {span(LEASE)} by file times: lost, or a clock is off")
    if status.eta is not None and status.standing.states:
        said.append(f"done in about {span(status.eta)} at the present number of workers")
    return "; ".join(said)


def _pending(jobs: Jobs) -> list[str]:
    """Return what waits in the queue, a line a reason, or why that is not known."""
    if jobs.trouble:
        return [f"jobs that wait in the queue are not shown: {jobs.trouble}"]
    return [f"{count(each.jobs, 'job')} waiting{_since(each.since)}: {each.reason}" for each in jobs.pending or ()]


def _since(when: float | None) -> str:
    return f" for {span(time.time() - when)}" if when else ""


def _again(status: Status) -> list[str]:
    """Return what is run again, or is about to be, since the trainer before died or stalled."""
    said = [
        f"again, after attempt {place}: {status.saved.plan.stages[key].label}: {state.detail}"
        for key, state, place in status.again
    ]
    return said if len(said) <= MOST_AGAIN else [*said[:MOST_AGAIN], f"and {len(said) - MOST_AGAIN:,} more"]


def _workers(status: Status) -> Any:
    from rich.table import Table

    table = Table()
    for head in ("worker", "device", "heartbeat", "stage"):
        table.add_column(head)
    for worker in status.workers:
        who = _who(worker.owner)
        late = "" if worker.age < LEASE else " (late, or its clock differs)"
        stage = status.at_work.get(who, "waits for a stage")
        job = f" job {worker.owner.job}" if worker.owner.job else ""
        table.add_row(who + job, str(worker.about.get("device", "")), f"{span(worker.age)} ago{late}", printable(stage))
    return table


def _used(found: Efficiency) -> Any:
    from rich.table import Table

    table = Table()
    for head in ("used by jobs", "stages", "time", "longest", "memory", "CPUs", "GPU memory"):
        table.add_column(head, justify="left" if head == "used by jobs" else "right")
    for kind in KINDS:
        if usage := found.kinds.get(kind):
            amounts = [f"{amount / 2**30:.1f} GiB" if amount else "" for amount in (usage.memory, usage.gpu_memory)]
            cpus = f"{usage.cpus:.1f}" if usage.cpus else ""
            table.add_row(
                kind, f"{usage.stages:,}", span(usage.seconds), span(usage.longest), amounts[0], cpus, amounts[1]
            )
    return table


def _told(group: Group, status: Status) -> list[str]:
    condition = f" [{group.condition.text}]" if group.condition else ""
    failed, held = count(len(group.stages), "stage"), count(len(group.cells), "cell")
    lines = [f"{failed} failed ({group.cause}), {held} held back{condition}", f"  {printable(group.example)}"]
    lines += [f"  log: {group.log}"] if group.log else []
    if group.log and group.cause in CRASHED:
        lines += [f"  {printable(line)}" for line in quoted(Path(group.log))]
    retry = f"--retry {group.cause}"
    again = command("sweep", status.file, *status.more, *retry.split(), store=status.store.root)
    lines += [f"  {REMEDIES[group.cause].replace(retry, again)}"] if group.cause in REMEDIES else []
    if group.cause == "cancelled":
        return lines
    looked_at = debugged(status.given, group.stages[0], status.store, *status.more)
    return [*lines, f"  look at it: {looked_at}"]


EXAMPLES = examples(
    "harness status quickstart",
    "harness status quickstart --watch",
    "harness status quickstart --json",
    "harness status sweeps/quickstart.yaml --why mask=snip,sparsity=90%,recipe=ls,seed=0",
)


def main(
    sweep: Annotated[str, typer.Argument(help="A sweep's name, or its file.", autocompletion=sweeps_here)],
    store: Annotated[Path, typer.Option(help="The store's folder.")] = STORE,
    data: Annotated[Path | None, typer.Option(help="The folder of data sets, where a file is given.")] = None,
    as_text: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds, until all is done.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Believe no index: look at every stage.")] = False,
    why: Annotated[
        str, typer.Option(help="Explain a cell, such as mask=snip,seed=0, or a stage by its key's first digits.")
    ] = "",
    bless: Annotated[
        bool, typer.Option("--bless", help="With --why, of all cells that it names: accept older results.")
    ] = False,
) -> None:
    """Show where a sweep stands; change nothing but what --bless accepts.

    Exit codes: 0 printed; 1 some of it was not accepted; 2 a mistake; 3 the store cannot be read or written.
    """
    if not watch:
        gc.disable()  # a short life, and 100,000 stages: looking for garbage among them took a third of the time
    with answered(store):
        place = Store(store)
        saved = plan_of(sweep, place, data)
        if sweep.endswith(FILES) and (said := beside(Path(sweep), saved.plan.name, store)):
            note(said)
        if bless and not why:
            raise UserError("--bless goes with --why: say which cell's older results are to be accepted")
        if why:
            from harness.why import explain

            raise typer.Exit(not explain(saved, place, why, bless))
        observer, jobs = Observer(), Jobs(place, saved.plan.name)

        def look(rebuild: bool) -> Status:
            return gather(saved, place, observer, rebuild, sweep, ("--data", data) if data else (), jobs)

        status = look(rebuild)
        if as_text:
            tell_json(as_json(status))
        elif watch:
            _watch(status, look)
        else:
            show_tables(render(status))


def _watch(status: Status, look: Callable[[bool], Status]) -> None:
    from rich.live import Live

    pause = threading.Event()
    with Live(render(status, wrapped=True), refresh_per_second=1) as live:
        while status.standing.states:
            pause.wait(max(REFRESH, LEASE / BEATS_PER_LEASE / 15))
            status = look(False)
            live.update(render(status, wrapped=True))
