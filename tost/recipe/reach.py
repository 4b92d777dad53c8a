"""How much of a network a recipe part reaches: modules can be replaced or hooked, calls of functions cannot."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from tost.recipe.part import device_of


class Calls(TorchDispatchMode):  # type: ignore[misc]
    """Counts calls of some modules, and an operation outside of them, where it is a call of a function."""

    def __init__(self, modules: Iterable[nn.Module], counts: Callable[[Any, Sequence[Any]], bool]) -> None:
        super().__init__()
        self.counts = counts
        self.depth = self.calls = self.outside = 0
        for module in modules:
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave)

    def _enter(self, *call: Any) -> None:
        self.depth += 1
        self.calls += 1

    def _leave(self, *call: Any) -> None:
        self.depth -= 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it where it is one of those."""
        self.outside += self.depth == 0 and self.counts(func, args)
        return func(*args, **(kwargs or {}))


class Probe:
    """A copy of a model, to be hooked and run on an empty image: neither the model nor a random stream changes.

    `shape`: of the image, [C, H, W]; without one it has the first convolution's channels and 32x32 pixels. Raises
    ValueError where the model cannot be copied. Works in torch.inference_mode too, and then outside of it.
    """

    def __init__(self, model: nn.Module, shape: Sequence[int] | None = None) -> None:
        try:
            with torch.inference_mode(False):
                self.model = copy.deepcopy(model)
        except Exception as error:
            raise ValueError(f"{type(model).__name__} cannot be copied: {error}") from error
        first = next((m for m in self.model.modules() if isinstance(m, nn.Conv2d)), None)
        self.shape = tuple(shape or (first.in_channels if first else 3, 32, 32))

    def run(self, calls: Calls, training: bool = False) -> None:
        """Run the copy, in its own dtype and on its device, in eval mode or in train mode with batch norm in eval mode.

        Raises ValueError where it cannot take such an image.
        """
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        device = device_of(self.model)
        for module in self.model.train(training).modules():
            if isinstance(module, _BatchNorm):  # one image may give it a single value a channel, which it refuses
                module.eval()
        try:
            with torch.inference_mode(False), torch.no_grad(), _forked(device), calls:
                self.model(torch.zeros(1, *self.shape, dtype=dtype, device=device))
        except Exception as error:  # of the user's own code: it may raise anything
            raise ValueError(
                f"{type(self.model).__name__} cannot take an image of {list(self.shape)}; give its shape: {error}"
            ) from error


@contextmanager
def _forked(device: torch.device) -> Iterator[None]:
    """Give back the random streams of Python and of torch, on the CPU and on a device, as they were."""
    state = random.getstate()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(state)
