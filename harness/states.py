"""What a stage's files say of it: to do, running, lost, stopped, failed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.claims import Observer
from harness.store import Folder
from harness.words import span

GIVE_UP_AFTER = 3
"""Attempts in a row that died without getting further, after which a stage counts as failed."""
GIVE_UP_UNEXPLAINED = 10
"""The same for attempts whose whole worker vanished, which is mostly the machine's doing and not the stage's."""
OUT_OF_TIME = 2
"""Attempts in a row that had a worker's whole time and kept nothing, after which the stage needs a worker with more."""
FAILED = ("failed", "diverged")
LACKING = ("oom", "time")
"""Causes of failure that a worker lifts which has clearly more memory, or time."""
SEARCH = "search"
EARLY = "stopped early"
"""A training that a search has given up on: no failure, and nothing that goes on by itself."""


@dataclass(frozen=True)
class State:
    """What a stage's files say at one moment."""

    name: str
    """todo, running, lost, failed, stopped, stopped early, diverged or done."""
    generation: int
    detail: str = ""
    cause: str = ""
    """Of a failure: code, input, oom, time, died, stalled or device; `search` of what was stopped early.

    Of what runs again, or waits for that: what the attempt before died of, if it did.
    """
    amount: float = 0
    """Where memory or time ran out: what was not enough, and of what: bytes of the machine's memory (ram) or its GPU's
    (gpu), or seconds of a time limit (time)."""
    resource: str = "ram"
    lost: float = 0.0
    """The most seconds that an attempt was given which was stopped."""
    host: str = ""
    """A host whose device failed on it, to be avoided where there is another."""
    epoch: int = 0
    """Of what was stopped early: after how many epochs."""

    @property
    def label(self) -> str:
        """Return the state as a table shows it."""
        return f"stopped@{self.epoch}" if self.name == EARLY else self.name

    @property
    def over(self) -> bool:
        """Return whether it stays as it is until somebody asks for another try."""
        return self.name in (*FAILED, EARLY)

    @property
    def claimable(self) -> bool:
        """Return whether a worker may take the stage."""
        return self.name in ("todo", "lost", "stopped")


def state_of(folder: Folder, observer: Observer) -> State:
    """Derive the state of a stage that has no usable result."""
    generation = folder.generation
    if generation == 0:
        return State("todo", 0)
    end = folder.end(generation)
    if end is None:
        if not observer.lost(folder.claim_path(generation)):
            return _again(folder, generation)
        tries = fruitless(folder, vanished=True)
        if tries >= GIVE_UP_UNEXPLAINED:
            detail = f"its worker vanished {tries} times in a row before the first checkpoint"
            return State("failed", generation, detail, cause="died")
        return State("lost", generation)
    return _ended(folder, generation, end)


def _ended(folder: Folder, generation: int, end: Mapping[str, Any]) -> State:
    outcome, detail = str(end.get("outcome")), str(end.get("message", ""))
    if outcome == "died" and (tries := fruitless(folder, vanished=False)) >= GIVE_UP_AFTER:
        return State("failed", generation, f"{detail} ({tries} times in a row)", cause=_crash(end))
    if outcome == "fault":
        if (tries := faults_in_a_row(folder)) >= GIVE_UP_AFTER:
            return State("failed", generation, f"{detail} ({tries} times in a row)", cause="device")
        return State("stopped", generation, detail, host=str(end.get("host", "")))
    if end.get("cause") == SEARCH:
        return State(EARLY, generation, detail, cause=SEARCH, epoch=int(end.get("epoch", 0)))
    if outcome in FAILED:
        cause = str(end.get("cause", outcome))
        return State(
            outcome,
            generation,
            detail,
            cause=cause,
            amount=int(end.get("memory", 0)),
            resource=str(end.get("resource", "ram")),
        )
    ends = [folder.end(n) or {} for n in range(1, generation + 1)]
    if late := _short_of_time(folder, ends):
        return State("failed", generation, *late, "time")
    if short := _short_of_memory(ends):
        return State("failed", generation, detail, "oom", int(short["memory"]), str(short.get("resource", "ram")))
    lost = max((float(e.get("seconds", 0.0)) for e in ends if e.get("outcome") == "stopped"), default=0.0)
    return State("stopped", generation, detail, cause=_crash(end) if outcome == "died" else "", lost=lost)


def _again(folder: Folder, generation: int) -> State:
    """Return the state of a stage that is being run, with how the attempt before came to its end if that is why."""
    before = (folder.end(generation - 1) or {}) if generation > 1 else {}
    if before.get("outcome") != "died":
        return State("running", generation)
    return State("running", generation, str(before.get("message", "")), cause=_crash(before))


def _crash(end: Mapping[str, Any]) -> str:
    """Return the cause of an end by which a trainer died: whether by itself, or since it did not go on."""
    return "stalled" if end.get("cause") == "stalled" else "died"


def _short_of_memory(ends: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the newest end for want of memory that nobody has lifted since: who has no more need not try again."""
    since = itertools.takewhile(lambda end: not end.get("released"), reversed(ends))
    return next((end for end in since if end.get("cause") == "oom" and end.get("memory")), {})


def _short_of_time(folder: Folder, ends: Sequence[Mapping[str, Any]]) -> tuple[str, str, float] | None:
    """Return what to say, the cause and the longest limit of the newest attempts whose whole limit was not enough.

    None where they are too few since the last checkpoint, or since somebody lifted it. What ended for another reason
    is passed over.
    """
    found: list[Mapping[str, Any]] = []
    if sum(1 for end in ends if end.get("limit")) < OUT_OF_TIME:
        return None
    for generation, end in reversed(list(enumerate(ends, 1))):
        if end.get("released") or any(folder.attempt(generation).glob("checkpoint-*")):
            break
        found += [end] if end.get("limit") else []
    if len(found) < OUT_OF_TIME:
        return None
    limit = max(float(end["limit"]) for end in found)
    needs = max(float(end.get("needs", 0.0)) for end in found)
    known = f"about {span(needs)}" if needs > limit else f"more than {span(limit)}"
    said = f"{len(found)} attempts kept nothing within the time limit of {span(limit)}; it needs {known}"
    return said, "time", limit


def faults_in_a_row(folder: Folder) -> int:
    """Count the newest attempts in a row in which a device failed."""
    ends = (folder.end(generation) for generation in range(folder.generation, 0, -1))
    return sum(1 for _ in itertools.takewhile(lambda end: end is not None and end.get("outcome") == "fault", ends))


def fruitless(folder: Folder, vanished: bool) -> int:
    """Count the newest attempts in a row, without a checkpoint of their own, that died; or those that vanished.

    The others of the two are passed over: a machine that is switched off says nothing about a crash.
    """
    count = 0
    for generation in range(folder.generation, 0, -1):
        end = folder.end(generation)
        attempt = folder.attempt(generation)
        if (end is not None and end.get("outcome") != "died") or (
            attempt.is_dir() and any(attempt.glob("checkpoint-*"))
        ):
            break
        count += (end is None) == vanished
    return count
