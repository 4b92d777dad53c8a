"""The verb `harness mask`: look at masks, hold two against each other, write one in another code's form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from harness.errors import UserError, printable
from harness.mask_files import mask_file, read_mask

app = typer.Typer(no_args_is_help=True, help="Look at masks, compare them, export them.")

Runs = Annotated[Path, typer.Option("--store", help="The store's folder, where keys are looked up.")]
SOURCE = "A file with masks in any known form, or the first digits of a stage's key."


@app.command()
def show(source: Annotated[str, typer.Argument(help=SOURCE)], store: Runs = Path("runs")) -> None:
    """Print density and dead filters by layer."""
    with _mistakes():
        masks, form = read_mask(source, store)
        from tost.masks.apply import dead_filters

        rows = []
        for name, mask in masks.items():
            size, kept = mask.numel(), int(mask.sum())
            dead = f"{dead_filters(mask)} of {len(mask)}"
            rows.append([name, f"{size:,}", f"{kept:,}", f"{100 * kept / size:.2f}%", dead])
        kept, total = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
        rows.append(["all", f"{total:,}", f"{kept:,}", f"{100 * kept / total:.2f}%", ""])
        _print(f"{source} ({form})", ["layer", "weights", "kept", "density", "dead filters"], rows)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help=SOURCE)],
    second: Annotated[str, typer.Argument(help=SOURCE)],
    store: Runs = Path("runs"),
) -> None:
    """Print by layer how alike two masks are: intersection over union, and the share of positions that differ."""
    with _mistakes():
        from tost.masks.controls import Overlap, overlap

        a, b = read_mask(first, store)[0], read_mask(second, store)[0]
        if only := sorted(set(a) ^ set(b)):
            raise UserError(f"only one of the two has a mask for {', '.join(only[:5])}; compare masks of one network")
        rows, whole = [], Overlap(0, 0, 0)
        for name in a:
            try:
                found = overlap(a[name], b[name])
            except ValueError as error:
                raise UserError(f"{name}: {error}") from None
            whole += found
            rows.append(
                [name, *_counts(a[name].sum(), b[name].sum()), f"{found.iou:.4f}", f"{100 * found.hamming:.2f}%"]
            )
        sums = (sum(int(m.sum()) for m in masks.values()) for masks in (a, b))
        rows.append(["all", *_counts(*sums), f"{whole.iou:.4f}", f"{100 * whole.hamming:.2f}%"])
        _print(f"{first} and {second}", ["layer", "kept", "kept", "IoU", "differing"], rows)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help=SOURCE)],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    form: Annotated[
        str, typer.Option(help="safetensors (ours), weight_mask (a state dict of masks), prune (torch), zeros.")
    ] = "safetensors",
    store: Runs = Path("runs"),
) -> None:
    """Write a mask in a form that other codes read; prune and zeros need a training, whose weights go along."""
    with _mistakes():
        if target.exists():
            raise UserError(f"{target} exists; name a file that does not")
        from tost.masks.files import read_weights, write_masks

        path = mask_file(source, store)
        masks, _ = read_mask(source, store)
        try:
            write_masks(masks, target, form, read_weights(path) if form in ("prune", "zeros") else {})
        except ValueError as error:
            raise UserError(str(error)) from None
        typer.echo(f"wrote {target}")


@contextmanager
def _mistakes() -> Iterator[None]:
    """Turn a user's mistake into one line and exit code 2."""
    try:
        yield
    except (UserError, OSError) as error:
        typer.echo(printable(str(error), 20_000), err=True)
        raise typer.Exit(2) from None


def _counts(*kept: object) -> list[str]:
    return [f"{int(count):,}" for count in kept]  # type: ignore[call-overload]


def _print(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)), title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for row in rows[:-1]:
        table.add_row(*(Text(printable(cell)) for cell in row))
    table.add_section()
    table.add_row(*(Text(printable(cell)) for cell in rows[-1]))
    Console().print(table)
