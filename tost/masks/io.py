"""Masks on disk: safetensors, one uint8 tensor of 0 and 1 a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from tost.masks.apply import Masks

MARK = "mask/"
"""What a mask is called in a file of weights, before the weight's name."""


def split_masks(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Part a file of weights into the weights and, by the weights' names, the masks that stand among them."""
    masks = {name.removeprefix(MARK): tensor for name, tensor in tensors.items() if name.startswith(MARK)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(MARK)}, masks


def save_masks(masks: Masks, path: Path) -> None:
    """Write masks to a safetensors file, over one that is there: uint8 of 0 and 1, under the parameters' names."""
    path.write_bytes(save({name: mask.to(torch.uint8).contiguous() for name, mask in masks.items()}))


def load_masks(path: Path) -> Masks:
    """Read masks back. Raises ValueError, naming file and tensor, for anything that is not a mask file."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.uint8, torch.bool) or bool((tensor > 1).any()):
            raise ValueError(f"{path}: {name!r} is no mask; it must hold 0 and 1 as uint8 or bool")
    return {name: tensor.bool() for name, tensor in tensors.items()}
