"""Data sets and stores on this machine: fetched where there is network, made ready for where there is none."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.catalog import DATASETS
from harness.completing import datasets_here, profiles_here
from harness.errors import UserError
from harness.terminal import STORE, answered, examples, note, tell
from harness.words import count
from tost.catalog import nearest, resolve

app = typer.Typer(
    no_args_is_help=True,
    help="Data sets on this machine.",
    epilog=examples("harness data fetch cifar10", "harness data stage sweeps/quickstart.yaml"),
)


@app.callback()
def group() -> None:
    """Data sets on this machine."""


@app.command("fetch", epilog=examples("harness data fetch cifar10", "harness data fetch digits --data data"))
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="A data set: " + ", ".join(n for n, d in DATASETS.items() if d.fetch), autocompletion=datasets_here
        ),
    ],
    data: Annotated[Path, typer.Option(help="The folder of data sets.", envvar="HARNESS_DATA")] = Path("data"),
) -> None:
    """Download a data set into the data folder and check it.

    Exit codes: 0 it is there, 2 no data set of that name can be fetched, 3 it could not be fetched or written.
    """
    if name == "digits":
        tell("digits comes with scikit-learn; there is nothing to fetch")
        return
    with answered(data):
        _fetch(name, data)
    tell(f"{name} is in {data}")


def _fetch(name: str, data: Path) -> None:
    """Download a data set. Raises UserError for an unknown one, typer.Exit where it cannot be had."""
    known = [n for n, entry in DATASETS.items() if entry.fetch]
    if name not in known:
        raise UserError(f"{name!r} cannot be fetched; choose from {', '.join(known)}{nearest(name, known)}")
    entry = DATASETS[name]
    download = resolve(entry.fetch)
    try:
        data.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):  # torchvision's own words
            for train in (True, False):
                download(str(data), train=train, download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; torchvision raises RuntimeError for a bad file
        places = ", ".join(str(data / file) for file in entry.files[:3])
        note(f"{name}: could not be fetched: {error}\nBy hand: {entry.hint}, so that there are {places} ...")
        raise typer.Exit(3) from None


@app.command(
    "stage",
    epilog=examples(
        "harness data stage sweeps/quickstart.yaml",
        "harness data stage sweeps/full_grid.yaml --to /shared/data",
        "harness data stage sweeps/full_grid.yaml --via slurm/a100.yaml",
    ),
)
def stage(
    file: Annotated[Path, typer.Argument(help="A sweep file.")],
    store: Annotated[Path, typer.Option(help="The store's folder.")] = STORE,
    data: Annotated[Path | None, typer.Option(help="The folder of data sets.")] = None,
    to: Annotated[Path | None, typer.Option(help="Copy the data sets' files to this folder instead.")] = None,
    via: Annotated[
        str, typer.Option(help="A cluster profile, whose `stage:` is copied too.", autocompletion=profiles_here)
    ] = "",
) -> None:
    """Make a sweep's data sets in the store, so that nodes need neither network nor the files they are made from.

    Exit codes: 0 all are there, 2 a mistake, or a data set that cannot be made, 3 a folder cannot be written.
    """
    from harness.driver import Driver
    from harness.launch.profiles import find_profile, load_profile
    from harness.options import Options
    from harness.planner import data_folder
    from harness.staging import copy_files, copy_named

    with answered(store):
        said = copy_named(load_profile(find_profile(via, file.absolute().parent))[0]) if via else []
        driver = Driver(file, store, data, Options("local"), yes=True)
        driver.load()
        if driver.lacks():
            raise typer.Exit(2)
        if to is not None:
            names = [cell.dataset.name for cell, _ in driver.plan.cells]
            said += copy_files(names, data_folder(driver.sweep, data), to)
        elif not driver.make_data():
            raise UserError("not all data sets could be made; the same command goes on, and shows what failed")
        else:
            made = [stage for stage in driver.plan.stages.values() if stage.kind == "data"]
            said.append(f"{count(len(made), 'data set')} of {driver.plan.name} in {store}; workers need no other files")
            results = {stage.label: driver.store.folder(stage.kind, stage.key).result() for stage in made}
            said += [f"{label}: {r.metrics['note']}" for label, r in results.items() if r and r.metrics.get("note")]
    for sentence in said:
        tell(sentence)


@app.command("merge", epilog=examples("harness data merge other/runs", "harness data merge other/runs --store runs"))
def merge(
    other: Annotated[Path, typer.Argument(help="Another store's folder.")],
    store: Annotated[Path, typer.Option(help="The store to add to.")] = STORE,
) -> None:
    """Take over another store's finished stages. Nothing of it is changed, and nothing that is finished here.

    Exit codes: 0 all that is finished there is here, 1 some of it is damaged, 2 a mistake, 3 the store cannot be
    written.
    """
    from harness.merge import merge
    from harness.store import Store

    with answered(store):
        if not (other / "stages").is_dir():
            raise UserError(f"{other} is no store: it has no folder stages/; name the folder that holds it")
        if other.resolve() == store.resolve():
            raise UserError(f"{other} is the store itself; name another one")
        done = merge(Store(store), Store(other))
    tell(f"{done.taken} finished stages taken over, {done.had} were here already, {done.unfinished} not finished")
    if done.busy:
        note(f"{done.busy} are being worked on here and were left alone")
    for what in done.differ:
        note(f"{what}: finished in both with different content; the one here stays")
    for what in done.damaged:
        note(f"not taken: {what}")
    if done.damaged:
        raise typer.Exit(1)
