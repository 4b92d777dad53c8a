"""The end of a call: tables and failures written and printed, and what nothing refers to shown and removed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import typer

from harness.claims import Observer
from harness.clean import find_waste, remove
from harness.efficiency import efficiency
from harness.errors import UserError, printable
from harness.failure_limit import reached
from harness.failures import halted, look_at, remedies
from harness.launch.slurm import Slurm
from harness.plan import Plan
from harness.planfile import SavedPlan
from harness.presence import present
from harness.report.assemble import make_report, write_report
from harness.report.command import print_tables
from harness.report.frame import failures
from harness.states import FAILED
from harness.store import Store
from harness.terminal import note, short_path, tell
from harness.words import count, size


def close(saved: SavedPlan, store: Store, part: bool, interrupted: bool, launcher: Slurm | None = None) -> int:
    """Write and print the tables and the failures, of the whole sweep or a part of it; return the exit code.

    With the `launcher` of a cluster also what its jobs used of what was requested.
    """
    made = make_report(store, [saved], rebuild=True, whole=not part)
    folder = store.sweep(made.name) / ("report.part" if part else "report")
    where, unwritable = f"tables in {short_path(folder)}", False
    try:
        write_report(made, folder)
    except OSError as error:
        unwritable = True
        where = f"the report could not be written: {error.strerror}"
    if made.done or not interrupted:
        print_tables(made)
    (standing,) = made.standings
    failed = failures(saved, standing, store)
    for key, sentence, held, log in failed[:20]:
        typer.echo(printable(f"{sentence}; {count(held, 'cell')} held back"), err=True)
        if log:
            typer.echo(f"  log: {short_path(Path(log))}", err=True)
        for line in look_at(saved.plan.stages[key], standing.states[key], store, saved.plan.name):
            typer.echo(f"  {printable(line)}", err=True)
    for sentence in remedies(Counter(s.cause or s.name for s in standing.states.values() if s.name in FAILED)):
        note(sentence)
    if found := reached(store, saved.plan.name):
        for sentence in halted(found, saved.plan, store):
            note(sentence)
    typer.echo(f"{made.done} of {count(len(made.frame.lines), 'cell')} done; {where}", err=True)
    if launcher and (used := efficiency(saved.plan, standing, launcher)):
        for sentence in used.lines():
            note(sentence)
    if interrupted:
        typer.echo("stopped; the same command goes on from here", err=True)
        return 130
    return 3 if unwritable else 1 if standing.states else 0


def clean_up(store: Store, whole: Plan, yes: bool) -> int:
    """Show what nothing refers to, and remove it where that is agreed to; return the exit code."""
    waste = find_waste(store, whole, Observer())
    for folder in waste.stages[:20]:
        tell(f"{folder.path.relative_to(store.root)}")
    stages, files = count(len(waste.stages), "stage"), count(len(waste.files), "left-over file")
    said = f"{stages} that no sweep's newest plan refers to, {files}"
    tell(f"{said}: {size(waste.bytes)}; {waste.running} more are being worked on and stay")
    if not (waste.stages or waste.files):
        return 0
    if not yes:
        note("nothing was removed; --gc --yes removes them")
        return 0
    busy = [worker for folder in store.root.glob("sweeps/*") for worker in present(store, folder.name)]
    if busy:
        raise UserError(
            f"--gc: {count(len(busy), 'worker')} at work, the first on {busy[0].owner.host}; let them finish, "
            f"or remove {busy[0].path} if it is dead"
        )
    remove(store, waste)
    tell("removed")
    return 0
