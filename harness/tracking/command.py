"""`harness wandb`: send to Weights & Biases what it lacks of a store, say what that is, and write a report there."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from harness.completing import sweeps_here
from harness.display import console
from harness.errors import UserError
from harness.store import Store
from harness.terminal import STORE, answered, command, examples, note, tell, tell_json
from harness.tracking.settings import Settings, settings_of, switched_off
from harness.tracking.sync import Mirror, Progress, connected, leased
from harness.tracking.wandb_process import WandbUnavailable
from harness.words import count

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=__doc__,
    epilog=examples("harness wandb sync quickstart", "harness wandb status quickstart"),
)
Sweeps = Annotated[
    list[str],
    typer.Argument(
        help="Sweeps by name or file; else all of the store that name a project.", autocompletion=sweeps_here
    ),
]
StoreFolder = Annotated[Path, typer.Option("--store", help="The store's folder.")]


def _answered() -> contextlib.AbstractContextManager[None]:
    """Turn errors into sentences and exit codes."""
    return answered(after="nothing that was sent is lost", stopped="stopped; the same command goes on from here")


@app.command(epilog=examples("harness wandb sync", "harness wandb sync quickstart --follow"))
def sync(
    sweeps: Sweeps = [],  # noqa: B006
    store: StoreFolder = STORE,
    stay: Annotated[
        bool, typer.Option("--follow", help="Stay until the sweep has ended, and send running trainings too.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compare each row on the server with the store.")
    ] = False,
) -> None:
    """Send what the server lacks.

    Every finished run is sent whole, as the store has it; with --follow running ones too. Stopped or killed, the same
    command goes on. A run whose rows there are others than the store's is begun anew under another id, the old one
    tagged superseded. Exit codes: 0 all has come, 1 something has not, 2 a mistake, no server, or another mirror at
    work, 3 the store cannot be read.
    """
    complete = True
    with _answered():
        place = Store(store)
        found = settings_of(place, sweeps)
        if stay and len(found) > 1:
            names = "; ".join(f"{settings.project}: {', '.join(settings.sweeps(place))}" for settings in found)
            raise UserError(f"--follow is for one project at a time; name its sweeps ({names})")
        stopped = threading.Event()
        if not stay:
            stopped.set()
        for settings in found:
            again = f"`{command('wandb', 'sync', *settings.sweeps(place), store=place.root)}` goes on from here"
            with _reachable(place, settings) as mirror, leased(mirror, stopped) as lease, _bar() as show:
                mirror.live, mirror.verify, mirror.on_progress = stay, verify, show
                mirror.say(f"wandb: mirrored to {mirror.project}")
                progress = mirror.follow(lease, stopped)
                mirror.say(mirror.summary(progress, again))
            complete = complete and progress.complete
    raise typer.Exit(not complete)


@app.command(epilog=examples("harness wandb status quickstart", "harness wandb status --json"))
def status(
    sweeps: Sweeps = [],  # noqa: B006
    store: StoreFolder = STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, project by project.")] = False,
) -> None:
    """Say what the server lacks, and why.

    Exit codes: 0 it has all, 1 it lacks something, 2 a mistake, or no server, 3 the store cannot be read.
    """
    complete, said = True, {}
    with _answered():
        place = Store(store)
        for settings in settings_of(place, sweeps):
            with _reachable(place, settings) as mirror:
                found, last = mirror.compare(), _last_line(mirror.log_file)
            complete = complete and found.complete
            said[settings.project] = {
                "sent": found.sent,
                "unfinished": found.unfinished,
                "missing": found.missing,
                "last_message": last,
            }
            if not as_json:
                tell("\n".join(_lines(settings.project, found, last)))
        if as_json:
            tell_json(said)
    raise typer.Exit(not complete)


def _last_line(path: Path) -> str:
    """Return the last line of a file, empty where it has none."""
    return (path.read_text(errors="replace").splitlines() or [""])[-1] if path.exists() else ""


def _lines(project: str, found: Progress, last: str) -> Iterator[str]:
    """Yield what `status` prints of a project."""
    total = found.sent + len(found.missing)
    rest = f"; {count(found.unfinished, 'stage')} still to be run" if found.unfinished else ""
    yield f"{project}: {found.sent} of {count(total, 'finished run')} there{rest}"
    for why in dict.fromkeys(found.missing.values()):
        runs = [run for run, lacks in found.missing.items() if lacks == why]
        yield f"  {len(runs):,} {why}: {', '.join(runs[:3])}" + (" ..." if len(runs) > 3 else "")
    if found.missing and last:
        yield f"  the mirror's log ends with: {last}"


@app.command(epilog=examples("harness wandb report quickstart", "harness wandb report quickstart --store runs"))
def report(
    sweep: Annotated[str, typer.Argument(help="A sweep's name, or its file.")],
    store: StoreFolder = STORE,
    data: Annotated[Path | None, typer.Option(help="The folder of data sets, where a file is given.")] = None,
) -> None:
    """Save tables and curves as a W&B report.

    The same command again updates it where it is. Exit codes: 0 saved, 2 a mistake, or no server, 3 the store cannot be
    read.
    """
    from harness.asked import reported
    from harness.tracking.wandb_report import save_report

    with _answered():
        place = Store(store)
        saved = reported(sweep, place, data)
        (settings,) = settings_of(place, [saved.plan.name])
        with _reachable(place, settings) as mirror:
            tell(save_report(mirror, saved))


@contextmanager
def _reachable(store: Store, settings: Settings) -> Iterator[Mirror]:
    """Give a project's mirror. Raises UserError where its server cannot be reached."""
    if why := switched_off():
        raise UserError(f"wandb: nothing can be sent: {why}; unset it and try again")
    try:
        with connected(store, settings, note) as mirror:
            yield mirror
    except WandbUnavailable as error:
        raise UserError(
            f"wandb: {error}; results are in the store; once that is mended, the same command goes on"
        ) from None


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    """Show a bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs sent"),
        console=console(),
        transient=True,
        disable=not console().is_terminal,
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda seen: bar.update(task, total=seen.runs, completed=seen.sent)
