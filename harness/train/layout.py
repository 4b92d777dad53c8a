"""How tensors of images lie in memory: a choice of the machine, which changes a number's last bits and its speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

LAYOUTS: dict[torch.memory_format, str] = {torch.contiguous_format: "nchw", torch.channels_last: "channels_last"}
"""Their names in a stamp."""
FEWEST = 16
"""Input channels per group that a strided 1x1 convolution must have for its tensors to lie channels last on a CPU.

With fewer than a vector register holds (8 floats of AVX2, 16 of AVX-512), oneDNN 3.12's gradient of the weights writes
beyond its workspace: wrong numbers, a hang or a corrupted heap (docs/reference/channels-last.md).
"""


def usual(device: torch.device, precision: str) -> torch.memory_format:
    """Return the layout that is fast on a device: by rule and not by measuring, so that a resumed training keeps it.

    On a CPU with AMX channels last makes bf16 convolutions up to three times as fast, and fp32 hardly ever slower
    (bench/README.md); on CUDA it is what tensor cores take, which fp32 without TF32 does not use.
    """
    last = device.type == "cpu" or (device.type == "cuda" and precision == "bf16")
    return torch.channels_last if last else torch.contiguous_format


def unsafe_last(weight: Tensor, stride: Sequence[int]) -> bool:
    """Return whether a convolution by a weight [O, I / groups, ...] may be computed wrongly where channels lie last.

    By its shape alone and on every CPU: the same network lies the same way wherever its training is resumed. Of a
    transposed convolution the weight is [I, O / groups, ...], and its second size is again what counts.
    """
    return max(weight.shape[2:], default=0) == 1 and max(stride, default=1) > 1 and weight.shape[1] < FEWEST


class Convolutions(TorchDispatchMode):  # type: ignore[misc]
    """Looks for unsafe convolutions in all that runs inside it, called as modules, as functions, or from hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.unsafe = False
        self.laid_last = ""
        """One whose tensors lie channels last already, by the network's own doing."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and look at it."""
        if func is torch.ops.aten.convolution.default and unsafe_last(args[1], args[3]):
            self.unsafe = True
            if any(map(_lies_last, args[:2])):
                weight, stride = args[1], list(args[3])
                self.laid_last = f"{weight.shape[1]} to {weight.shape[0]} channels, stride {stride}"
        return func(*args, **(kwargs or {}))

    def refuse(self) -> None:
        """Raise ValueError where an unsafe convolution would be computed channels last whatever layout is chosen."""
        if self.laid_last:
            raise ValueError(
                f"a 1x1 convolution ({self.laid_last}) is given tensors that lie channels last, by permute() or "
                "to(memory_format=...); torch computes its gradient wrongly on some CPUs "
                "(docs/reference/channels-last.md); call .contiguous() on its input"
            )


def _lies_last(tensor: Tensor) -> bool:
    """Return whether torch takes a tensor to lie channels last; is_contiguous() is true of both for a 1x1 weight."""
    maps = tensor.unsqueeze(2) if tensor.dim() == 3 else tensor  # as torch computes convolutions of one dimension
    return maps.dim() == 4 and maps.to(memory_format=torch.channels_last) is maps


def fitting(model: nn.Module, layout: torch.memory_format, shape: tuple[int, ...]) -> torch.memory_format:
    """Return a layout, or the contiguous one where the network cannot take it, or must not.

    It cannot with `x.view(len(x), -1)` in a user's code, and must not with a convolution that is unsafe on CPUs.
    It is found out with two images of `shape`, forwards and backwards. The network is changed: give a copy.
    """
    plain: torch.memory_format = torch.contiguous_format
    return layout if layout != plain and takes(model, layout, shape) else plain


def takes(model: nn.Module, layout: torch.memory_format, shape: tuple[int, ...]) -> bool:
    """Return whether a network can be trained in a layout. Raises ValueError as `Convolutions.refuse` does."""
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    images = torch.zeros(2, *shape, device=device)
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            model.train()
            if device.type == "cpu" and _has_unsafe(model, images):
                return False
            logits: Tensor = model.to(memory_format=layout)(images.to(memory_format=layout))
            logits.sum().backward()  # type: ignore[no-untyped-call]
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # they say nothing of the network
        except RuntimeError as error:
            if "allocate memory" in str(error):  # the CPU's allocator
                raise
            return False
    return True


def _has_unsafe(model: nn.Module, images: Tensor) -> bool:
    """Return whether a network has an unsafe convolution: in a forward pass as it lies, or in a module left out of it.

    Nothing is computed channels last that the network does not lay so itself, and no gradient at all.
    """
    with torch.no_grad(), Convolutions() as seen:
        model(images)
    seen.refuse()
    modules = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    return seen.unsafe or any(unsafe_last(module.weight, module.stride) for module in modules)


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a copy of a tensor on a parameter's device that lies in memory as the parameter does."""
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
