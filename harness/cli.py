"""The `harness` command: one verb for each thing a user does."""

from __future__ import annotations

import typer

from harness import data, debug, doctor, masks, status, sweep, tick, worker
from harness.report import command as report
from harness.track import command as track

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train sparse networks over a whole grid, and get the table. Start with: harness sweep sweeps/quickstart.yaml",
)
app.command("sweep")(sweep.main)
app.command("status")(status.main)
app.command("report")(report.main)
app.command("worker")(worker.main)
app.command("tick")(tick.main)
app.command("debug", epilog=debug.EXAMPLES)(debug.main)
app.command("doctor")(doctor.main)
app.add_typer(data.app, name="data")
app.add_typer(masks.app, name="mask")
app.add_typer(track.app, name="wandb")


def main() -> None:
    """Enter the command line."""
    app()


if __name__ == "__main__":
    main()
