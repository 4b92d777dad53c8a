"""Masks from files, held against a network and a sparsity; run as a module, it tells beforehand what does not fit."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from harness.errors import UserError
from harness.plugins import forget_frozen
from harness.train.network import kept_of, network_maker
from harness.train.order import Order
from tost.masks import Masks, prunable
from tost.masks.files import pair_masks, read_masks

TOLERANCE = 0.01
"""How far an imported mask's count may lie from the cell's: codes round and break ties in their own ways."""

BUILT = ({"classes": 7, "channels": 1}, {"classes": 11, "channels": 3})
"""What a network is built for twice: sizes that differ between the two are the data set's, and any fits."""


def read_file(path: Path, method: Mapping[str, Any]) -> tuple[Masks, str]:
    """Read the masks of a file as a method's settings say. Raises ValueError as tost.masks.files.read_masks does."""
    given = method.get("args", {})
    return read_masks(path, given.get("match") == "order", given.get("entry", "auto"))


def check_count(masks: Masks, sparsity: Mapping[str, Any]) -> None:
    """Raise UserError where masks keep another number of weights than a sparsity asks for."""
    kept, total = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    asked = kept_of(total, sparsity)
    if abs(kept - asked) > max(1, TOLERANCE * asked):
        raise UserError(
            f"the file keeps {kept:,} of {total:,} weights, the cell's sparsity {asked:,}; "
            f"write sparsity: {_share(kept, total)}%"
        )


def _share(kept: int, total: int) -> str:
    """Return the sparsity in percent, with as many digits as its count needs."""
    digits = 2
    while abs(round(total * (1 - float(f"{100 * (1 - kept / total):.{digits}f}") / 100)) - kept) > TOLERANCE * kept / 2:
        digits += 1
    return f"{100 * (1 - kept / total):.{digits}f}"


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return what keeps a mask stage from using its file (`said`), and which of its masks each weight gets (`pairs`).

    Of a network that cannot be built here, only the file is read: the trainer says what is wrong with it.
    """
    spec, path = question["spec"], Path(question["path"])
    pairs: dict[str, str] = {}
    try:
        masks, _ = _read(path, json.dumps(spec["method"]))
        shapes = _shapes(question["plugins"], json.dumps(spec["arch"]), spec["prunable"], question["channels"])
        if shapes:
            match = spec["method"].get("args", {}).get("match", "name")
            pairs = pair_masks(masks, shapes, spec["prunable"], match)
            check_count({name: masks[theirs] for name, theirs in pairs.items()}, spec["sparsity"])
    except (ValueError, UserError) as error:
        said = str(error)
        return {"said": said if said.startswith(str(path)) else f"{path}: {said}", "pairs": {}}
    return {"said": "", "pairs": pairs}


@cache
def _read(path: Path, method: str) -> tuple[Masks, str]:
    return read_file(path, json.loads(method))


@cache
def _shapes(plugins: str, arch: str, which: str, channels: int) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes of a network's prunable weights in its order, None where the data set decides; or nothing."""
    found = []
    try:
        order = Order("", "mask", {"arch": json.loads(arch)}, plugins, "", (), {})
        make = network_maker(order)
        for sizes in BUILT:
            sizes = {**sizes, "channels": channels or sizes["channels"]}
            with torch.no_grad():
                net = make(*sizes.values(), **json.loads(arch).get("args", {}))
            mine = prunable(net, which)
            found.append({name: tuple(weight.shape) for name, weight in net.named_parameters() if name in mine})
    except (Exception, SystemExit):  # a user's own code raises anything
        return {}
    finally:
        forget_frozen()  # the next network's helpers may have the same names
    first, second = found
    if list(first) != list(second) or any(len(first[n]) != len(second[n]) for n in first):
        return {}
    return {n: tuple(a if a == b else None for a, b in zip(first[n], second[n], strict=True)) for n in first}


if __name__ == "__main__":
    answers = json.dumps([answer(question) for question in json.load(sys.stdin)])
    sys.stdout.write(f"\n{answers}")  # a user's own network may have printed something
