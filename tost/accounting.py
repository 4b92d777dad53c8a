"""What a network costs: multiply-adds by layer, dense and with zeros left out, and operations counted as they run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tost.masks.apply import EVERY, MaskError, Masks, copied, forked_rng, is_ghost, not_as_it_is, prunable
from tost.products import Products, spreading

TRAINING_FACTOR = 3
"""A backward pass is counted as two forward passes, as is usual."""


@dataclass(frozen=True)
class Layer:
    """One weight tensor: its values, how many are kept, and its multiply-adds for one image."""

    size: int
    kept: int
    multiply_adds: int
    """With nothing pruned."""

    @property
    def uses(self) -> int:
        """Return how often each weight is multiplied for one image: of a convolution, its output positions."""
        return self.multiply_adds // self.size

    @property
    def dense_flops(self) -> int:
        """Return two operations for every multiply-add."""
        return 2 * self.multiply_adds

    @property
    def sparse_flops(self) -> int:
        """Return the same with pruned weights not counted."""
        return 2 * self.multiply_adds * self.kept // self.size


def layers(model: nn.Module, shape: Sequence[int], masks: Masks | None = None) -> dict[str, Layer]:
    """Return the account of every weight that one image of [C, H, W] is multiplied with; without a mask all is kept.

    Those are the weights of Conv2d and Linear, and what else convolutions, matrix products and recurrent layers are
    taken with, however they are called: other convolutions, an attention layer's projections. Those that recipe parts
    have added are among them, under names that `is_ghost` tells.
    Raises MaskError for a Conv2d or Linear whose weight is not multiplied as it is (weight standardisation): what is
    pruned there would be dense all the same; and for a network on the meta device.
    """
    own = prunable(model, EVERY)
    with torch.inference_mode(False), torch.no_grad():
        net = copied(model).eval()
        weights = dict(net.named_parameters())
        if any(weight.is_meta for weight in weights.values()):
            raise MaskError("the network is on the meta device, where nothing is multiplied; make it on the CPU")
        at = next(iter(weights.values()), torch.zeros(()))
        image = torch.zeros(1, *shape, device=at.device, dtype=floating(net))
        with forked_rng(at):
            with Products(weights) as products:
                net(image)
            found = products.multiply_adds
            computed = [name for name in own if name in products.computed and not found[name]]
            if computed and (dense := spreading(lambda: net(image), weights, computed)):
                name = min(dense)
                raise MaskError(not_as_it_is(name.removesuffix(".weight"), products.computed[name]))
    found.update({name: products.derived[name] for name in computed})
    held = {id(module.weight) for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    masks = masks or {}
    return {
        name: Layer(
            weights[name].numel(),
            int(masks[name].sum()) if name in masks else weights[name].numel(),
            found[name],
        )
        for name in sorted(weights)
        if id(weights[name]) in held or found[name]
    }


def floating(model: nn.Module) -> torch.dtype:
    """Return the dtype of images for a model: that of its first parameter in floating point."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def ghost_parameters(model: nn.Module) -> int:
    """Return how many trained values a model holds that a recipe part added to it."""
    return sum(p.numel() for name, p in model.named_parameters() if is_ghost(name))


def _convolution_backward(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    """Return both gradients' operations. torch's own formula counts a grouped convolution as if it were dense."""
    transposed, wanted = bool(args[4]), args[7]
    positions = math.prod(x[2:]) if transposed else math.prod(grad[2:])
    return 2 * x[0] * positions * math.prod(weight) * sum(map(bool, wanted[:2]))


class Operations(TorchDispatchMode):  # type: ignore[misc]
    """Counts what runs inside it: matrix products and convolutions exactly, every elementwise result as one operation.

    Backward passes count as they run. Reshaping, copying and pooling are free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elementwise = 0
        mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
        self.products = FlopCounterMode(display=False, custom_mapping=mapping)

    @property
    def total(self) -> int:
        """Return all operations counted so far."""
        return self.elementwise + int(self.products.get_total_flops())

    def __enter__(self) -> Operations:
        """Begin to count."""
        self.products.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        super().__exit__(*error)
        self.products.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it."""
        out = func(*args, **(kwargs or {}))
        if torch.Tag.pointwise in func.tags and isinstance(out, Tensor):
            self.elementwise += out.numel()
        return out


def operations(run: Callable[[], object]) -> int:
    """Return the operations of a call."""
    with Operations() as counted:
        run()
    return counted.total


def step_operations(model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor], shape: Sequence[int]) -> int:
    """Return the operations of one training step's forward and backward pass, for one image of [C, H, W].

    Measured on two images with a copy of the model as it stands, its ghosts included, so that the number is a property
    of the network and no machine's speed.
    """
    with torch.inference_mode(False), torch.enable_grad():
        net = copied(model).train()
        at = next(net.parameters())
        images = torch.zeros(2, *shape, device=at.device, dtype=floating(net))
        labels = torch.zeros(2, dtype=torch.long, device=at.device)
        with forked_rng(at):  # a user's network may draw: dropout
            return operations(lambda: torch.autograd.backward(criterion(net(images), labels))) // 2
