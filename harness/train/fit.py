"""Try a recipe's parts on a network of another library; run as a module, it prints what does not fit."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import torch

from tost.catalog import LIBRARIES, PARTS, asked_for, resolve

SIZES = (32, 64, 224)
"""Pixels to try the network with, until it takes them."""


def complaint(question: dict[str, Any]) -> str:
    """Return why one of the parts cannot be attached, or nothing; what takes no size is left to the trainer."""
    name, given = question["arch"]
    library, _, network = name.partition(":")
    net = resolve(LIBRARIES[library].path)(10, 3, name=network, **given).eval()
    for size in SIZES:
        with contextlib.suppress(RuntimeError, ValueError, AssertionError), torch.no_grad():
            net(torch.zeros(1, 3, size, size))
            break
    else:
        return ""
    for part, knobs in question["parts"]:
        if PARTS[part].stage or "window" not in PARTS[part].knobs:
            continue
        make = resolve(PARTS[part].path)
        shape = (3, size, size)
        offered = asked_for(make, {"shape": shape, "image": shape}, PARTS[part].knobs)
        made = make(**{**knobs, "window": (0.25, 0.5)}, **offered)
        try:
            made.attach(net)
        except ValueError as error:
            return f"{part}: {error}"
        made.detach()
    return ""


if __name__ == "__main__":
    sys.stdout.write(complaint(json.loads(sys.argv[1])))
