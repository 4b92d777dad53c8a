"""How tensors of images lie in memory: a choice of the machine, which changes a number's last bits and its speed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LAYOUTS: dict[torch.memory_format, str] = {torch.contiguous_format: "nchw", torch.channels_last: "channels_last"}
"""Their names in a stamp."""


def usual(device: torch.device, precision: str) -> torch.memory_format:
    """Return the layout that is fast on a device: by rule and not by measuring, so that a resumed training keeps it.

    On a CPU with AMX channels last makes bf16 convolutions up to three times as fast, and fp32 hardly ever slower
    (bench/README.md); on CUDA it is what tensor cores take, which fp32 without TF32 does not use.
    """
    last = device.type == "cpu" or (device.type == "cuda" and precision == "bf16")
    return torch.channels_last if last else torch.contiguous_format


def fitting(model: nn.Module, layout: torch.memory_format, shape: tuple[int, ...]) -> torch.memory_format:
    """Return a layout, or the contiguous one where the network cannot take it: `x.view(len(x), -1)` in a user's code.

    It is found out with two images of `shape`, forwards and backwards. The network is changed: give a copy.
    """
    plain: torch.memory_format = torch.contiguous_format
    return layout if layout != plain and takes(model, layout, shape) else plain


def takes(model: nn.Module, layout: torch.memory_format, shape: tuple[int, ...]) -> bool:
    """Return whether a network can be trained in a layout."""
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            model.train().to(memory_format=layout)
            logits: Tensor = model(torch.zeros(2, *shape, device=device).to(memory_format=layout))
            logits.sum().backward()  # type: ignore[no-untyped-call]
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # they say nothing of the network
        except RuntimeError as error:
            if "allocate memory" in str(error):  # the CPU's allocator
                raise
            return False
    return True


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a copy of a tensor on a parameter's device that lies in memory as the parameter does."""
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
