"""Efficiency of a sweep's jobs, as `seff` tells it of one job: requested, used by kind of stage, and what to request.

The store's own records tell of memory and CPUs; accounting, where there is one, of the jobs' time and of all processes
of a job together.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.allocation import of_cluster
from harness.index import Done, Standing
from harness.launch.slurm import Slurm
from harness.launch.starts import SIGNED_IN
from harness.plan import Plan
from harness.states import EARLY
from harness.terminal import short_path
from harness.words import count, read_memory, span

FEWEST = 5
"""Stages below which nothing is advised."""
EXCESS = 2.0
"""A request is too large from this many times the recommended one on."""
TIGHT = 0.9
"""Memory is close to its limit from this share of the request on."""
MEMORY_MARGIN, LEAST_MARGIN = 1.5, 2**29
"""Recommended memory is the peak times the one, and at least the other above the peak: bytes."""
CPU_MARGIN, TIME_MARGIN, TIME_UNIT = 1.25, 2.0, 1800
SMALL = 0.05
"""A kind of stage with a smaller share of the time has no say in how many CPUs are recommended."""
RESULTS = ("diverged", EARLY)
"""States of stages left that are what came out of them, so that no later job runs them."""
AT_ONCE = 1000
"""Jobs that sacct is asked about in one call."""


@dataclass(frozen=True)
class Usage:
    """What the finished stages of a kind used, a process each."""

    stages: int
    seconds: float
    """Of all their attempts."""
    longest: float
    memory: int
    """The highest peak of a trainer, in bytes."""
    cpus: float
    """CPUs kept busy, as a mean over their time; 0 where no result says."""
    gpu_memory: int
    """The highest peak that torch allocated, in bytes; 0 without a GPU."""

    @classmethod
    def of(cls, done: Sequence[tuple[Done, int]]) -> Usage:
        """Sum up stages, each with the number of processes that shared its job's memory."""
        known = [(each.cpus, each.seconds) for each, _ in done if each.cpus]
        time = sum(seconds for _, seconds in known)
        return cls(
            len(done),
            sum(each.seconds for each, _ in done),
            max(each.seconds for each, _ in done),
            max(each.memory // processes for each, processes in done),
            sum(cpus * seconds for cpus, seconds in known) / time if time else 0.0,
            max(each.gpu_memory for each, _ in done),
        )


@dataclass(frozen=True)
class JobTimes:
    """What accounting tells of the jobs."""

    jobs: int
    elapsed: float
    """Seconds of all jobs together."""
    busy: float
    """The share of them in which stages ran."""
    longest: float
    queued: float
    """The median of the seconds between a job's eligibility and its start."""
    memory: int
    """The highest peak of a job's processes, for each that was asked for; shared pages may be in it several times."""


@dataclass(frozen=True)
class Efficiency:
    """Used and requested."""

    kinds: Mapping[str, Usage]
    launcher: Slurm | None = None
    """None: of stages run by whomever, for which nothing was requested."""
    jobs: JobTimes | None = None
    """None where no accounting answers, or it was not asked."""
    complete: bool = False
    """Whether nothing is left that a later job may run, so that what was used is all that will be."""
    larger: bool = False
    """Whether stages ran in jobs with more memory, of the profile's `larger:`."""

    @property
    def stages(self) -> int:
        """Return how many stages were measured."""
        return sum(usage.stages for usage in self.kinds.values())

    @property
    def memory(self) -> int:
        """Return the peak of a process's memory."""
        return max(usage.memory for usage in self.kinds.values())

    @property
    def gpu_memory(self) -> int:
        """Return the peak of a GPU's memory."""
        return max(usage.gpu_memory for usage in self.kinds.values())

    def longest(self, cpus: int) -> float:
        """Return the seconds of the longest stage with so many CPUs: slower by what it kept busy beyond them."""
        return max(usage.longest * max(1.0, usage.cpus / cpus) for usage in self.kinds.values())

    @property
    def cpus(self) -> float:
        """Return the CPUs kept busy by the kind of stage that uses most of them, small ones left out."""
        total = sum(usage.seconds for usage in self.kinds.values())
        return max(usage.cpus for usage in self.kinds.values() if usage.seconds >= SMALL * total)

    def recommended(self) -> dict[str, str | int]:
        """Return the profile's keys with other values than its own: of requests clearly too large, and of tight ones.

        None from fewer than `FEWEST` stages, or while stages are left, or failed, that may need more.
        """
        if self.launcher is None or not self.complete or self.stages < FEWEST:
            return {}
        profile, found = self.launcher.profile, dict[str, str | int]()
        enough = max(MEMORY_MARGIN * self.memory, self.memory + LEAST_MARGIN, self.jobs.memory if self.jobs else 0)
        if profile.bytes and not self.larger:
            gib = math.ceil(enough / 2**30)
            if profile.bytes >= EXCESS * gib * 2**30 or self.memory >= TIGHT * profile.bytes:
                found["memory"] = f"{gib}G"
        cpus = math.ceil(CPU_MARGIN * self.cpus)
        limit = 60 * profile.minutes or (math.inf if profile.time else 0)  # the partition's own is not known
        if cpus and profile.cpus >= EXCESS * cpus and limit >= TIME_MARGIN * self.longest(cpus):
            found["cpus"] = cpus
        if self.jobs and profile.minutes:
            needed = TIME_MARGIN * max(self.jobs.longest, self.longest(cpus if "cpus" in found else profile.cpus))
            seconds = math.ceil(max(needed, 1) / TIME_UNIT) * TIME_UNIT
            if 60 * profile.minutes >= EXCESS * seconds:
                found["time"] = f"{seconds // 3600}:{seconds // 60 % 60:02}:00"
        return found

    def lines(self) -> list[str]:
        """Return what was used of what was requested, and what to write into the profile instead."""
        if self.launcher is None:
            return []
        profile, document = self.launcher.profile, self.launcher.document
        used = [f"memory {_of(self.memory, profile.bytes)} a process", f"CPUs {self.cpus:.1f} of {profile.cpus}"]
        used[1:] = used[1:] if self.cpus else [f"CPUs not measured, of {profile.cpus}"]
        if profile.gpus:
            whole = read_memory(profile.gpu_memory) if profile.gpu_memory else 0
            used.append(f"GPU memory {_of(self.gpu_memory, whole)}, utilisation not measured")
        said = [f"used of what was requested ({count(self.stages, 'stage')}): {'; '.join(used)}"]
        if self.jobs:
            jobs, limit = self.jobs, f" of {profile.time}" if profile.minutes else ""
            said.append(
                f"{count(jobs.jobs, 'job')}: stages ran in {jobs.busy:.0%} of their {span(jobs.elapsed)}; "
                f"in the queue {span(jobs.queued)} (median); the longest {span(jobs.longest)}{limit}"
            )
        if self.larger and self.complete:
            said.append("stages ran in jobs with more memory (larger:), so no other memory is recommended")
        if advice := self.recommended():
            kept = document is None or Path(document.file).is_relative_to(self.launcher.store.root)
            file = "the profile" if kept or document is None else short_path(Path(document.file))
            keys = [f"{key}: {value}{self._line(key)}" for key, value in advice.items()]
            tight = "; its memory is close to the limit" if self.memory >= TIGHT * profile.bytes > 0 else ""
            bits = "; on a CPU, other threads may change last bits" if "cpus" in advice and not profile.gpus else ""
            part = " for these cells alone" if self.launcher.plan else ""
            said.append(f"recommended in {file}{part}: {', '.join(keys)}{tight}{bits}")
        return said

    def _line(self, key: str) -> str:
        document = self.launcher.document if self.launcher else None
        mark = document.mark((key,)) if document and key in document.values else None
        return f" (line {mark.line})" if mark else " (not set)"

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values; bytes and seconds."""
        profile = self.launcher.profile if self.launcher else None
        return {
            "requested": profile and {"memory": profile.bytes, "cpus": profile.cpus, "seconds": 60 * profile.minutes},
            "used": {kind: asdict(usage) for kind, usage in self.kinds.items()},
            "jobs": self.jobs and asdict(self.jobs),
            "gpu_utilisation": None,
            "recommended": self.recommended(),
        }


def _of(used: int, requested: int) -> str:
    return f"{used / 2**30:.1f}{f' of {requested / 2**30:.1f}' if requested else ''} GiB"


def efficiency(plan: Plan, standing: Standing, launcher: Slurm | None) -> Efficiency | None:
    """Measure a plan's finished stages: with a launcher, those that jobs of its request ran; None where there are none.

    Accounting is asked once nothing is left to do.
    """
    jobs = dict(_jobs(launcher)) if launcher else None
    kinds: dict[str, list[tuple[Done, int]]] = {}
    for key, done in standing.done.items():
        if key in plan.stages and done.memory and (jobs is None or done.job in jobs):
            kind = plan.stages[key].kind  # what is no training may also be run by a job of a single process
            kinds.setdefault(kind, []).append((done, jobs[done.job] if jobs and kind == "train" else 1))
    if not kinds:
        return None
    used = {kind: Usage.of(done) for kind, done in kinds.items()}
    blocked = standing.blocked(plan)
    settled = standing.states.keys() <= blocked.keys()
    complete = settled and all(standing.states[key].name in RESULTS for key in blocked.values())
    if launcher is None or jobs is None:
        return Efficiency(used)
    larger = any(launcher.has_more_memory(size.step) for _, size, _ in launcher.submissions())
    seconds = defaultdict[str, float](float)
    for each, _ in itertools.chain(*kinds.values()):
        seconds[each.job] += each.seconds
    times = job_times(launcher, jobs, seconds) if settled else None
    return Efficiency(used, launcher, times, complete, larger)


def _jobs(launcher: Slurm) -> Iterator[tuple[str, int]]:
    """Yield the jobs that were submitted with the request as it is now, each with its processes on a node."""
    for folder, size, tag in launcher.submissions():
        if size.step == 0 and tag == launcher.tag(size):
            here = launcher.profile.on_node(size.world)
            yield from ((file.name.removeprefix(SIGNED_IN), here) for file in folder.glob(f"{SIGNED_IN}*"))


def job_times(launcher: Slurm, jobs: Mapping[str, int], seconds: Mapping[str, float]) -> JobTimes | None:
    """Return what accounting says of jobs, None where it says nothing.

    `jobs`: their processes on a node, by number; `seconds`: of the stages that each ran. Of a part of a sweep, the jobs
    of other parts are left out.
    """
    fields = "JobIDRaw,JobName,ElapsedRaw,Eligible,Start,MaxRSS"
    told = list[str]()
    numbers = sorted(jobs)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        for first in range(0, len(numbers), AT_ONCE):
            command = ["sacct", "--jobs", ",".join(numbers[first : first + AT_ONCE]), "--duplicates", "--noheader"]
            command += ["--parsable2", "--format", fields]
            told += launcher.run(of_cluster(command, launcher.cluster)).splitlines()
    rows = [line.split("|") for line in told if line.count("|") == 5]
    mark = f"{launcher.mark}.{launcher.bound}." if launcher.plan else f"{launcher.mark}."
    own = {row[0] for row in rows if row[1].startswith(mark)} & jobs.keys()
    runs = [row for row in rows if row[0] in own]
    if not runs:
        return None
    elapsed = [int(row[2]) for row in runs if row[2].isdigit()] or [0]
    busy = min(1.0, sum(seconds.get(number, 0.0) for number in own) / max(1, sum(elapsed)))
    waits = [max(0, int(row[4]) - int(row[3])) for row in runs if row[3].isdigit() and row[4].isdigit()]
    peaks = [0]
    for row in rows:
        if (number := row[0].partition(".")[0]) in own:
            with contextlib.suppress(ValueError):  # no amount, or less than a MiB
                peaks.append(read_memory(row[5]) // jobs[number])
    return JobTimes(len(own), sum(elapsed), busy, max(elapsed), statistics.median(waits or [0]), max(peaks))
