"""The `harness` command: one verb for each thing a user does."""

from __future__ import annotations

from typing import Annotated

import typer

from harness import __version__, data, debug, doctor, masks, status, sweep, tick, worker
from harness.report import command as report
from harness.terminal import enter, examples, tell
from harness.tracking import command as tracking


def _version(asked: bool) -> None:
    if asked:
        tell(f"harness {__version__}")
        raise typer.Exit


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train sparse networks over a whole grid, and get the table.",
    epilog=examples(
        "harness sweep sweeps/quickstart.yaml",
        "harness status quickstart",
        "harness report quickstart",
        "harness --install-completion",
    ),
)


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train sparse networks over a whole grid, and get the table."""


app.command("sweep", epilog=sweep.EXAMPLES)(sweep.main)
app.command("status", epilog=status.EXAMPLES)(status.main)
app.command("report", epilog=report.EXAMPLES)(report.main)
app.command("worker", epilog=worker.EXAMPLES)(worker.main)
app.command("tick", epilog=tick.EXAMPLES)(tick.main)
app.command("debug", epilog=debug.EXAMPLES)(debug.main)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.main)
app.add_typer(data.app, name="data")
app.add_typer(masks.app, name="mask")
app.add_typer(tracking.app, name="wandb")


def main() -> None:
    """Enter the command line."""
    enter(app)


if __name__ == "__main__":
    main()
