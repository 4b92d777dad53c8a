"""What a network costs: multiply-adds by layer, dense and with zeros left out, and operations counted as they run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tost.masks.apply import Masks, is_ghost

TRAINING_FACTOR = 3
"""A backward pass is counted as two forward passes, as is usual."""


@dataclass(frozen=True)
class Layer:
    """One prunable tensor: its weights, how many are kept, and its multiply-adds for one image."""

    size: int
    kept: int
    uses: int
    """How often each weight is multiplied for one image: the output positions of a convolution."""

    @property
    def dense_flops(self) -> int:
        """Return two operations for every multiply-add."""
        return 2 * self.size * self.uses

    @property
    def sparse_flops(self) -> int:
        """Return the same with pruned weights not counted."""
        return 2 * self.kept * self.uses


def layers(model: nn.Module, shape: Sequence[int], masks: Masks | None = None) -> dict[str, Layer]:
    """Return the account of every Conv2d and Linear weight for one image of [C, H, W]; without a mask all is kept.

    Those that recipe parts have added are among them, under names that `is_ghost` tells.
    """
    net = copy.deepcopy(model).eval()
    modules = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    held = {id(module.weight) for module in modules}
    weights = {name: weight for name, weight in net.named_parameters() if id(weight) in held}
    names = {id(weight): name for name, weight in weights.items()}
    uses = dict.fromkeys(sorted(weights), 0)

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        uses[names[id(module.weight)]] += output.numel() // output.shape[0] // int(module.weight.shape[0])  # type: ignore[index]

    for module in modules:
        module.register_forward_hook(count)
    with torch.no_grad():
        net(torch.zeros(1, *shape, device=next(iter(weights.values())).device))
    masks = masks or {}
    return {
        name: Layer(weights[name].numel(), int(masks[name].sum()) if name in masks else weights[name].numel(), used)
        for name, used in uses.items()
    }


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
    net = copy.deepcopy(model).train()
    device = next(net.parameters()).device
    images, labels = torch.zeros(2, *shape, device=device), torch.zeros(2, dtype=torch.long, device=device)
    with torch.random.fork_rng(devices=[]):  # a user's network may draw: dropout
        return operations(lambda: torch.autograd.backward(criterion(net(images), labels))) // 2
