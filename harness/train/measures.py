"""What is measured when a training ends: accuracy, sizes, operations, dead filters, silent activations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn

from harness.train.images import Split
from harness.train.run import Training
from tost.accounting import TRAINING_FACTOR, Layer, ghost_parameters, layers
from tost.masks import Masks
from tost.masks.apply import EVERY, dead_filters, empty_layers, is_ghost, left_out, prunable
from tost.recipe.soft_activation import Soft, relu_reach

NEAR_ZERO = 1e-3
"""An activation of at most this absolute value counts as near zero."""

LOOKED_AT = 512
"""Images that activations are looked at for: dev, or training images where there is no dev split."""


def accuracies(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of the last epoch and of the best one; of a blind training, none of the test images."""
    last, bests = rows[-1], [row for row in rows if row["best"]]
    found: dict[str, Any] = {
        "train_loss": last["train_loss"],
        "dev_accuracy": last.get("dev_accuracy"),
        "epochs": last["epoch"],
    }
    if "test_accuracy" in last:
        found |= {"test@last": last["test_accuracy"], "test_loss": last["test_loss"]}
    if bests:
        found["best_epoch"] = bests[-1]["epoch"]
        found |= {"test@best-dev": bests[-1]["test_accuracy"]} if "test_accuracy" in bests[-1] else {}
    return found


def account(run: Training, masks: Masks) -> dict[str, Any]:
    """Return sizes and operations; zeros count in the figures that end in `_dense` only.

    `inference_flops` are of one image, `training_flops` of all epochs trained here, a backward pass counted as two
    forward passes; both count multiply-adds of convolutions and linear layers twice, those of other layers' weights and
    of ghosts that stay among them. What ghosts that do not stay add is `ghost_operations`. `left_out`: weights that the
    masks do not speak of, by name, and their sizes.
    """
    table = layers(run.model, run.images.shape, masks)
    own = {name: table[name] for name in prunable(run.model, EVERY)}
    added = {name: layer for name, layer in table.items() if is_ghost(name)}
    parameters, ghosts = sum(p.numel() for p in run.model.parameters()), ghost_parameters(run.model)
    total, kept = sum(layer.size for layer in own.values()), sum(layer.kept for layer in own.values())
    ghost_weights = sum(layer.size for layer in added.values())
    dense, sparse = sum(layer.dense_flops for layer in table.values()), sparse_flops(table)
    seen = TRAINING_FACTOR * len(run.images.train)
    rows = run.position.rows
    return {
        "parameters": parameters,
        "parameters_kept": parameters - (total - kept),
        "kept": sum(int(mask.sum()) for mask in masks.values()) if masks else None,
        "prunable": sum(mask.numel() for mask in masks.values()) if masks else None,
        "left_out": unmasked(run.model, masks) if masks else {},
        "density": kept / total if total else 1.0,
        "density_with_ghosts": (kept + ghost_weights) / total if total else 1.0,
        "layers": {
            n: [layer.size, layer.kept, dead_filters(masks[n]) if n in masks else 0] for n, layer in table.items()
        },
        "empty_layers": empty_layers(masks),
        "dead_filters": sum(dead_filters(mask) for mask in masks.values()),
        "inference_flops": sparse,
        "inference_flops_dense": dense,
        "training_flops": seen * sum(row.get("flops", sparse) for row in rows),
        "training_flops_dense": seen * len(rows) * dense,
        "ghost_parameters": ghosts,
    }


def unmasked(model: nn.Module, masks: Container[str]) -> dict[str, int]:
    """Return the weights of a network that masks do not speak of, by name, and their sizes; frozen ones are marked."""
    others = ((name, p) for name, p in left_out(model, EVERY).items() if name not in masks)
    dense = ((name, p) for name, p in prunable(model, EVERY).items() if name not in masks)
    return {name if p.requires_grad else f"{name} (frozen)": p.numel() for name, p in (*others, *dense)}


def sparse_flops(table: dict[str, Layer]) -> int:
    """Return the operations of one image with zeros left out."""
    return sum(layer.sparse_flops for layer in table.values())


@torch.inference_mode()
def activations(run: Training) -> dict[str, Any]:
    """Return by activation site the share of values near zero, and how many of its channels never leave it.

    Seen are modules; `activations_of` is there where some ReLUs are calls of functions, as `1 of 3 ReLUs`.
    """
    split = run.images.dev if len(run.images.dev) else run.images.train
    some = Split(split.cut(slice(LOOKED_AT)), split.labels[:LOOKED_AT])
    near: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    alive: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    hooks = []

    def look(name: str, output: Tensor) -> None:
        calls[name] += 1
        site = name if calls[name] == 1 else f"{name}#{calls[name]}"  # a module that is used several times
        small = output.abs() <= NEAR_ZERO
        near[site] += int(small.sum())
        seen[site] += small.numel()
        rest = [d for d in range(small.ndim) if d != 1]
        moved = (~small).any(dim=tuple(rest)) if small.ndim > 1 else ~small
        alive[site] = alive[site] | moved if site in alive else moved

    for name, module in run.model.named_modules():
        if isinstance(module, nn.ReLU | nn.ReLU6 | Soft):
            hooks.append(module.register_forward_hook(lambda m, i, o, name=name: look(name, o)))
    run.model.eval()
    for images, _ in run.images.batches(some):
        calls.clear()
        with run.autocast():
            run.model(images)
    for hook in hooks:
        hook.remove()
    sites = {site: [near[site] / seen[site], int((~alive[site]).sum()), alive[site].numel()] for site in seen}
    total = sum(seen.values())
    reach = relu_reach(run.model, run.images.shape)
    return ({"activations_of": str(reach)} if reach and reach.partial else {}) | {
        "near_zero": sum(near.values()) / total if total else None,
        "silent_channels": sum(silent for _, silent, _ in sites.values()),
        "activations": sites,
    }
