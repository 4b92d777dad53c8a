"""Why a worker vanished, as its scheduler tells it: memory, pre-emption, time limit, a fallen node, or a person."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from harness.allocation import Shell, on_cluster, shell
from harness.claims import Owner, end_attempt
from harness.errors import SchedulerUnavailable
from harness.store import Folder
from harness.words import read_memory

CAUSES = {
    "PREEMPTED": "pre-empted",
    "TIMEOUT": "its time limit was reached",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node failed",
    "CANCELLED": "cancelled",
    "REQUEUED": "requeued",
    "DEADLINE": "its deadline passed",
}
"""Ends of a job that are no fault of a stage."""
OVER = frozenset({*CAUSES, "OUT_OF_MEMORY", "FAILED", "COMPLETED"})
ENDED = (OVER - {"REQUEUED"}) | {"REVOKED"}
"""States of a job that runs no more and waits for nothing; whatever else Slurm says, it may still run."""


@dataclass(frozen=True)
class Fate:
    """How a job ended."""

    state: str
    memory: int = 0
    """The bytes that it was given, 0 where nobody says."""


def fate(job: str, run: Shell = shell) -> Fate | None:
    """Return how a job's run (`4711.0`: the number, and how often it was started before) ended; None where unknown.

    A step that ran out of memory says so even where its job is only FAILED. Without accounting the controller is
    asked, which knows a job's last run only, and only for a while.
    """
    number, _, restarts = job.partition(".")
    with contextlib.suppress(OSError, subprocess.SubprocessError, SchedulerUnavailable, ValueError):
        fields = "JobIDRaw,State,ReqMem"
        told = run(["sacct", "--jobs", number, "--duplicates", "--noheader", "--parsable2", "--format", fields])
        if found := _from_accounting(told, number, int(restarts or 0)):
            return found
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        told = run(["scontrol", "show", "job", "--oneliner", number])
        values = dict(re.findall(r"(\w+)=(\S*)", told))
        if int(values.get("Restarts", 0)) > int(restarts or 0):
            return Fate("REQUEUED")
        if values.get("JobState") in OVER:
            return Fate(values["JobState"], _bytes(values.get("MinMemoryNode", "")))
    return None


def _from_accounting(told: str, number: str, restarts: int) -> Fate | None:
    """Pick one run of a job out of sacct's lines, each of which is a job or one of its steps."""
    runs: list[list[list[str]]] = []
    for line in told.splitlines():
        name, state, memory = line.split("|")
        if name == number:
            runs.append([])
        if runs and name.partition(".")[0] == number:
            runs[-1].append([name, state.split()[0], memory])
    if not runs:
        return None
    if restarts >= len(runs):  # accounting lags behind
        return None
    rows = runs[restarts]
    states = {state for _, state, _ in rows}
    state = "OUT_OF_MEMORY" if "OUT_OF_MEMORY" in states else rows[0][1]
    return Fate(state, _bytes(rows[0][2])) if state in OVER else None


def _bytes(text: str) -> int:
    """Return a request for memory in bytes, which older Slurm marks as of a node or a CPU; 0 where there is none."""
    with contextlib.suppress(ValueError):
        return read_memory(text.rstrip("nc"))
    return 0


def ended(jobs: Collection[str], run: Shell = shell, ours: Callable[[str], bool] = lambda record: True) -> set[str]:
    """Return which jobs (`4711`, or `4711_3` of an array) are known to have ended.

    Accounting is asked first, then the controller: a job that it no longer knows has ended too, as has one whose
    number another job has by now, whose record is not `ours`. Where neither answers, nothing is known.
    """
    numbers = sorted({job.partition("_")[0] for job in jobs})
    over = set[str]()
    with contextlib.suppress(OSError, subprocess.SubprocessError, SchedulerUnavailable):
        asked = ["--allocations", "--noheader", "--parsable2", "--format", "JobID,State"]
        for line in run(["sacct", "--jobs", ",".join(numbers), *asked]).splitlines():
            name, _, state = line.partition("|")
            if state.partition(" ")[0] in ENDED:
                over.update(_tasks(name))
    for number in sorted({job.partition("_")[0] for job in jobs if job not in over}):
        try:
            told = run(["scontrol", "show", "job", "--oneliner", number])
        except (OSError, subprocess.SubprocessError) as error:
            if "Invalid job id" in str(getattr(error, "stderr", "")):
                over.update(job for job in jobs if job.partition("_")[0] == number)
            continue
        records = [line for line in told.splitlines() if "JobState=" in line]
        there = set[str]()
        for values in (dict(re.findall(r"(\w+)=(\S*)", record)) for record in filter(ours, records)):
            if values["JobState"] not in ENDED:
                tasks = values.get("ArrayTaskId")
                there.update([values.get("JobId", ""), *_tasks(f"{number}_[{tasks}]" if tasks else number)])
        if records:
            over.update(job for job in jobs if job.partition("_")[0] == number and job not in there)
    return over & set(jobs)


def _tasks(name: str) -> Iterator[str]:
    """Yield the jobs that a name of Slurm's means: `7`, `7_3`, or `7_[0-2,5%4]` of an array's tasks that wait."""
    number, _, tasks = name.partition("_")
    if not tasks:
        yield number
    for part in filter(None, tasks.strip("[]").partition("%")[0].split(",")):
        if span := re.fullmatch(r"(\d+)(?:-(\d+))?", part):
            yield from (f"{number}_{task}" for task in range(int(span[1]), int(span[2] or span[1]) + 1))


def tell_loss(folder: Folder, generation: int, run: Shell = shell) -> bool:
    """Write down for a lost attempt what its scheduler knows of its end; return whether it knew anything."""
    owner = Owner.read(folder.claim_path(generation))
    if owner is None or not owner.job or (found := fate(owner.job, on_cluster(owner.cluster, run))) is None:
        return False
    said: dict[str, object]
    if found.state == "OUT_OF_MEMORY" and owner.starved:
        return False
    if found.state == "OUT_OF_MEMORY":
        said = {"outcome": "failed", "cause": "oom", "resource": "ram", "memory": owner.memory or found.memory}
        message = f"the scheduler ended job {owner.job}: out of memory"
    elif found.state in CAUSES:
        said, message = {"outcome": "stopped", "cause": found.state.lower()}, f"job {owner.job}: {CAUSES[found.state]}"
        said |= {"limit": owner.limit} if found.state == "TIMEOUT" and owner.limit else {}
    else:  # it ended by itself, or by a signal of nobody's: as if the worker had died
        return False
    end_attempt(folder, generation, {**said, "message": message})
    return True
