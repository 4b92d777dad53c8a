"""What a recipe costs beside the default one: operations counted, not seconds, so that every machine agrees."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from harness.protocol import Protocol
from tost.accounting import operations, step_operations
from tost.catalog import PARTS, resolve, settings
from tost.recipe import Criterion, Part


def epoch_operations(
    model: nn.Module, parts: Sequence[Part], criterion: Criterion, shape: Sequence[int], epochs: int
) -> list[int]:
    """Return the operations of a training step for one image, epoch by epoch, of a plain model with parts.

    The model is changed: give a copy. It is measured anew wherever a part's ghosts come or go.
    """
    for part in parts:
        part.attach(model)
        criterion = part.criterion(criterion)
    counts: list[int] = []
    measured: dict[tuple[bool, ...], int] = {}
    for epoch in range(epochs):
        for part in parts:
            part.step(epoch / epochs)
        alive = tuple(part.ghosts for part in parts)
        if alive not in measured:
            measured[alive] = step_operations(model, criterion, shape)
        counts.append(measured[alive])
    return counts


def ghost_operations(
    model: nn.Module, parts: Sequence[Part], criterion: Criterion, shape: Sequence[int], epochs: int
) -> list[int]:
    """Return by epoch what a recipe's parts add to the operations of a training step, for one image."""
    if not parts:
        return [0] * epochs
    plain = step_operations(model, criterion, shape)
    return [count - plain for count in epoch_operations(copy.deepcopy(model), parts, criterion, shape, epochs)]


def iteration_operations(model: nn.Module, spec: Mapping[str, Any], shape: Sequence[int]) -> tuple[int, int]:
    """Return the operations, for one image of a batch, of a part's iteration: a constraint step, a look-ahead step."""
    entry = PARTS[spec["name"]]
    knobs = {**settings(entry, spec.get("args", {})), "iterations": 1}
    device = next(model.parameters()).device
    images = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.zeros(1, dtype=torch.long, device=device)

    def once(gamma: float) -> int:
        learn = resolve(entry.stage)
        return operations(lambda: learn(model, {}, lambda: (images, labels), **{**knobs, "gamma": gamma}))

    return once(1e-9), once(1e9)


def stage_operations(model: nn.Module, recipe: Sequence[Mapping[str, Any]], shape: Sequence[int], batch: int) -> int:
    """Return the operations of what a recipe's parts do before training, every iteration at its dearer kind."""
    total = 0
    for spec in recipe:
        if "name" in spec and PARTS[spec["name"]].stage:
            iterations = int(settings(PARTS[spec["name"]], spec.get("args", {}))["iterations"])
            total += iterations * max(iteration_operations(model, spec, shape)) * batch
    return total


def matched(
    model: nn.Module,
    protocol: Protocol,
    recipe: Sequence[Mapping[str, Any]],
    parts: Callable[[], list[Part]],
    criterion: Criterion,
    shape: Sequence[int],
    images: int,
) -> Protocol:
    """Return a protocol lengthened to whole epochs by what a recipe costs more, milestones and warm-up with it.

    `images`: of one epoch. What a ticket costs is not counted, nor are evaluations.
    """
    plain = step_operations(model, criterion, shape)
    extra = sum(ghost_operations(model, parts(), criterion, shape, protocol.epochs)) * images
    extra += stage_operations(model, recipe, shape, protocol.batch)
    epochs = protocol.epochs + max(0, math.ceil(extra / (plain * images)))
    ratio = epochs / protocol.epochs
    return protocol.model_copy(
        update={
            "epochs": epochs,
            "milestones": tuple(milestone * ratio for milestone in protocol.milestones),
            "warmup": protocol.warmup * ratio,
        }
    )
