"""What two results must share to be compared: mask, initial weights, order of the data; and the scales of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from harness.plan import Plan, Stage
from harness.report.measured import Measured
from harness.store import digest

NONE = "none"
MOVING = "moving"
"""The mask of a method that prunes while it trains: it depends on the recipe too."""
SHOWN = 16
"""Hex digits of an identity."""


@dataclass(frozen=True)
class Identity:
    """Hashes of what a training was made of; equal ones say that two trainings shared it."""

    content: str = ""
    """The data set's files."""
    mask: str = ""
    """The mask's artifact; `none` of a dense network, `moving` where it changes during training."""
    mask_key: str = ""
    """The stage that the mask is of: the same stage can have been made with other content elsewhere."""
    theta0: str = ""
    """The initial weights, before scales and mask."""
    scales: str = ""
    """What LRsI learned; it belongs to the recipe, so that it need not agree."""
    order: str = ""
    """The seed, split, batches and augmentation that the images come by."""


UNKNOWN = Identity()


def identify(plan: Plan, stage: Stage, measured: Measured | None) -> Identity:
    """Return the identity of a training; of one without a result, what its spec tells."""
    spec = stage.spec
    read = measured.parents if measured else {}

    def parent(role: str) -> str:
        key = stage.parents.get(role, "")
        return str(read.get(key, key))[:SHOWN]

    data = plan.stages.get(stage.parents.get("data", ""))
    protocol = spec.get("protocol", {})
    order = {
        "data": parent("data"),
        "seed": spec.get("seed"),
        "dev": spec.get("dev"),
        "augment": spec.get("augment"),
        "batch": protocol.get("batch"),
    }
    start = {name: spec.get(name) for name in ("arch", "ticket_seed", "init", "small", "rewind")}
    stamp = measured.stamp if measured else {}
    return Identity(
        str(data.spec.get("content", "stand-in"))[:SHOWN] if data else "",
        MOVING if "prune" in spec else parent("mask") or NONE,
        stage.parents.get("mask", ""),
        str(stamp.get("theta0") or digest({**start, "start": parent("start")}))[:SHOWN],
        parent("rescale") or NONE,
        digest(order)[:SHOWN],
    )
