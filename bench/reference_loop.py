"""A training loop written the way released research code works, to measure the trainer against.

Single precision, NCHW, images augmented one by one in the workers of a DataLoader, the mask found anew in every step
as the weights that are not zero, each layer's by itself. Nothing of it is used elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.per_image import loader
from tost.catalog import MODELS, resolve
from tost.masks import prunable
from tost.masks.apply import apply_masks

WARM_UP = 5
"""Steps that are not timed."""


def network(arch: str, device: str, density: float = 0.05) -> nn.Module:
    """Return a network whose weights are pruned at random."""
    torch.manual_seed(0)
    model: nn.Module = resolve(MODELS[arch].path)(10)
    weights = prunable(model)
    apply_masks(model, {name: torch.rand_like(weight) < density for name, weight in weights.items()})
    return model.to(device)


def masks_of(model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Return the weights of layers that may be pruned, each with what is not zero of it."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [(layer.weight, (layer.weight != 0).float()) for layer in layers]


def step_seconds(
    arch: str, device: str, images: Tensor, batch: int, workers: int, seconds: float, windows: int
) -> list[float]:
    """Train for some windows of time; return the seconds of a step in each.

    `images`: [N, H, W, 3] in uint8; their labels are drawn.
    """
    model, criterion = network(arch, device), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    taken: list[float] = []
    steps, began = 0, 0.0
    model.train()
    for number, (inputs, labels) in enumerate(_forever(images, batch, workers)):
        inputs, labels = inputs.to(device), labels.to(device)
        kept = masks_of(model)
        loss = criterion(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for weight, mask in kept:
                weight.mul_(mask)
        loss.item()  # for the running mean that is printed
        steps += 1
        if number + 1 == WARM_UP or (number >= WARM_UP and time.perf_counter() - began > seconds):
            if number >= WARM_UP:
                taken.append((time.perf_counter() - began) / steps)
            if len(taken) == windows:
                break
            steps, began = 0, time.perf_counter()
    return taken


def _forever(images: Tensor, batch: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader(images, batch, workers)
