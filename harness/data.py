"""Fetch data sets, on a machine with network; nothing else ever downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.catalog import DATASETS
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
