"""`harness sweep FILE --cancel`: end a sweep's workers, all of them or those at work on some cells."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial

from harness.allocation import insist, of_cluster, on_cluster, own_cluster, shell
from harness.claims import Observer, Owner, take
from harness.errors import SchedulerUnavailable, UserError
from harness.index import stand
from harness.launch import Job, Launcher
from harness.launch.slurm import plan_mark
from harness.plan import Plan
from harness.planfile import SavedPlan, earlier_plans, read_plan
from harness.presence import Present, present
from harness.records import ended
from harness.rounds import CANCELLED
from harness.states import State
from harness.store import Store, write_whole
from harness.terminal import note
from harness.words import count

LOOKS, PAUSE = 4, 1.0
"""Looks at the queue after jobs were cancelled, and the seconds between two; what is still there is cancelled again."""


@dataclass
class Cancelled:
    """What a cancellation did."""

    seen: dict[tuple[str, str], Job] = field(default_factory=dict)
    """The jobs that were to end, those that were leaving already included, by cluster and number."""
    jobs: int = 0
    """Jobs cancelled, which the queue no longer shows, or shows as leaving."""
    asked: int = 0
    """Workers of this machine, and trials of Ray Tune, asked to save and leave."""
    barred: int = 0
    """Stages of a part that are not started any more."""
    shared: int = 0
    """Stages of a part that ran, and that cells outside it need too."""
    left: list[str] = field(default_factory=list)
    """Jobs and workers that could not be ended, each with what to do."""
    unsure: bool = False
    """Whether the scheduler does not tell of all jobs."""
    unanswered: bool = False
    """Whether it did not answer for a while."""

    @cached_property
    def own(self) -> str:
        """Return the cluster of this machine."""
        return own_cluster()

    def scancel(self, number: str, cluster: str) -> str:
        """Return the command that ends a job; without accounting a machine's own cluster answers to no name."""
        return " ".join(of_cluster(["scancel", number], "" if cluster == self.own else cluster))

    def __str__(self) -> str:
        said = [f"{count(self.jobs, 'job')} ended"] if self.jobs else []
        said += [f"{count(self.asked, 'worker')} asked to save and leave"] if self.asked else []
        said = said or ["nothing ended" if self.left else "nothing was running"]
        said += [f"{count(self.barred, 'stage')} cancelled; --retry cancelled lifts that"] if self.barred else []
        shared = count(self.shared, "stage")
        theirs = f"; running for other cells too, and taken up again unless --only names those: {shared}"
        return ", ".join(said) + (theirs if self.shared else "")


def cancel(asked: SavedPlan, whole: Plan, store: Store, launcher: Launcher | None, part: bool) -> Cancelled:
    """End workers, which save and leave; of a part, also keep others from its stages.

    Stages that only the part's cells need end as failed with the cause `cancelled`, which `--retry cancelled` lifts.
    """
    name = asked.plan.name
    if not part:
        write_whole(store.sweep(name) / CANCELLED, b"")
    standing = stand(asked.plan, store, Observer())
    owners = {owner.processes[0]: (owner, key) for key, (owner, _, _) in standing.owners.items()}
    barred = _bar(asked.plan, whole, store, standing.states) if part else set()
    done = Cancelled(barred=len(barred), shared=len(standing.owners.keys() - barred) if part else 0)
    if launcher is not None:
        within = _within(asked.plan, store)

        def wanted(job: Job) -> bool:
            return not part or within(job.bound) or any(job.runs(owner) for owner, _ in owners.values())

        _end_jobs(launcher, wanted, done)
    for worker in list(present(store, name)):
        _, key = owners.get(worker.owner.processes[0], (None, ""))
        trial = worker.about.get("trial")
        if not part or (key in barred if trial else key):
            _end_worker(worker, done)
    return done


def _within(plan: Plan, store: Store) -> Callable[[str], bool]:
    """Return what says of the mark of a saved plan whether its cells are all a part's: its workers are not needed."""
    chosen = {key for _, key in plan.cells}
    paths = {plan_mark(path.name): path for path in earlier_plans(store, plan.name)}

    @cache
    def within(mark: str) -> bool:
        with contextlib.suppress(UserError):
            return mark in paths and {cell.key for cell in read_plan(paths[mark]).cells} <= chosen
        return False

    return within


def _end_jobs(launcher: Launcher, wanted: Callable[[Job], bool], done: Cancelled) -> None:
    """Cancel jobs, until the queue shows that they end; a round under way may submit more of them meanwhile."""
    there: list[Job] = []
    cancelled, complaint, later = set[tuple[str, str]](), "", "run the same command again later to end it"
    try:
        for look in range(LOOKS + 1):
            jobs = [job for job in insist(launcher.poll, later, note) if wanted(job)]
            done.seen |= {(job.cluster, job.number): job for job in jobs}
            there = [job for job in jobs if job.state != "leaving"]
            if not there or look == LOOKS:
                break
            cancelled |= {(job.cluster, job.number) for job in there}
            time.sleep(PAUSE if look else 0)
            complaint = insist(partial(launcher.cancel, there), later, note)
    except SchedulerUnavailable as error:
        done.unsure = done.unanswered = True
        done.left.append(f"jobs on the cluster: {error}")
    except UserError as error:
        done.unsure = True
        done.left.append(f"jobs on the cluster: {error}; run the same command again")
    for job in there:
        why = job.reason if job.name else complaint or f"it is still {job.state}"
        done.left.append(f"job {job.number}: {why}; to end it: {done.scancel(job.number, job.cluster)}")
    done.unsure = done.unsure or any(job.name for job in there)
    done.jobs = len(cancelled - {(job.cluster, job.number) for job in there})


def _end_worker(worker: Present, done: Cancelled) -> None:
    """End a worker that no job of the launcher's is: by a signal where it is on this machine."""
    owner, process = worker.owner, worker.owner.processes[0]
    number = owner.job_number
    if number and any(job.runs(owner) for job in done.seen.values()):
        return
    if worker.about.get("trial"):  # it reads the mark, or its claim; ended by a signal, Ray would call it crashed
        done.asked += 1
    elif worker.here:
        try:
            os.kill(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            return
        except PermissionError:
            done.left.append(f"process {process.pid} of this machine: it is another person's, who can end it")
            return
        done.asked += 1
    elif not number:
        done.left.append(
            f"process {process.pid} on {owner.host}: run the same command there; where that machine is gone, remove "
            f"{worker.path}"
        )
    elif not done.unsure and number not in ended([number], on_cluster(owner.cluster, shell)):
        done.left.append(
            f"a worker on {owner.host} in job {number}, which the sweep command did not submit; to end it: "
            f"{done.scancel(number, owner.cluster)}"
        )


def _bar(plan: Plan, whole: Plan, store: Store, states: Mapping[str, State]) -> set[str]:
    """Cancel the stages that no other cell of the sweep needs; return their keys."""
    chosen = {key for _, key in plan.cells}
    others = whole.keep((cell, key) for cell, key in whole.cells if key not in chosen).stages
    barred = set[str]()
    for key in plan.stages:
        if key in others or key not in states:
            continue
        folder = store.folder(plan.stages[key].kind, key)
        claim = take(folder, folder.generation, Owner.me())
        if claim is not None:
            claim.end("failed", cause="cancelled", message="cancelled by hand")
            barred.add(key)
    return barred
