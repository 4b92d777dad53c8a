"""Small networks that many tests of the library use, and what a score may ask for."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from tost.catalog import MASKS, MODELS, resolve
from tost.masks import prunable

SIZE = 16
"""Height and width of the images that catalog networks are tried with."""


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    net(torch.randn(16, 3, 8, 8))  # batch norm with running statistics of its own
    return net


def offers(seed: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(20, 3, 8, 8, generator=generator)
    return {
        "batches": [(images, torch.arange(20) % 4)],
        "shape": (3, 8, 8),
        "generator": torch.Generator().manual_seed(seed),
    }


def call(method: str, net: nn.Module, seed: int = 1, offered: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """Score a network by a method of the catalog."""
    score = resolve(MASKS[method].path)
    wanted = inspect.signature(score).parameters
    return dict(score(net, **{k: v for k, v in (offered or offers(seed)).items() if k in wanted}))


def total(net: nn.Module) -> int:
    return sum(w.numel() for w in prunable(net).values())


def thin(name: str, width: float = 0.125, classes: int = 5, seed: int = 0) -> nn.Module:
    """Build a catalog network an eighth as wide, its batch norms with statistics of their own."""
    torch.manual_seed(seed)
    net: nn.Module = resolve(MODELS[name].path)(classes, 3, width)
    with torch.no_grad():
        net.train()(torch.randn(4, 3, SIZE, SIZE))
    return net


class TwoLinear(nn.Module):
    """y = B A x, with A [2, 2] and B [2, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.a.weight.data = torch.tensor([[1.0, -2.0], [0.5, 1.0]])
        self.b.weight.data = torch.tensor([[2.0, 1.0], [-1.0, 3.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.a(x.flatten(1)))
        return out
