"""The main command: `python -m harness.sweep sweeps/x.yaml` plans a sweep, runs what is missing, prints its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.claims import LEASE
from harness.completing import beginning, files_here, launchers_here
from harness.errors import UserError
from harness.terminal import STORE, answered, enter, examples, tell_json
from harness.words import given_span

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
EXAMPLES = examples(
    "python -m harness.sweep sweeps/quickstart.yaml",
    "harness sweep sweeps/quickstart.yaml --plan --explain",
    "harness sweep sweeps/quickstart.yaml --only mask=snip,seed=0 --workers 2",
    "harness sweep sweeps/full_grid.yaml --plan --via slurm/a100.yaml",
)


def causes(incomplete: str) -> list[str]:
    """Complete a cause of failure."""
    from harness.options import CAUSES

    return beginning(CAUSES, incomplete)


@app.command(epilog=EXAMPLES)
def main(
    file: Annotated[Path, typer.Argument(help="The sweep file.", autocompletion=files_here)] = Path("-"),
    plan: Annotated[bool, typer.Option("--plan", help="Print what would run, and start nothing.")] = False,
    in_words: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="With --plan: say in plain words what it is, what is compared, and what a reviewer would miss.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: print JSON.")] = False,
    only: Annotated[str, typer.Option(help="Only some cells: mask=snip,seed=0.", metavar="AXIS=VALUE,...")] = "",
    limit: Annotated[int | None, typer.Option(help="Only the first N cells.", min=1)] = None,
    store: Annotated[Path, typer.Option(help="The store's folder.")] = STORE,
    data: Annotated[
        Path | None, typer.Option(help="The folder of data sets; else `data:` of the file, $HARNESS_DATA, ./data.")
    ] = None,
    via: Annotated[
        str | None,
        typer.Option(
            help="Where workers live: local, or a cluster profile such as slurm/a100.yaml. Else as the file.",
            autocompletion=launchers_here,
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once workers are submitted; `harness status` shows them.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End the sweep's workers; with --only, those of some cells.")
    ] = False,
    workers: Annotated[
        str, typer.Option(help="Workers on this machine; auto: as many as train fastest, which is tried out.")
    ] = "",
    threads: Annotated[int | None, typer.Option(help="CPU threads a worker.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="A torch device: cpu, cuda, mps.")] = None,
    retry: Annotated[
        str,
        typer.Option(help="Run failed stages again: all, or a cause: code, oom, cancelled, ...", autocompletion=causes),
    ] = "",
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between two checkpoints.", min=0)] = 300.0,
    lease: Annotated[
        float, typer.Option(help="Seconds without a heartbeat after which a worker counts as lost.", min=0.5)
    ] = LEASE,
    scratch: Annotated[str, typer.Option(help="A folder on this machine's own disk for checkpoints.")] = "",
    until: Annotated[str, typer.Option(help="Workers leave before this much time is over: 55m, 23h30m.")] = "",
    discard_weights: Annotated[
        bool, typer.Option("--discard-weights", help="Keep no weights of trainings that no other stage reads.")
    ] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="Train faster, with numbers that differ in their last bits from run to run.")
    ] = False,
    stop_after: Annotated[
        int | None,
        typer.Option(
            help="Begin no more stages once so many have failed for one cause; what runs is finished. "
            "Diverged trainings do not count.",
            min=1,
            metavar="N",
        ),
    ] = None,
    pilot: Annotated[
        bool, typer.Option("--pilot", help="With --plan: time some steps of what no record tells of.")
    ] = False,
    budget: Annotated[str, typer.Option(help="Only the cells that fit into so many GPU- or core-hours: 500h.")] = "",
    miniature: Annotated[
        bool, typer.Option("--miniature", help="Run the whole graph on tiny stand-in images, two steps a training.")
    ] = False,
    gc: Annotated[
        bool, typer.Option("--gc", help="Show what no sweep refers to any more; with --yes, remove it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Never ask.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of sweep files, for editors.")
    ] = False,
) -> None:
    """Run a sweep: what the store lacks is trained, what it has is kept, and the tables are printed at the end.

    Running the same command again is always right. Exit codes: 0 all done, 1 some stages failed, or --cancel could not
    end all workers; 2 a mistake in the file or on the command line, 3 the store cannot be written, or with --detach or
    --cancel the scheduler does not answer, 130 stopped.
    """
    with answered(store, "nothing that was finished is lost"):
        if schema:
            from harness.form import SweepFile

            tell_json(SweepFile.model_json_schema())
            return
        if file == Path("-"):
            raise UserError("name a sweep file, for example: python -m harness.sweep sweeps/quickstart.yaml")
        from harness.closing import clean_up
        from harness.driver import Driver
        from harness.options import Options, given_workers
        from harness.planned import print_plan

        for option, given in {"--explain": in_words, "--json": as_json, "--pilot": pilot}.items():
            if given and not plan:
                raise UserError(f"{option} goes with --plan, which starts nothing; add --plan")
        if until:
            given_span("--until", until)
        discard = discard_weights or miniature
        options = Options(
            via or "",
            given_workers(workers),
            threads,
            device,
            retry,
            checkpoint_every,
            lease,
            scratch,
            until,
            discard,
            detach,
            fast,
            stop_after,
        )
        driver = Driver(file, store, data, options, yes, miniature)
        driver.load(only, limit)
        if gc:
            code = 2 if driver.lacks() else clean_up(driver.store, driver.standing_for(), yes)
        elif cancel:
            code = driver.cancel()
        elif plan:
            print_plan(driver, pilot, budget, in_words, as_json)
            code = 2 if [*driver.lacks(), *driver.unfit()] else 0
        else:
            code = driver.run(budget)
    raise typer.Exit(code)


if __name__ == "__main__":
    enter(app)
