"""What a device can do at best: a large matrix product, which no network outruns."""

from __future__ import annotations

from collections.abc import Callable

import torch

SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of a product that is large enough, by sort of device."""


def product(device: str, precision: str, side: int) -> Callable[[], None]:
    """Return what computes a square matrix product, 2 x side^3 operations, and waits for it; fp32 without TF32."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(kind) for _ in range(2))

    def once() -> None:
        left @ right
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return once
