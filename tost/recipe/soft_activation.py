"""Ghost soft neurons: smooth activations early in training that harden into exact ReLU."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tost.catalog import SOFT_SHAPES, check_choice
from tost.recipe.part import Part, Reach, check_window, device_of, unwrapped, window_share
from tost.recipe.reach import Calls, Probe

CLIP = 6.0
"""The upper bound of ReLU6."""


class Soft(nn.Module):
    """A smooth stand-in for ReLU whose strength `b` is a tensor buffer, so that a change a step recompiles nothing.

    `swish` (also `hard` and `authors`): x·sigmoid(b·x) (Ramachandran et al., 2017); `mish`: x·tanh(softplus(b·x))
    (Misra, 2019); `blend`: (1 - b)·ReLU(x) + b·Mish(x). The largest gap to ReLU is 0.27846/b for Swish and 0.30884/b
    for Mish. In place of a ReLU6 it is f(x) - f(x - 6). The buffer is not saved.
    """

    b: Tensor

    def __init__(self, shape: str, b: Tensor, clipped: bool = False) -> None:
        super().__init__()
        check_choice("shape", shape, SOFT_SHAPES)
        self.shape, self.clipped = shape, clipped
        self.register_buffer("b", b, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map any tensor elementwise."""
        return self.curve(x) - self.curve(x - CLIP) if self.clipped else self.curve(x)

    def curve(self, x: Tensor) -> Tensor:
        """Return the smooth curve without an upper bound."""
        b = self.b.to(x.dtype)
        if self.shape == "blend":
            return (1 - b) * F.relu(x) + b * F.mish(x)
        if self.shape == "mish":
            return x * torch.tanh(F.softplus(b * x))
        return F.silu(b * x) / b  # x·sigmoid(b·x), with one tensor kept for the backward pass in place of two


class SoftActivation(Part):
    """Put a soft activation in place of every ReLU (and ReLU6) until the ghost window closes.

    One of the parts of ToST (Jaiswal et al., 2022). `window` = (T0, T1) in progress. `swish`, `mish`: b = b0 until T0,
    then log-linear to b1 at T1, where each site becomes what it was. `blend`: the share of Mish goes from 1 at T0
    linearly to 0 at T1. `hard`: Swish of b0 until T1. `authors`: Swish of b0 for good, as the ToST authors' code has
    it. T1 above 1 keeps any of them to the end. `image`: the shape of one image, [C, H, W], to count with how many
    ReLUs are reached; without one it has the first convolution's channels and 32x32 pixels. Raises ValueError for
    settings that are not allowed.
    """

    def __init__(
        self,
        window: tuple[float, float],
        shape: str = "swish",
        b0: float = 1.0,
        b1: float = 100.0,
        image: Sequence[int] | None = None,
    ) -> None:
        check_choice("shape", shape, SOFT_SHAPES)
        check_window(window)
        if not (0 < b0 < math.inf and 0 < b1 < math.inf):
            raise ValueError(f"b0 = {b0!r} and b1 = {b1!r}: both must be positive numbers")
        self.window, self.shape, self.b0, self.b1, self.image = window, shape, b0, b1, image
        self.stays = window[1] > 1 or shape == "authors"
        self.sites: list[tuple[nn.Module, str, nn.Module]] = []
        self.softs: list[Soft] = []

    @torch.inference_mode(False)
    def attach(self, model: nn.Module) -> None:
        """Replace every nn.ReLU and nn.ReLU6 of the model. Raises ValueError where there is none, or none is used.

        Warns where some ReLUs are calls of functions (F.relu, torch.relu), which cannot be replaced. Whatever is
        raised, the model is left as it was.
        """
        model = unwrapped(model)
        self.sites = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent._modules.items()  # named_children skips a second name of the same module
            if child is not None and type(child) in (nn.ReLU, nn.ReLU6)
        ]
        if not self.sites:
            raise ValueError(f"soft neurons need nn.ReLU modules to replace; {type(model).__name__} has none")
        device = device_of(model)
        for parent, name, child in self.sites:
            soft = Soft(self.shape, torch.tensor(self.strength(0.0), device=device), isinstance(child, nn.ReLU6))
            setattr(parent, name, soft)
            self.softs.append(soft)
        self.ghosts = True
        try:
            self.reach = relu_reach(model, self.image, (Soft,))
            if self.reach and self.reach.partial:
                said = (
                    f"soft neurons reach {self.reach} of {type(model).__name__}: the others are calls of functions "
                    "(F.relu, torch.relu); make them nn.ReLU modules"
                )
                if not self.reach.reached:
                    raise ValueError(said)
                warnings.warn(said, stacklevel=3)  # the decorator is a frame of its own
        except BaseException:  # the warning too may be made an error
            self.detach()
            raise

    def strength(self, progress: float) -> float:
        """Return b, or Mish's share of a blend, at a point of training."""
        share = window_share(progress, self.window)
        if self.shape == "blend":
            return 1.0 - share
        if self.shape in ("hard", "authors"):
            return self.b0
        return self.b0 * math.exp(share * math.log(self.b1 / self.b0))

    def step(self, progress: float) -> None:
        """Harden; past the window's end, leave the network's own activations behind."""
        if not self.softs:
            return
        if progress >= self.window[1] and not self.stays:
            self.detach()
            return
        b = self.strength(progress)
        for soft in self.softs:
            soft.b.fill_(b)

    def detach(self) -> None:
        """Put back what stood at every site."""
        for parent, name, child in self.sites:
            setattr(parent, name, child)
        self.sites, self.softs, self.ghosts = [], [], False


def relu_reach(
    model: nn.Module,
    image: Sequence[int] | None = None,
    modules: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, Soft),
) -> Reach | None:
    """Return of how many ReLUs of one forward pass the network's modules make, of all; None where it cannot be run.

    `image`: the shape of one image, [C, H, W]. A ReLU6 counts as one, as does an activation that was made soft.
    """
    try:
        probe = Probe(model, image)
        calls = Calls([module for module in probe.model.modules() if isinstance(module, modules)], _is_relu)
        probe.run(calls)
    except ValueError:  # an image of another shape than the network's, no image at all, or no copy
        return None
    return Reach(calls.calls, calls.calls + calls.outside, "ReLUs")


def _is_relu(operation: Any, args: Sequence[Any]) -> bool:
    """Tell ReLU and ReLU6 from what else runs."""
    aten = torch.ops.aten
    if operation in (aten.hardtanh.default, aten.hardtanh_.default):
        return tuple(args[1:]) == (0, CLIP)
    return operation in (aten.relu.default, aten.relu_.default)
