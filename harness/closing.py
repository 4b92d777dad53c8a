"""The end of a call: tables and failures written and printed, and what nothing refers to shown and removed."""

from __future__ import annotations

from pathlib import Path

import typer

from harness.claims import Observer
from harness.clean import find_waste, remove
from harness.errors import UserError, printable
from harness.frontier import Frontier
from harness.plan import Plan
from harness.presence import present
from harness.report.frame import failures, read_frame
from harness.report.tables import build
from harness.report.writers import on_terminal, write_report
from harness.spec import Sweep
from harness.store import Store
from harness.words import count, size


def report(sweep: Sweep, frontier: Frontier, part: bool, interrupted: bool) -> int:
    """Write and print the tables and the failures, of the whole sweep or a part of it; return the exit code."""
    from rich.console import Console

    plan, store = frontier.plan, frontier.store
    frontier.forget()
    survey = frontier.survey()
    frame = read_frame(plan, frontier, survey)
    grids = [grid for table in sweep.file.tables for grid in build(table, frame)]
    folder = store.sweep(plan.name) / ("report.part" if part else "report")
    done = sum(key in survey.results for _, key in plan.cells)
    out = Console(highlight=False)
    for grid in grids if done or not interrupted else ():
        out.print(*on_terminal(grid, out.width), sep="\n")
    where = f"tables in {_short(folder)}"
    try:
        write_report(folder, plan.name, frame, grids)
    except OSError as error:
        where = f"the report could not be written: {error.strerror}"
    failed = failures(plan, frontier, survey)
    for sentence, held, log in failed[:20]:
        typer.echo(printable(f"{sentence}; {count(held, 'cell')} held back"), err=True)
        if log:
            typer.echo(f"  log: {_short(Path(log))}", err=True)
    if failed:
        typer.echo(f"{count(len(failed), 'stage')} failed; --retry all runs them once more", err=True)
    typer.echo(f"{done} of {count(len(plan.cells), 'cell')} done; {where}", err=True)
    if interrupted:
        typer.echo("stopped; the same command goes on from here", err=True)
        return 130
    return 1 if survey.todo else 0


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def clean_up(store: Store, whole: Plan, yes: bool) -> int:
    """Show what nothing refers to, and remove it where that is agreed to; return the exit code."""
    waste = find_waste(store, whole, Observer())
    for folder in waste.stages[:20]:
        typer.echo(f"{folder.path.relative_to(store.root)}")
    stages, files = count(len(waste.stages), "stage"), count(len(waste.files), "left-over file")
    said = f"{stages} that no sweep's newest plan refers to, {files}"
    typer.echo(f"{said}: {size(waste.bytes)}; {waste.running} more are being worked on and stay")
    if not (waste.stages or waste.files):
        return 0
    if not yes:
        typer.echo("nothing was removed; --gc --yes removes them")
        return 0
    busy = [worker for folder in store.root.glob("sweeps/*") for worker in present(store, folder.name)]
    if busy:
        raise UserError(
            f"--gc: {count(len(busy), 'worker')} at work, the first on {busy[0].owner.host}; let them finish, "
            f"or remove {busy[0].path} if it is dead"
        )
    remove(store, waste)
    typer.echo("removed")
    return 0
