"""The question before cells of an earlier run, which the file has no longer, are started no more."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.display import ask
from harness.errors import UserError
from harness.plan import Plan
from harness.planfile import NEWEST, read_plan
from harness.presence import present
from harness.store import Store
from harness.words import count


def ask_about_dropped(plan: Plan, store: Store, file: Path, yes: bool) -> None:
    """Ask before workers at work are kept from cells that an edited file has no longer. Raises UserError."""
    if not (at_work := list(present(store, plan.name))) or yes:
        return
    try:
        before = read_plan(store.sweep(plan.name) / NEWEST).plan
    except UserError:
        return
    dropped = [key for key in before.leaves if key not in plan.stages and not _done(before, store, key)]
    question = (
        f"{count(len(dropped), 'unfinished cell')} of the sweep as it was run before, such as "
        f"{before.stages[dropped[0]].label}, would be started no more by {count(len(at_work), 'worker')} at work"
        if dropped
        else ""
    )
    if dropped and not (sys.stdin.isatty() and ask(f"{question}. Go on?")):
        raise UserError(f"{file}: not started: {question}. If that is meant: --yes")


def _done(plan: Plan, store: Store, key: str) -> bool:
    return store.folder(plan.stages[key].kind, key).result() is not None
