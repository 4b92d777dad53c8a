"""Tensors in one piece of memory, so that one kernel serves all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNED = 64
"""Elements: each tensor begins at a multiple of so many, as vectorised kernels want; of any dtype at the same one."""


def room_for(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return new memory, zeros, and a view into it for each tensor, of its shape and lying in memory as it does.

    `tensors`: of one dtype, on one device.
    """
    sizes = [-(-tensor.numel() // ALIGNED) * ALIGNED for tensor in tensors]
    flat = torch.zeros(sum(sizes), dtype=tensors[0].dtype, device=tensors[0].device)
    parts = torch.split(flat, sizes)
    return flat, [
        part[: tensor.numel()].as_strided(
            tensor.shape, torch.empty_like(tensor, device="meta").stride(), part.storage_offset()
        )
        for part, tensor in zip(parts, tensors, strict=True)
    ]
