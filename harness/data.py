"""Data sets and stores on this machine: fetched where there is network, made ready for where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.catalog import DATASETS
from harness.errors import UserError, printable
from harness.words import count
from tost.catalog import nearest, resolve

app = typer.Typer(no_args_is_help=True, help="Data sets on this machine.")


@app.callback()
def group() -> None:
    """Data sets on this machine."""


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="A data set: " + ", ".join(n for n, d in DATASETS.items() if d.fetch))],
    data: Annotated[Path, typer.Option(help="The folder of data sets.", envvar="HARNESS_DATA")] = Path("data"),
) -> None:
    """Download a data set into the data folder and check it."""
    if name == "digits":
        typer.echo("digits comes with scikit-learn; there is nothing to fetch")
        return
    known = [n for n, entry in DATASETS.items() if entry.fetch]
    if name not in known:
        typer.echo(f"{name!r} cannot be fetched; choose from {', '.join(known)}{nearest(name, known)}", err=True)
        raise typer.Exit(2)
    entry = DATASETS[name]
    download = resolve(entry.fetch)
    try:
        data.mkdir(parents=True, exist_ok=True)
        for train in (True, False):
            download(str(data), train=train, download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; torchvision raises RuntimeError for a bad file
        places = ", ".join(str(data / file) for file in entry.files[:3])
        typer.echo(
            f"{name}: could not be fetched: {error}\nBy hand: {entry.hint}, so that there are {places} ...", err=True
        )
        raise typer.Exit(3) from None
    typer.echo(f"{name} is in {data}")


@app.command("stage")
def stage(
    file: Annotated[Path, typer.Argument(help="A sweep file.")],
    store: Annotated[Path, typer.Option(help="The store's folder.")] = Path("runs"),
    data: Annotated[Path | None, typer.Option(help="The folder of data sets.")] = None,
    to: Annotated[Path | None, typer.Option(help="Copy the data sets' files to this folder instead.")] = None,
    via: Annotated[str, typer.Option(help="A cluster profile, whose `stage:` is copied too.")] = "",
) -> None:
    """Make a sweep's data sets in the store, so that nodes need neither network nor the files they are made from."""
    from harness.driver import Driver
    from harness.launch.profiles import find_profile, load_profile
    from harness.options import Options
    from harness.planner import data_folder
    from harness.staging import copy_files, copy_named

    try:
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
            made = sum(stage.kind == "data" for stage in driver.plan.stages.values())
            said.append(f"{count(made, 'data set')} of {driver.plan.name} in {store}; workers need no other files")
    except (UserError, OSError) as error:
        typer.echo(printable(str(error), 20_000), err=True)
        raise typer.Exit(2) from None
    for sentence in said:
        typer.echo(sentence)


@app.command("merge")
def merge(
    other: Annotated[Path, typer.Argument(help="Another store's folder.")],
    store: Annotated[Path, typer.Option(help="The store to add to.")] = Path("runs"),
) -> None:
    """Take over another store's finished stages. Nothing of it is changed, and nothing that is finished here."""
    from harness.merge import merge
    from harness.store import Store

    if not (other / "stages").is_dir():
        typer.echo(f"{other} is no store: it has no folder stages/", err=True)
        raise typer.Exit(2)
    if other.resolve() == store.resolve():
        typer.echo(f"{other} is the store itself; name another one", err=True)
        raise typer.Exit(2)
    done = merge(Store(store), Store(other))
    typer.echo(f"{done.taken} finished stages taken over, {done.had} were here already, {done.unfinished} not finished")
    if done.busy:
        typer.echo(f"{done.busy} are being worked on here and were left alone", err=True)
    for what in done.differ:
        typer.echo(f"{what}: finished in both with different content; the one here stays", err=True)
    for what in done.damaged:
        typer.echo(f"not taken: {what}", err=True)
    if done.damaged:
        raise typer.Exit(1)
