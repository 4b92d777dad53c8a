"""Convolutions of small maps as matrix products, in bf16 on CPUs with AMX, where oneDNN's own are slow.

Measured with torch 2.14 (bench/README.md): the gradient of the weights of 512 x 512 x 3 x 3 on 4 x 4 maps takes oneDNN
about five times as long as the product below, the output and the gradient of the input more than twice as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

PIXELS = 16
"""The largest output map, in pixels: on 8 x 8 ones oneDNN is as fast."""
STRIDED = 64
"""The same of kernels that stride."""
CHANNELS = 64
"""The fewest channels on both sides for it to pay."""
BF16 = torch.bfloat16


def pays(device: torch.device, precision: str) -> bool:
    """Return whether a device has slow convolutions of small maps and fast matrix products."""
    return bool(device.type == "cpu" and precision == "bf16" and torch.cpu._is_amx_tile_supported())


class SmallMaps(TorchFunctionMode):
    """Within it, every convolution that it fits is a matrix product; all else is as ever."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, or do its work."""
        if func is F.conv2d and len(args) == 7 and torch.is_autocast_enabled("cpu") and fits(*args):
            images, weight, bias, stride, padding = args[:5]
            product: Tensor = Product.apply(images.to(BF16), weight.to(BF16), stride[0], padding[0])
            return product if bias is None else product + bias.to(BF16)[:, None, None]
        return func(*args, **(kwargs or {}))


def fits(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    """Return whether a convolution is one of small maps, square in all that it is told."""
    if groups != 1 or images.dim() != 4 or min(weight.shape[:2]) < CHANNELS or weight.shape[2] == 1:
        return False
    told = (stride, padding, dilation, weight.shape[2:])
    if any(isinstance(pair, str) or len(set(pair)) != 1 for pair in told) or dilation[0] != 1:
        return False
    height, width = ((size + 2 * padding[0] - weight.shape[2]) // stride[0] + 1 for size in images.shape[2:])
    most = PIXELS if stride[0] == 1 else STRIDED
    return bool(min(height, width) > 0 and height * width <= most and padding[0] < weight.shape[2])


def windows(maps: Tensor, side: int, stride: int, padding: int) -> Tensor:
    """Return what a square kernel sees at every place of maps [N, C, H, W]: [N, H', W', side * side * C], copied."""
    inner = F.pad(maps.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    count, height, width, channels = inner.shape
    tall, wide = (height - side) // stride + 1, (width - side) // stride + 1
    image, row, column, _ = inner.contiguous().stride()
    seen = inner.contiguous().as_strided(
        (count, tall, wide, side, side, channels), (image, row * stride, column * stride, row, column, 1)
    )
    return seen.reshape(count, tall, wide, side * side * channels)


class Product(torch.autograd.Function):
    """A convolution without bias [N, C, H, W] by [O, C, k, k]; maps lie channels last."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        """Multiply windows by weights."""
        seen = windows(images, weight.shape[2], stride, padding)
        ctx.save_for_backward(seen, weight)
        ctx.given = images.shape, stride, padding
        return (seen @ _matrix(weight).t()).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Multiply once more for each gradient that is asked for."""
        (grad,) = outer
        (seen, weight), (shape, stride, padding) = ctx.saved_tensors, ctx.given
        side = weight.shape[2]
        inner = outer_weight = None
        if ctx.needs_input_grad[0] and stride == 1:
            turned = weight.flip(2, 3).transpose(0, 1)  # the gradient is a convolution with the kernel turned round
            inner = (windows(grad, side, 1, side - 1 - padding) @ _matrix(turned).t()).permute(0, 3, 1, 2)
        elif ctx.needs_input_grad[0]:
            inner = conv2d_input(shape, weight, grad, stride, padding)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            flat = grad.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])
            product = flat.t() @ seen.reshape(len(flat), -1)
            outer_weight = product.view(weight.shape[0], side, side, -1).permute(0, 3, 1, 2)
        return inner, outer_weight, None, None


def _matrix(weight: Tensor) -> Tensor:
    """Return weights [O, C, k, k] as [O, k * k * C]."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
