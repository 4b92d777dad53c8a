"""Look at networks for a plan: which parts of a recipe do not fit, which weights no mask reaches; run as a module."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.plugins import forget_frozen, load_frozen
from harness.train.measures import unmasked
from tost.catalog import LIBRARIES, PARTS, asked_for, resolve
from tost.masks import MaskError, prunable

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


def reached(question: Mapping[str, Any], store: Path) -> dict[str, Any]:
    """Return how many of a network's weights a prunable set has and what it leaves out, or why it is refused.

    Nothing where the network cannot be built here.
    """
    spec, which = question["arch"], question["prunable"]
    try:
        if "source" in spec:
            make = load_frozen(store, spec["source"], spec["path"])
        else:
            library, _, network = spec["name"].partition(":")
            make = partial(resolve(LIBRARIES[library].path), name=network)
        model = make(*question["shape"], **spec["args"])
        pruned = prunable(model, which)
    except MaskError as error:
        return {"refused": str(error)}
    except (Exception, SystemExit):  # a user's code; its trainer tells it
        return {}
    finally:
        forget_frozen()  # the next network's helpers may have the same names
    return {
        "prunable": sum(weight.numel() for weight in pruned.values()),
        "left_out": unmasked(model, pruned),
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    if "networks" in asked:
        said = json.dumps({label: reached(one, Path(asked["store"])) for label, one in asked["networks"].items()})
    else:
        said = json.dumps(complaint(asked))
    sys.stdout.write(f"\n{said}")  # a user's own network may have printed something
