"""Failures in groups: by what they died of, with the cells that each group holds back and what those have in common.

Of a trainer that crashed or stalled: the end of its log, and what to do next.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.claims import Observer
from harness.conditions import Condition, smallest_condition
from harness.failure_limit import Reached, reason
from harness.index import Standing
from harness.plan import Plan, Stage
from harness.planfile import SavedPlan
from harness.states import FAILED, State, state_of
from harness.store import Folder, Store
from harness.terminal import command, short_path
from harness.words import count

REMEDIES = {
    "oom": "it is tried again by a worker with more memory; or lower `workers`, then --retry oom",
    "time": "raise `time:` in the profile, or --until, and run the sweep again: a worker with more time takes it; or "
    "--retry time",
    "device": "another machine may do it: --retry device",
    "died": "its trainer was ended from outside, or crashed in native code: harness doctor tries out this machine; "
    "then --retry died",
    "stalled": "its trainer hung: harness doctor tries out this machine; then --retry stalled",
    "code": "mend the code, then --retry code",
    "input": "mend what it names, then --retry input",
    "cancelled": "it was cancelled by hand; to lift that: --retry cancelled",
    "diverged": "a loss or gradient became infinite: that is its result; another lr or warmup is another cell",
}


CRASHED = ("died", "stalled")
"""Causes for which a process was ended, so that only its log can tell what it did."""
TAIL = 2**16
"""Bytes of a log's end that are read."""
SHOWN, FRAMES = 8, 4
"""Lines of a log's end that are shown, and how many of Python's stack among them."""
THREAD = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+ .*\(most recent call first\):")
"""What faulthandler writes above each thread's stack."""


def remedies(causes: Mapping[str, int]) -> list[str]:
    """Return what to do about failures, given how many stages failed of each cause, as the end of a sweep says it."""
    again = {cause: number for cause, number in causes.items() if cause not in ("diverged", "time")}
    said = []
    if again:
        options = ["all"] if len(again) == len(causes) else again
        words = " and then ".join(f"--retry {option}" for option in options)
        said.append(f"{count(sum(again.values()), 'stage')} failed; the same command with {words} runs them once more")
    if late := causes.get("time"):
        said.append(f"{count(late, 'stage')} ran out of time: {REMEDIES['time']}")
    if diverged := causes.get("diverged"):
        said.append(f"{count(diverged, 'training')} diverged: {REMEDIES['diverged']}")
    return said


@dataclass
class Group:
    """Stages that failed for the same reason."""

    cause: str
    message: str
    """The reason, its numbers and paths left out."""
    example: str
    stages: list[str] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    """The places, among the plan's cells, of those that a stage of this group is or holds back."""
    condition: Condition | None = None
    log: str = ""


def group_failures(saved: SavedPlan, store: Store, standing: Standing) -> list[Group]:
    """Group what failed by cause and message, the group that holds most cells first."""
    blocked = standing.blocked(saved.plan)
    groups: dict[tuple[str, str], Group] = {}
    of_stage: dict[str, Group] = {}
    for key, state in standing.states.items():
        if state.name not in FAILED:
            continue
        name = reason(state)
        if name not in groups:
            stage = saved.plan.stages[key]
            log = log_of(store.folder(stage.kind, key), state)
            groups[name] = Group(*name, f"{stage.label}: {state.detail}", log=str(log or ""))
        groups[name].stages.append(key)
        of_stage[key] = groups[name]
    for place, cell in enumerate(saved.cells):
        if blocked.get(cell.key) in of_stage:
            of_stage[blocked[cell.key]].cells.append(place)
    if groups:
        cells = [cell for cell, _ in saved.places()]
        axes = [axis for axis in saved.axes if axis != "ticket_seed" or _own(cells)]
        for group in groups.values():
            group.condition = smallest_condition(axes, cells, group.cells) if group.cells else None
    return sorted(groups.values(), key=lambda group: -len(group.cells))


def _own(cells: list[dict[str, str]]) -> bool:
    """Return whether tickets have seeds of their own, and not just the cells'."""
    seen: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        seen[cell["seed"]].add(cell["ticket_seed"])
    return any(tickets != {seed} for seed, tickets in seen.items())


def log_of(folder: Folder, state: State) -> Path | None:
    """Return the log of a stage's newest attempt if there is one: of several processes', that of the one at fault."""
    rank = (folder.end(state.generation) or {}).get("rank", 0)
    path = folder.attempt(state.generation) / (f"log-{rank}" if rank else "log")
    return path if path.exists() else None


def halted(found: Reached, plan: Plan, store: Store) -> list[str]:
    """Return what to say of a sweep that its failures ended: the cause with an example, its log, and what to do."""
    said = [f"stopped: {found}"]
    if (stage := plan.stages.get(found.key)) is not None:
        folder = store.folder(stage.kind, stage.key)
        log = log_of(folder, state_of(folder, Observer()))
        said += [f"  log: {short_path(log)}"] if log else []
    return [*said, f"  {REMEDIES[found.cause]}"] if found.cause in REMEDIES else said


def last_lines(log: Path) -> list[str]:
    """Return the last lines of a log; of the stacks that a dying process leaves, the innermost calls of one thread.

    That is the one which was at work, else the main one, whose stack comes last.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    said: list[str] = []
    stacks: list[tuple[bool, list[str]]] = []
    for line in filter(str.strip, text.splitlines()):
        if match := THREAD.match(line):
            stacks.append((match[1].startswith("Current"), []))
        elif stacks and line.startswith("  File "):
            stacks[-1][1].append(line)
        elif not line.startswith("Extension modules: "):
            said.append(line)
    if not stacks:
        return said[-SHOWN:]
    at_work = next((calls for current, calls in stacks if current), stacks[-1][1])
    return said[-(SHOWN - FRAMES) :] + at_work[:FRAMES]


def look_at(stage: Stage, state: State, store: Store, sweep: str) -> list[str]:
    """Return what to show of a stage that was given up since its trainer crashed or stalled; nothing of others."""
    if state.cause not in CRASHED:
        return []
    log = log_of(store.folder(stage.kind, stage.key), state)
    return [*quoted(log), f"look at it alone: {debugged(sweep, stage.key, store)}", REMEDIES[state.cause]]


def quoted(log: Path | None) -> list[str]:
    """Return the last lines of a log, marked as what they are."""
    return [f"| {line}" for line in last_lines(log)] if log else []


def debugged(sweep: str, key: str, store: Store, *more: object) -> str:
    """Return the command that runs a stage alone, in its own process; `more` are further options that it needs."""
    return command("debug", sweep, "--like", key[:8], *more, store=store.root)
