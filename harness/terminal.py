"""The terminal: results on stdout and all else on stderr, mistakes as sentences with an exit code, examples."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from harness.errors import SchedulerUnavailable, UserError, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

STORE = Path("runs")
"""The store that a command reads and writes where it is told of none."""
LONGEST = 20_000
"""Characters of one word to the user that are shown."""
MOST_COLUMNS = 100_000
"""Characters of a line where output is no terminal."""
CRON_PATH = "/usr/bin:/bin"
CRON_LACKS = ("SLURM_CONF", "SLURM_CONF_SERVER", "LD_LIBRARY_PATH", "PYTHONPATH", "WANDB_BASE_URL")
"""Variables that a command may need to find Slurm, W&B or its own modules; keys and tokens belong in no crontab."""
PIPE_CLOSED = 141
"""The exit code of a command whose reader has gone, as the shell gives it for SIGPIPE."""


def enter(app: typer.Typer) -> None:
    """Enter a command line; what a terminal's encoding lacks is written as an escape, and never ends a command."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # something that is no file took its place
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    app()


def examples(*lines: str) -> str:
    """Return the end of a help text: commands that work, as they are typed."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)  # \b: lines are left as they are


def command(*words: object, store: Path | None = None) -> str:
    """Return a command of the harness as it can be pasted where the user stands; `store` where it is not the default.

    Words are quoted for a shell, and paths below the current folder are relative to it.
    """
    shown = [short_path(word) if isinstance(word, Path) else str(word) for word in words]
    return shlex.join(["harness", *shown]) + store_option(store)


def cron_line(*words: object, store: Path) -> str:
    """Return a command of the harness as a line of a crontab, every ten minutes.

    Cron starts it in the home folder, with few variables, the umask 022 and programs of /usr/bin and /bin alone, and
    takes an unescaped % for the end of the line.
    """
    found = shutil.which("squeue")
    folder = os.path.dirname(os.path.abspath(found)) if found else CRON_PATH.partition(":")[0]
    variables = {} if folder in CRON_PATH.split(":") else {"PATH": f"{folder}:{CRON_PATH}"}
    variables |= {name: os.environ[name] for name in CRON_LACKS if os.environ.get(name)}
    os.umask(umask := os.umask(0o022))
    before = [f"umask {umask:04o}"] if umask != 0o022 else []
    program = shlex.join([sys.executable, "-m", "harness.cli", *map(str, words), "--store", str(store.absolute())])
    run = " ".join([*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), program])
    line = " && ".join([f"cd {shlex.quote(str(Path.cwd()))}", *before, run])
    return "*/10 * * * * " + line.replace("%", r"\%")


def store_option(store: Path | None) -> str:
    """Return what names a store behind a command, with a space before it; nothing for the default one."""
    if store is None or store.resolve() == STORE.resolve():
        return ""
    return f" --store {shlex.quote(short_path(store))}"


def short_path(path: Path) -> str:
    """Return a path relative to where the command runs, if it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def tell(text: str, limit: int = LONGEST) -> None:
    """Print what a command was asked for."""
    print(printable(text, limit), flush=True)  # noqa: T201 - the result of the command


def tell_json(value: Any) -> None:
    """Print what a command was asked for as JSON."""
    print(json.dumps(value, indent=1), flush=True)  # noqa: T201 - the result of the command


def out_console() -> Console:
    """Return a console for stdout."""
    from rich.console import Console

    return Console(highlight=False)


def show_tables(*parts: RenderableType, out: Console | None = None) -> None:
    """Print tables within the width of a terminal; where output is no terminal, as wide as they are: nothing is cut."""
    from rich.measure import Measurement

    out = out or out_console()
    if not out.is_terminal:
        room = out.options.update(max_width=MOST_COLUMNS)
        out.width = max(out.width, *(Measurement.get(out, room, part).maximum for part in parts))
    out.print(*parts, sep="\n", crop=False)


def note(text: str) -> None:
    """Say something beside the result."""
    typer.echo(printable(text, LONGEST), err=True)


def _reader_gone() -> bool:
    """Return whether stdout is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextmanager
def answered(
    what: object = "the store", after: str = "mend that, or name another folder", stopped: str = ""
) -> Iterator[None]:
    """Answer what keeps a command from going on with a sentence and an exit code.

    2: a mistake; 3: a file or folder that cannot be read or written, `what` where the error names none, followed by
    what to do, or a scheduler that does not answer; 130: Ctrl-C; 141, without a word: whoever read the output, such as
    head, has gone.
    """
    try:
        yield
    except UserError as error:
        note(str(error))
        raise typer.Exit(2) from None
    except SchedulerUnavailable as error:
        note(str(error))
        raise typer.Exit(3) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_gone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at its end
            raise typer.Exit(PIPE_CLOSED) from None
        where = error.filename2 or error.filename or what  # of a rename, its target: the other one is a draft of ours
        note(f"{where}: {error.strerror or error}; {after}")
        raise typer.Exit(3) from None
    except KeyboardInterrupt:
        if stopped:
            note(stopped)
        raise typer.Exit(130) from None
