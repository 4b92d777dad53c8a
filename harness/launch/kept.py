"""A sweep's launcher as it was last used, kept in the store: for cron, for --cancel, and for workers that submit."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.allocation import shell
from harness.errors import FileError, Mark, UserError
from harness.launch import ARGV, PROFILE, Job
from harness.launch.profiles import Profile, load_profile
from harness.launch.slurm import Slurm
from harness.reading import Document
from harness.store import Store, read_json

PATIENCE = 5.0
"""Seconds that a look at the queue may take where other things are shown too."""


@dataclass(frozen=True)
class PendingJobs:
    """Jobs of a sweep that wait in the queue for the same reason."""

    reason: str
    """In words, with what to do where there is something."""
    jobs: int
    since: float | None
    """When the first of them was submitted, in seconds since 1970; None where nobody says."""


def last_used(store: Store, name: str, plan: str = "") -> Slurm | None:
    """Return the launcher of the profile that a sweep's workers were last submitted with; None where none ever were.

    `plan`: that its workers are bound to.
    """
    folder = store.sweep(name)
    said = read_json(folder / ARGV)
    if said is None:
        return None
    profile, document = load_profile(folder / PROFILE)
    launcher = Slurm(profile, store, name, said["argv"], document, plan=plan, cluster=said.get("cluster", ""))
    if (given := _given(document, str(said.get("profile", "")))) is not None:
        launcher.document = given
        launcher.again = f"; once {given.file} is changed, run the sweep command with --via again"
    return launcher


def _given(copy: Document, file: str) -> Document | None:
    """Return a kept profile as the file that it is a copy of, which is the one to change; None where that is gone.

    Its lines are named as long as it says the same.
    """
    try:
        same = bool(file) and Path(file).read_bytes() == Path(copy.file).read_bytes()
    except OSError:
        return None
    marks = {path: Mark(file, mark.line) for path, mark in copy.marks.items()} if same else {}
    return Document(file, copy.values, marks) if file else None


def for_cancelling(store: Store, name: str) -> Slurm | None:
    """Return a launcher that counts and ends a sweep's workers; None where none were ever submitted.

    A kept profile that this version takes for none keeps nobody from ending jobs: their names say whose they are.
    """
    try:
        return last_used(store, name)
    except FileError:
        said = read_json(store.sweep(name) / ARGV) or {}
        return Slurm(Profile(), store, name, [], cluster=said.get("cluster", ""))


def kept(store: Store, name: str, plan: str = "") -> Slurm:
    """Return the launcher that was kept. Raises UserError where none was."""
    if launcher := last_used(store, name, plan):
        return launcher
    raise UserError(f"{name}: nothing was ever submitted to a cluster for it; use the sweep command with --via once")


def briefly(store: Store, name: str) -> Slurm | None:
    """Return the launcher that was last used, to look at: at workers bound to any plan, and not for long.

    None where there was none. Raises UserError.
    """
    if launcher := last_used(store, name):
        launcher.every, launcher.run = True, partial(shell, patience=PATIENCE)
    return launcher


def pending_jobs(launcher: Slurm) -> list[PendingJobs]:
    """Return what waits in the queue now. Raises UserError, and SchedulerUnavailable."""
    groups = defaultdict[str, list[Job]](list)
    for job in launcher.shown():
        if job.state == "pending":
            groups[launcher.waits(job) or "no reason is known yet"].append(job)
    return [
        PendingJobs(reason, len(jobs), min((job.since for job in jobs if job.since), default=None))
        for reason, jobs in sorted(groups.items())
    ]
