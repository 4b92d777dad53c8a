"""Where workers live: a launcher submits them, counts them and ends them, and never decides what they do."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.claims import Owner
from harness.words import read_span

PROFILE, ARGV = "profile.yaml", "launch.json"
"""Files that say how a sweep's workers were last submitted to a cluster."""


@dataclass(frozen=True, order=True)
class Size:
    """What a worker has: processes that train together, and its step on the ladder of more memory or time."""

    world: int = 1
    step: int = 0

    def __str__(self) -> str:
        return f"w{self.world}m{self.step}"

    @classmethod
    def read(cls, text: str) -> Size | None:
        """Return the size that a text names as `str` does; None where it names none."""
        found = re.fullmatch(r"w(\d+)m(\d+)", text)
        return cls(int(found[1]), int(found[2])) if found else None


@dataclass(frozen=True)
class Job:
    """A worker as its launcher sees it: submitted, and not yet at its end."""

    number: str
    """As the scheduler counts: of an array's task, one of its own."""
    size: Size
    state: str
    """pending, running or leaving."""
    reason: str = ""
    """Why it waits."""
    inner: str = ""
    """The number that the job itself goes by, where that is another."""
    outdated: bool = False
    """Whether it was submitted with other settings than those of now."""
    name: str = ""
    """What it was submitted as, where the queue does not show it and nobody says that it has ended."""
    cluster: str = ""
    """The cluster that it was submitted to, empty where nobody says."""
    bound: str = ""
    """A mark of the plan that it is bound to."""
    since: float | None = None
    """When it was submitted, in seconds since 1970; None where nobody says."""

    def runs(self, owner: Owner) -> bool:
        """Return whether it is the job that an owner is part of: numbers are of one cluster."""
        same = not (self.cluster and owner.cluster) or self.cluster == owner.cluster
        return bool(owner.job_number) and same and owner.job_number == (self.inner or self.number)


def until(argv: Sequence[str]) -> float:
    """Return the seconds after which workers that are told so leave; infinity where they are told nothing."""
    return read_span(argv[argv.index("--until") + 1]) if "--until" in argv else math.inf


class Launcher(Protocol):
    """Submits workers somewhere. Everything it must remember lies in the store or with the scheduler."""

    @property
    def most(self) -> int:
        """Return how many workers of a size there may be at once."""

    def submit(self, size: Size, number: int) -> Iterable[str]:
        """Submit workers; yield what was submitted, in words.

        Raises UserError where that is refused, SchedulerUnavailable where nobody answers: it may be submitted or not.
        """

    def poll(self) -> list[Job]:
        """Return the sweep's workers that wait or run. Raises SchedulerUnavailable where nobody answers."""

    def exclude(self, jobs: Sequence[Job]) -> list[str]:
        """Keep jobs, those that wait too, from nodes on which workers fail at their start; say which, and why."""

    def in_vain(self, size: Size) -> str:
        """Return why no more workers should be submitted: those before ended at their start. Empty: they may."""

    def never(self, job: Job) -> str:
        """Return why a waiting worker can never start, empty where it may."""

    def waits(self, job: Job) -> str:
        """Return what a waiting worker waits for, in words; empty where nobody says."""

    def cancel(self, jobs: Sequence[Job]) -> str:
        """End workers: they save and leave. Return what the scheduler complains of; some may just have ended.

        Raises SchedulerUnavailable where nobody answers.
        """

    def step_for(self, amount: float, resource: str) -> int | None:
        """Return the step that has clearly more memory, or time, than was not enough; None where there is none."""

    def size_for(self, world: int, step: int) -> Size:
        """Return the size of the workers that train with so many processes, on a step of memory."""

    @property
    def idle(self) -> float | None:
        """Return the seconds after which a worker with nothing to do leaves; None: it waits."""

    def size_of(self, owner: Owner, jobs: Sequence[Job]) -> Size | None:
        """Return the size of the worker that runs a stage, where it is one of `jobs`; None: it is another's."""

    def begin(self) -> None:
        """Write down what a later look needs, of this process or another, to submit workers as this one does."""

    def later(self) -> str:
        """Say who submits the workers of what becomes ready later, where nobody follows; empty: none are needed."""
