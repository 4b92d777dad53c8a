"""What a recipe part is: three verbs driven by progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
Criterion = Callable[[Tensor, Tensor], Tensor]
"""A loss: (logits [N, C], labels [N]) -> scalar."""


@dataclass(frozen=True)
class Reach:
    """Of the operations that a part is meant for, in one forward pass: how many it changes, and how many there are."""

    reached: int
    total: int
    operations: str

    @property
    def partial(self) -> bool:
        """Tell whether some are left as they are."""
        return self.reached < self.total

    def __str__(self) -> str:
        """Return `1 of 3 ReLUs`."""
        return f"{self.reached} of {self.total} {self.operations}"


class Part:
    """A recipe part that does nothing; each real one overrides what it needs.

    A part's state is a function of progress (0 at the start of training, 1 at its end), so that a resumed run needs
    nothing saved: attach, then step to where training stands.
    """

    ghosts: bool = False
    """True while the network holds something that the plain one does not."""
    stays: bool = False
    """True where the ghosts are kept to the end of training, and are part of the network that remains."""
    reach: Reach | None = None
    """Once attached: how many of the network's operations are changed, where that was found out."""

    def attach(self, model: nn.Module) -> None:
        """Change the model before the optimizer is built. Raises ValueError for a model it cannot work with."""

    def step(self, progress: float) -> None:
        """Go to a point of training; called before every step and every evaluation."""

    def detach(self) -> None:
        """Leave the plain model behind, with plain keys."""

    def criterion(self, loss: Criterion) -> Criterion:
        """Return the training loss to use in place of the given one."""
        return loss


def window_share(progress: float, window: tuple[float, float]) -> float:
    """Return how far a ghost window (T0, T1) has closed: 0 until T0, 1 from T1 on, linear between."""
    start, end = window
    if start < progress < end:
        return (progress - start) / (end - start)
    return float(progress >= end)


def check_window(window: object) -> None:
    """Raise ValueError unless a ghost window is two numbers 0 <= T0 <= T1, in progress."""
    match window:
        case (int() | float() as start, int() | float() as end) if 0 <= start <= end and start < math.inf:
            return
        case _:
            raise ValueError(
                f"window: {window!r} is not allowed; give (T0, T1) in progress, 0 <= T0 <= T1 (T1 above 1: to the end)"
            )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network that torch.compile has wrapped, or the model itself."""
    inner = getattr(model, "_orig_mod", None)  # torch has no other name for it
    return inner if isinstance(inner, nn.Module) else model


def unwrapped_names(model: nn.Module, named: Mapping[str, T]) -> dict[str, T]:
    """Return what goes by a model's names under those of the network that torch.compile has wrapped, if it has."""
    prefix = "" if unwrapped(model) is model else "_orig_mod."
    return {name.removeprefix(prefix): value for name, value in named.items()}


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
