"""Who works on a stage: claims by generation, heartbeats as a counter, and what can be known of another's life."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.allocation import job, job_cluster
from harness.machine import machine
from harness.store import Folder, is_number, publish, read_json, write_whole

LEASE = 180.0
"""Seconds without a heartbeat after which a claim is lost."""
BEATS_PER_LEASE = 6


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one with the same number by its start time (clock ticks since boot)."""

    pid: int
    start: int

    def gone(self) -> bool:
        """Return True only where it is certain that the process is no more; hidden or unreadable counts as there."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        now = start_time(self.pid)
        return now is not None and now != self.start


def start_time(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot; None where it cannot be read; -1 for a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True)
class Owner:
    """Who holds a claim: a supervisor, its trainer, and the machine their numbers belong to."""

    host: str
    boot: str
    space: str
    processes: tuple[Process, ...]
    job: str = ""
    lease: float = 0.0
    """Seconds without a heartbeat after which it wants to be taken for dead, at the earliest."""
    memory: int = 0
    """Bytes of the machine's memory that one of its processes may use, 0 where nobody said."""
    limit: float = 0.0
    """The time limit of its worker in seconds, where the stage was given nearly all of it."""
    starved: bool = False
    """Whether memory had run out in its job before: then a scheduler's word of that says nothing of this stage."""
    cluster: str = ""
    """The Slurm cluster of its job, empty where the job does not say: job numbers are of one cluster."""

    @classmethod
    def me(cls, *trainers: int, lease: float = 0.0, memory: int = 0, starved: bool = False) -> Owner:
        """Return this process, and its trainers here, as an owner."""
        pids = [os.getpid(), *trainers]
        processes = tuple(Process(pid, start_time(pid) or 0) for pid in pids)
        return cls(*machine(), processes, job(), lease, memory, starved=starved, cluster=job_cluster())

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """Return the owner that a claim file names."""
        try:
            return cls.load(json.loads(path.read_bytes().partition(b"\n")[0]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    @classmethod
    def load(cls, value: dict[str, Any]) -> Owner:
        """Return an owner from what a file says of it. Raises KeyError or TypeError where that is none."""
        processes = tuple(Process(**p) for p in value["processes"])
        owner = cls(**{**value, "processes": processes})
        texts = (owner.host, owner.boot, owner.space, owner.job, owner.cluster)
        numbers = (owner.lease, owner.memory, owner.limit)
        pids = all(type(p.pid) is type(p.start) is int and 0 < p.pid < 2**31 for p in processes)
        if not processes or not pids or not all(type(t) is str for t in texts) or not all(map(is_number, numbers)):
            raise TypeError("an owner has other fields")
        return owner

    @property
    def is_here(self) -> bool:
        """Return whether its process numbers mean the same here."""
        return (self.host, self.boot, self.space) == machine()

    def certainly_gone(self) -> bool:
        """Return True where all its processes ran on this machine and are gone, or its job was started anew as ours.

        Never proves that it lives.
        """
        return (self.is_here and all(process.gone() for process in self.processes)) or self._restarted()

    @property
    def job_number(self) -> str:
        """Return the number of its scheduler's job, empty where it runs in none."""
        return self.job.partition(".")[0]

    def _restarted(self) -> bool:
        number, _, restarts = self.job.partition(".")
        mine, _, again = job().partition(".")
        same = mine == number and self.cluster in ("", job_cluster())
        return bool(mine) and same and restarts.isdigit() and int(again) > int(restarts)


@dataclass
class Observer:
    """Judges other workers' claims: dead at once where that is certain, else by a heartbeat that does not move.

    Only this process's monotonic clock is used, never a file's time. A look later than half a lease after the last
    one (this process was frozen, the file system hung) starts the watch anew.
    """

    lease: float = LEASE
    clock: Callable[[], float] = time.monotonic
    _seen: dict[Path, tuple[int, float, float]] = field(default_factory=dict)

    def lost(self, claim: Path) -> bool:
        """Return whether a claim's owner must be taken for dead."""
        owner = Owner.read(claim)
        if owner is not None and owner.certainly_gone():
            return True
        try:
            with claim.open("rb") as file:  # open and fstat: NFS revalidates on open
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return False
        except IsADirectoryError:  # damage: no worker could have made it, or could say that it lives
            return True
        now = self.clock()
        known, since, last = self._seen.get(claim, (-1, now, now))
        if size != known or now - last > self.lease / 2:
            since = now
        self._seen[claim] = (size, since, now)
        return now - since > max(self.lease, owner.lease if owner else 0.0)


@dataclass(frozen=True)
class Claim:
    """A generation of a stage that is ours, as long as no newer one exists."""

    folder: Folder
    generation: int
    base_edition: int
    """The newest result's number when the claim was taken; only the next number may be published."""
    began: float = field(default_factory=time.monotonic)

    @property
    def attempt(self) -> Path:
        """Return the folder that this generation may write into."""
        return self.folder.attempt(self.generation)

    @property
    def earlier(self) -> list[Path]:
        """Return the attempts before this one, newest first."""
        return [self.folder.attempt(g) for g in range(self.generation - 1, 0, -1)]

    def beat(self) -> bool:
        """Add one heartbeat; return False where a newer generation has taken over."""
        with open(self.folder.claim_path(self.generation), "ab") as file:
            file.write(b".")
        return self.current()

    def current(self) -> bool:
        """Return whether no newer generation exists."""
        return not self.folder.claim_path(self.generation + 1).exists()

    def end(self, outcome: str, **details: Any) -> None:
        """Say how this generation ended, after how many seconds; the claim is spent.

        Outcomes: published, stopped, died, failed, fault, diverged or gave up.
        """
        seconds = round(time.monotonic() - self.began, 3)
        end_attempt(self.folder, self.generation, {"outcome": outcome, "seconds": seconds, **details})


def end_attempt(folder: Folder, generation: int, said: Mapping[str, Any]) -> None:
    """Write down how an attempt ended, unless that is known already."""
    path = folder.attempt(generation) / "end.json"
    if read_json(path) is None:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps(said, indent=1).encode())


def take(folder: Folder, generation: int, owner: Owner) -> Claim | None:
    """Try to create the claim after `generation`; None where somebody else was first."""
    folder.path.mkdir(parents=True, exist_ok=True)
    mine = folder.claim_path(generation + 1)
    if not publish(mine, json.dumps(asdict(owner)).encode() + b"\n"):
        return None
    folder.attempt(generation + 1).mkdir(exist_ok=True)
    return Claim(folder, generation + 1, folder.edition)
