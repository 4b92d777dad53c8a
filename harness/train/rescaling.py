"""The rescale stage: one scale a tensor, learnt on the ticket before any recipe trains it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from harness.errors import UserError
from harness.train.cost import iteration_operations
from harness.train.images import Images
from harness.train.loop import Watcher
from harness.train.network import build, open_images
from harness.train.order import Order, Outcome
from tost.catalog import PARTS, resolve, settings
from tost.masks.io import load_masks

SPENT = "operations/"
"""Where a file of scales tells what they took; no parameter is called so."""


def make_scales(order: Order, watch: Watcher) -> Outcome:
    """Run a rescale stage, on augmented training batches in an order of their own."""
    spec, images = order.spec, open_images(order)
    part = PARTS[spec["method"]["name"]]
    knobs = settings(part, spec["method"].get("args", {}))
    batches = _batches(images, f"{spec['ticket_seed']}/rescale", spec["batch"])
    masks = load_masks(order.parent("mask")) if "mask" in order.parents else {}
    iterations = int(knobs["iterations"])
    model = build(order, images)
    try:
        found = resolve(part.stage)(
            model, masks, lambda: next(batches), each=lambda n: watch.at(n, iterations), **knobs
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    constraint, ahead = iteration_operations(model, spec["method"], images.shape)
    spent = found.constraint_steps * constraint + (found.iterations - found.constraint_steps) * ahead
    tensors = {name: torch.tensor(scale, dtype=torch.float64) for name, scale in found.scales.items()}
    tensors[SPENT] = torch.tensor(spent * spec["batch"])
    draft = Path(order.attempt) / "scales.safetensors"
    draft.write_bytes(save(tensors))
    return Outcome(
        draft,
        {
            "iterations": found.iterations,
            "operations": spent * spec["batch"],
            "constraint_steps": found.constraint_steps,
            "smallest": min(found.scales.values()),
            "largest": max(found.scales.values()),
        },
    )


def load_scales(path: Path) -> tuple[dict[str, float], int]:
    """Read a rescale stage's scales by parameter name, and the operations that they took."""
    tensors = load_file(path)
    spent = int(tensors.pop(SPENT))
    return {name: float(scale) for name, scale in tensors.items()}, spent


def _batches(images: Images, seed: str, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        for _, pixels, labels in images.epoch(seed, epoch, batch, 0):
            yield pixels, labels
        epoch += 1
