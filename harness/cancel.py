"""`harness sweep FILE --cancel`: end a sweep's workers, all of them or those at work on some cells."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping

from harness.claims import Observer, Owner, take
from harness.index import stand
from harness.launch import Launcher
from harness.plan import Plan
from harness.planfile import SavedPlan
from harness.presence import present
from harness.rounds import CANCELLED
from harness.states import State
from harness.store import Store, write_whole
from harness.words import count


def cancel(asked: SavedPlan, whole: Plan, store: Store, launcher: Launcher | None, part: bool) -> str:
    """End workers, which save and leave; of a part, also keep others from its stages. Return what was done, in words.

    Stages that only the part's cells need end as failed with the cause `cancelled`, which `--retry cancelled` lifts.
    """
    if not part:
        write_whole(store.sweep(asked.plan.name) / CANCELLED, b"")
    standing = stand(asked.plan, store, Observer())
    owners = [owner for owner, _, _ in standing.owners.values()]
    barred = _bar(asked.plan, whole, store, standing.states) if part else 0
    ended = 0
    if launcher is not None:
        jobs = launcher.poll()
        if part:
            numbers = {owner.job.partition(".")[0] for owner in owners} - {""}
            jobs = [job for job in jobs if (job.inner or job.number) in numbers]
        launcher.cancel(jobs)
        ended += len(jobs)
    mine = {owner.processes[0] for owner in owners}
    for worker in list(present(store, asked.plan.name)):
        if worker.here and not worker.owner.job and (not part or worker.owner.processes[0] in mine):
            ended += 1
            if worker.about.get("trial"):  # it reads the mark; ended by a signal, Ray would call it crashed
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.owner.processes[0].pid, signal.SIGTERM)
    said = f"{count(ended, 'worker')} asked to save and leave"
    return f"{said}, {count(barred, 'stage')} cancelled; --retry cancelled lifts that" if part else said


def _bar(plan: Plan, whole: Plan, store: Store, states: Mapping[str, State]) -> int:
    """Cancel the stages that no other cell of the sweep needs; return how many."""
    chosen = {key for _, key in plan.cells}
    others = whole.keep((cell, key) for cell, key in whole.cells if key not in chosen).stages
    barred = 0
    for key in plan.stages:
        if key in others or key not in states:
            continue
        folder = store.folder(plan.stages[key].kind, key)
        claim = take(folder, folder.generation, Owner.me())
        if claim is not None:
            claim.end("failed", cause="cancelled", message="cancelled by hand")
            barred += 1
    return barred
