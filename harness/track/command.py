"""`harness wandb`: publish the store to Weights & Biases, send later what could not be sent, compare, and reports."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from harness.completing import sweeps_here
from harness.display import console
from harness.errors import UserError, printable
from harness.store import Store
from harness.terminal import STORE, answered, command, examples, note, tell, tell_json
from harness.track.desk import Stalled
from harness.track.mending import Difference, compare, mark
from harness.track.opening import Unreachable, drop_offline, find_target, follow, publisher
from harness.track.publisher import Progress, Publisher
from harness.track.target import Target, Wish, wishes
from harness.words import count

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=__doc__,
    epilog=examples("harness wandb publish quickstart", "harness wandb reconcile quickstart --dry"),
)
Sweeps = Annotated[
    list[str],
    typer.Argument(
        help="Sweeps by name or file; else all of the store that name a project.", autocompletion=sweeps_here
    ),
]
StoreFolder = Annotated[Path, typer.Option("--store", help="The store's folder.")]
PATIENT = 3
"""Passes in a row that may fail before a command of its own gives up."""
ALIVE = 10.0
"""Seconds between two signs that a last pass gets on."""


def _heard(sentence: str) -> None:
    """Say something to the sweep command, which may be gone."""
    with contextlib.suppress(OSError):
        print(printable(sentence), flush=True)  # noqa: T201 - the command's end of a pipe


def _told() -> AbstractContextManager[None]:
    """Turn errors into sentences and exit codes."""
    return answered(after="nothing that was sent is lost", stopped="stopped; the same command goes on from here")


@app.command(epilog=examples("harness wandb publish", "harness wandb publish quickstart --follow"))
def publish(
    sweeps: Sweeps = [],  # noqa: B006
    store: StoreFolder = STORE,
    stay: Annotated[bool, typer.Option("--follow", help="Go on until all is over and has come.")] = False,
    beside: Annotated[bool, typer.Option("--beside", hidden=True)] = False,
) -> None:
    """Bring W&B to what the store says: once, for cron or by hand; or with --follow, on a login node.

    Sweeps of one project go together. Exit codes: 0 all has come, or is kept in offline mode; 1 something has not; 2 a
    mistake, or another publisher at work; 3 the store cannot be read.
    """
    with _told():
        place, over, good = Store(store), Parent() if beside else Never(), True
        found = _wanted(place, sweeps, over.waits)
        if stay and len(found) > 1:
            names = "; ".join(f"{wish.project}: {', '.join(wish.names)}" for wish in found)
            raise UserError(f"--follow is for one project at a time; name its sweeps ({names})")
        for wish in found:
            try:
                good = _publish(place, wish, over, stay, beside) and good
            except UserError as error:
                if len(found) == 1:
                    raise
                note(str(error))
                good = False
    raise typer.Exit(not good)


def _publish(place: Store, wish: Wish, over: Never | Parent, stay: bool, beside: bool) -> bool:
    """Publish one project; return whether all that there is has come."""
    target, why = _target(place, wish)
    with publisher(place, wish, target, _heard if beside else note, over.waits) as work:
        work.say(_welcome(work, why))
        work.report = over.alive
        leave = over.gone if beside else (lambda: not stay)
        whole = _bye(work, follow(work, leave, over.wait, patience=8 if beside else PATIENT))
        return whole and (beside or not why or _offline(wish))


def _offline(wish: Wish) -> bool:
    """Return whether nothing is to be sent, by the sweep file or the environment."""
    return wish.mode == "offline" or os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")


@app.command(epilog=examples("harness wandb sync", "harness wandb sync quickstart --store runs"))
def sync(sweeps: Sweeps = [], store: StoreFolder = STORE) -> None:  # noqa: B006
    """Send every finished run that the server lacks, each whole, as the store has it; for what was trained offline.

    Stopped or killed, the same command goes on. Offline folders are no longer needed then, and removed. Exit codes: 0
    all has come, 1 something has not, 2 a mistake, or no server, 3 the store cannot be read.
    """
    with _told():
        place, good = Store(store), True
        for wish in _wanted(place, sweeps):
            with _online(place, wish) as work, _bar("sent") as show:
                work.report, work.finished_only = show, True
                progress = follow(work, lambda: True, Never().wait, patience=PATIENT)
                drop_offline(work)
            good = _bye(work, progress) and good
    raise typer.Exit(not good)


@app.command(epilog=examples("harness wandb reconcile quickstart --dry", "harness wandb reconcile quickstart --json"))
def reconcile(
    sweeps: Sweeps = [],  # noqa: B006
    store: StoreFolder = STORE,
    dry: Annotated[bool, typer.Option("--dry", help="Compare only; send nothing.")] = False,
    as_text: Annotated[bool, typer.Option("--json", help="Print what was found as JSON, project by project.")] = False,
) -> None:
    """Compare every run on the server with the store: rows, summaries, tags, states; and send what is missing.

    A run whose rows are others than the store's is begun anew under another id, the old one tagged superseded. Exit
    codes: 0 all is the same (now), 1 something still differs, 2 a mistake, or no server, 3 the store cannot be read.
    """
    compared: dict[str, Difference] = {}
    with _told():
        place, good = Store(store), True
        for wish in _wanted(place, sweeps):
            with _online(place, wish) as work:
                try:
                    with _bar("compared") as show:
                        found = compare(work, show)
                    compared[str(work.target)] = found
                    if not as_text:
                        tell("\n".join(found.lines()))
                    if found.wrong and not dry:
                        mark(work, found)
                        progress = follow(work, lambda: True, Never().wait, patience=PATIENT)
                        good = _bye(work, progress) and good
                    good = good and not (dry and found.wrong)
                except Stalled as error:
                    raise UserError(f"wandb: {work.target}: {error}; nothing was changed, try again later") from None
        if as_text:
            tell_json({target: asdict(found) for target, found in compared.items()})
    raise typer.Exit(not good)


@app.command(epilog=examples("harness wandb report quickstart", "harness wandb report quickstart --spec report.json"))
def report(
    sweep: Annotated[str, typer.Argument(help="A sweep's name, or its file.")],
    store: StoreFolder = STORE,
    data: Annotated[Path | None, typer.Option(help="The folder of data sets, where a file is given.")] = None,
    spec: Annotated[
        Path | None, typer.Option(help="Write what the report would show as JSON; no server is asked.", metavar="JSON")
    ] = None,
) -> None:
    """Save the sweep's tables, curves, gains and failures as a W&B report, and a workspace view for every table.

    The same command again updates them where they are. Exit codes: 0 saved, 2 a mistake, or no server,
    3 the store cannot be read.
    """
    from harness.track.reporting import save_report, write_spec

    with _told():
        place = Store(store)
        if spec is not None:
            write_spec(place, sweep, data, spec)
            note(f"wandb: written to {spec}")
            return
        for address in save_report(place, sweep, data):
            tell(address)


@contextmanager
def _online(place: Store, wish: Wish) -> Iterator[Publisher]:
    """Hold the lease of a target that can be reached. Raises UserError where it cannot."""
    try:
        target = find_target(wish, "online")
    except Unreachable as error:
        raise UserError(f"wandb: nothing can be sent now: {error}; the same command sends it later") from None
    with publisher(place, wish, target, note) as work:
        yield work


@contextmanager
def _bar(what: str) -> Iterator[Callable[[Progress], None]]:
    """Show a bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(f"stages, {{task.fields[runs]}} runs {what}"))
    with Progress(*columns, TimeRemainingColumn(), console=console(), transient=True) as bar:
        task = bar.add_task(what, total=None, runs=0)
        yield lambda seen: bar.update(task, total=seen.stages or None, completed=seen.seen, runs=seen.whole)


def _wanted(place: Store, sweeps: list[str], waits: Callable[[], bool] = lambda: False) -> list[Wish]:
    """Return what is to be published. Raises UserError where that is nothing, unless it is worth waiting for."""
    while True:
        try:
            found = wishes(place, sweeps)
        except UserError:
            if not waits():  # a search writes its first plan when its first trial is there
                raise
            threading.Event().wait(1.0)
            continue
        if not found:
            raise UserError(
                f"no sweep of {place.root} is to be mirrored; write wandb: {{project: NAME}} in a sweep file"
            )
        return found


def _target(store: Store, wish: Wish) -> tuple[Target, str]:
    """Return where a wish goes: to a server, or into folders on this machine, for a reason."""
    try:
        return find_target(wish, wish.mode), ""
    except Unreachable as error:
        if wish.mode == "online":
            sync = command("wandb", "sync", *wish.names, store=store.root)
            raise UserError(
                f"wandb: mode is online, but {error}. Results are in the store; once that is mended, "
                f"`{sync}` sends them"
            ) from None
        return Target("", "", wish.project), str(error)


def _welcome(work: Publisher, why: str) -> str:
    if work.target.host:
        return f"wandb: mirrored to {work.target}"
    sync = command("wandb", "sync", *work.wish.names, store=work.store.root)
    return (
        f"wandb: nothing is sent: {why}. `wandb leet {work.folder / 'offline' / 'wandb'}` shows what is finished, "
        f"`{sync}` sends it later"
    )


def _bye(work: Publisher, progress: Progress) -> bool:
    """Say how it ended; return whether all that there is has come."""
    sent = "sent" if work.target.host else "kept"
    said = f"wandb: {progress.whole} of {count(progress.runs, 'run')} {sent}"
    if not progress.complete:
        publish = command("wandb", "publish", store=work.store.root)
        said += f"; {progress.fault or 'some were refused'}: `{publish}` goes on from here"
    work.say(said)
    return progress.complete


class Never:
    """Nobody who could leave: a command of its own."""

    waits = gone = staticmethod(lambda: False)

    def alive(self, progress: Progress) -> None:
        """Hear how far a pass has come."""

    def wait(self, seconds: float) -> None:
        """Wait."""
        threading.Event().wait(seconds)


class Parent:
    """The sweep command at the other end of this process's input: once that ends, a last pass is due."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        os.nice(10)

    def waits(self) -> bool:
        """Return whether it is worth waiting for another publisher's end: while the command is there."""
        return not self.gone()

    def gone(self) -> bool:
        """Return whether the command has ended, or is about to."""
        ready, _, _ = select.select([sys.stdin], [], [], 0)
        return bool(ready) and not sys.stdin.read(1)

    def alive(self, progress: Progress) -> None:
        """Say now and then that it gets on."""
        if self.gone() and not progress.complete and time.monotonic() - self.last > ALIVE:
            self.last = time.monotonic()
            _heard(f"wandb: {progress.whole} of {count(progress.runs, 'run')} sent")

    def wait(self, seconds: float) -> None:
        """Wait, but not longer than the command is there."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.gone():
            select.select([sys.stdin], [], [], min(1.0, max(0.0, deadline - time.monotonic())))
        if self.gone():
            threading.Event().wait(min(seconds, max(0.0, deadline - time.monotonic())))
