"""Leases on a shared file system: one claim file per attempt, heartbeats counted by file size, no clocks compared.

A stage's claims are taken by `take` and renewed by its supervisor. A `Lease` is the same for anything else that one
process at a time may do, renewed by a thread.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
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
    """Claim -> its size, since when it has had it, and when it was last looked at."""
    _beating: set[Path] = field(default_factory=set)

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
        lease = max(self.lease, owner.lease if owner else 0.0)
        known, since, last = self._seen.get(claim, (size, now, now))
        away = now - last > lease / 2
        if size != known or away:
            since = now
        if size != known and not away:
            self._beating.add(claim)
        elif now - since > lease / 2:
            self._beating.discard(claim)
        self._seen[claim] = (size, since, now)
        return now - since > lease

    def beating(self, claim: Path) -> bool:
        """Return whether the looks of the last half of a lease have seen a claim's heartbeat move."""
        return claim in self._beating


def beat(path: Path) -> bool:
    """Append a heartbeat to a file; return False where somebody has removed it, and leave it away."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:
        return False
    with open(descriptor, "ab") as file:
        file.write(b".")
    return True


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
        return beat(self.folder.claim_path(self.generation)) and self.current()

    def current(self) -> bool:
        """Return whether this generation is the newest."""
        return Folder.listed(self.folder.path).generation == self.generation

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


@dataclass
class Lease:
    """The right to do one thing that one process at a time may do, such as to submit a sweep's workers.

    Its files are claims in a folder of its own; those of earlier holders are removed. A holder that died on this
    machine loses it at once, any other one when its heartbeat has stood still for `length` seconds. A holder that was
    frozen, or whose host was cut off, sees in `held` that another has it.
    """

    folder: Path
    length: float = LEASE
    observer: Observer = field(default_factory=Observer)
    """What is known of other holders' heartbeats, for all leases that are given the same observer."""
    longest: float = math.inf
    """Seconds after which it is renewed no more: who holds it for longer hangs, and is to lose it to the next."""
    claim: Claim | None = None
    _released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.observer = replace(self.observer, lease=self.length)  # with the same memory

    def acquire(self) -> bool:
        """Take it where nobody has it, or who had it is known to be dead; return whether that was done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before = Folder.listed(self.folder)
        newest = before.generation
        if newest and before.end(newest) is None and not self.observer.lost(before.claim_path(newest)):
            return False
        claim = take(before, newest, Owner.me(lease=self.length))
        if claim is None:
            return False
        if not claim.current():  # frozen since it looked, this has taken a number that was cleared away
            before.claim_path(claim.generation).unlink(missing_ok=True)
            return False
        for name in before.names:
            with contextlib.suppress(OSError):
                if name.startswith("claim-"):
                    (self.folder / name).unlink()
                elif name.startswith("attempt-"):
                    shutil.rmtree(self.folder / name)
        self.claim, self._released = claim, threading.Event()
        threading.Thread(target=self._renew, args=(claim, self._released), daemon=True).start()
        return True

    def settle(self, say: Callable[[str], None], sleep: Callable[[float], object] = time.sleep) -> bool:
        """Acquire it, waiting until its holder gives it back, shows a heartbeat, or is known to be dead."""
        said = False
        while not (self.acquire() or self.beating):
            if not said:
                said = True
                wait = f"to end or show a heartbeat, for {self.length:.0f} s"
                say(f"waiting for {self.holder_name} {wait} ({self.folder})")
            sleep(min(0.5, self.length / BEATS_PER_LEASE / 4))
        return self.claim is not None

    @property
    def held(self) -> bool:
        """Return whether this has it still."""
        return self.claim is not None and self.claim.current()

    @property
    def generation(self) -> int:
        """Return its number among all who have had it, 0 where it has not been acquired."""
        return self.claim.generation if self.claim else 0

    @property
    def beating(self) -> bool:
        """Return whether another has it whose heartbeat this observer has seen to move."""
        return self.observer.beating(self._newest)

    @property
    def holder(self) -> Owner | None:
        """Return the newest holder; None where its file does not tell."""
        return Owner.read(self._newest)

    @property
    def holder_name(self) -> str:
        """Return the newest holder in words."""
        holder = self.holder
        return f"process {holder.processes[0].pid} on {holder.host}" if holder else "another process"

    def last(self) -> tuple[int, Mapping[str, Any] | None]:
        """Return the newest holder's number, 0 where there was none, and how it ended; None while it has not."""
        listed = Folder.listed(self.folder)
        return listed.generation, listed.end(listed.generation)

    def release(self, outcome: str = "released", **details: Any) -> None:
        """Give it back, and say how that went."""
        self._released.set()
        if self.held and self.claim:
            self.claim.end(outcome, **details)
        self.claim = None

    @property
    def _newest(self) -> Path:
        listed = Folder.listed(self.folder)
        return listed.claim_path(listed.generation)

    def _renew(self, claim: Claim, released: threading.Event) -> None:
        while not released.wait(self.length / BEATS_PER_LEASE) and time.monotonic() - claim.began < self.longest:
            with contextlib.suppress(OSError):  # a full or hanging file system: the next beat may come through
                if not claim.beat():
                    return
