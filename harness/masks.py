"""The verb `harness mask`: look at masks, hold two against each other, write one in another code's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import UserError, printable
from harness.mask_files import mask_file, read_mask
from harness.terminal import STORE, answered, examples, show_tables, tell, tell_json

if TYPE_CHECKING:
    from tost.masks.controls import Overlap

app = typer.Typer(
    no_args_is_help=True,
    help="Look at masks, compare them, export them.",
    epilog=examples("harness mask show 3fa9c1", "harness mask compare a.pt b.safetensors"),
)

Runs = Annotated[Path, typer.Option("--store", help="The store's folder, where keys are looked up.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Entry = Annotated[str, typer.Option(help="Where in a checkpoint the mask is, such as trainer.state_dict_ema.")]
SOURCE = "A file with masks in any known form, or the first digits of a stage's key."


@app.command(epilog=examples("harness mask show 3fa9c1", "harness mask show theirs.pt --json"))
def show(
    source: Annotated[str, typer.Argument(help=SOURCE)],
    entry: Entry = "auto",
    store: Runs = STORE,
    as_text: Json = False,
) -> None:
    """Print density and dead filters by layer. Exit codes: 0 printed, 2 a mistake, 3 a file cannot be read."""
    with answered(store):
        masks, form = read_mask(source, store, entry)
        from tost.masks.apply import dead_filters

        layers: list[dict[str, Any]] = [
            {
                "layer": name,
                "weights": mask.numel(),
                "kept": int(mask.sum()),
                "filters": len(mask),
                "dead_filters": dead_filters(mask),
            }
            for name, mask in masks.items()
        ]
        every = {name: sum(layer[name] for layer in layers) for name in ("weights", "kept")}
        if as_text:
            tell_json({"source": source, "form": form, "layers": layers, "all": every})
            return
        rows = [[of["layer"], *_amounts(of), f"{of['dead_filters']} of {of['filters']}"] for of in layers]
        heads = ["layer", "weights", "kept", "density", "dead filters"]
        _print(f"{source} ({form})", heads, [*rows, ["all", *_amounts(every), ""]])


def _amounts(of: Mapping[str, Any]) -> list[str]:
    return [f"{of['weights']:,}", f"{of['kept']:,}", f"{100 * of['kept'] / of['weights']:.2f}%"]


@app.command(epilog=examples("harness mask compare a.pt b.safetensors", "harness mask compare 3fa9c1 b7d204 --json"))
def compare(
    first: Annotated[str, typer.Argument(help=SOURCE)],
    second: Annotated[str, typer.Argument(help=SOURCE)],
    store: Runs = STORE,
    as_text: Json = False,
) -> None:
    """Print by layer how alike two masks are: intersection over union, and the share of positions that differ.

    Exit codes: 0 printed, 2 a mistake, such as masks of different networks, 3 a file cannot be read.
    """
    with answered(store):
        from tost.masks.controls import Overlap, overlap
        from tost.masks.files import rename_masks

        a, b = read_mask(first, store)[0], read_mask(second, store)[0]
        b = rename_masks(b, a)
        a = rename_masks(a, b)
        if only := sorted(set(a) ^ set(b)):
            raise UserError(f"only one of the two has a mask for {', '.join(only[:5])}; compare masks of one network")
        layers, whole = [], Overlap(0, 0, 0)
        for name in a:
            try:
                found = overlap(a[name], b[name])
            except ValueError as error:
                raise UserError(f"{name}: {error}; compare masks of one network") from None
            whole += found
            layers.append({"layer": name, **_likeness(found, int(a[name].sum()), int(b[name].sum()))})
        every = _likeness(whole, *(sum(int(m.sum()) for m in masks.values()) for masks in (a, b)))
        if as_text:
            tell_json({"sources": [first, second], "layers": layers, "all": every})
            return
        rows = [
            [of["layer"], *(f"{kept:,}" for kept in of["kept"]), f"{of['iou']:.4f}", f"{100 * of['differing']:.2f}%"]
            for of in [*layers, {"layer": "all", **every}]
        ]
        _print(f"{first} and {second}", ["layer", "kept", "kept", "IoU", "differing"], rows)


def _likeness(found: Overlap, *kept: int) -> dict[str, Any]:
    return {"kept": list(kept), "iou": found.iou, "differing": found.hamming}


@app.command(
    epilog=examples(
        "harness mask export 3fa9c1 mine.safetensors", "harness mask export 3fa9c1 mine.pt --form weight_mask"
    )
)
def export(
    source: Annotated[str, typer.Argument(help=SOURCE)],
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    form: Annotated[
        str, typer.Option(help="safetensors (ours), weight_mask (a state dict of masks), prune (torch), zeros.")
    ] = "safetensors",
    entry: Entry = "auto",
    store: Runs = STORE,
) -> None:
    """Write a mask in a form that other codes read; prune and zeros need a training, whose weights go along.

    Exit codes: 0 written, 2 a mistake, such as a file that is there already, 3 a file cannot be read or written.
    """
    with answered(target):
        if target.exists():
            raise UserError(f"{target} exists; name a file that does not")
        from tost.masks.files import read_weights, write_masks

        path = mask_file(source, store)
        masks, _ = read_mask(source, store, entry)
        try:
            write_masks(masks, target, form, read_weights(path, entry) if form in ("prune", "zeros") else {})
        except ValueError as error:
            raise UserError(str(error)) from None
        except OSError:
            target.unlink(missing_ok=True)  # half of it
            raise
        tell(f"wrote {target}")


def _print(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)), title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for row in rows[:-1]:
        table.add_row(*(Text(printable(cell)) for cell in row))
    table.add_section()
    table.add_row(*(Text(printable(cell)) for cell in rows[-1]))
    show_tables(table)
