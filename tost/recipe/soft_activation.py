"""Ghost soft neurons: smooth activations early in training that harden into exact ReLU."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tost.recipe.part import Part


class Soft(nn.Module):
    """x·sigmoid(b·x) (Swish; Ramachandran et al., 2017) or x·tanh(softplus(b·x)) (Mish; Misra, 2019).

    `b` is a tensor buffer shared by all sites, so that a change a step recompiles nothing; it is not saved.
    The largest gap to ReLU is 0.27846/b for Swish and 0.30884/b for Mish.
    """

    b: Tensor

    def __init__(self, shape: str, b: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("b", b, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map any tensor elementwise."""
        b = self.b.to(x.dtype)
        return x * torch.sigmoid(b * x) if self.shape == "swish" else x * torch.tanh(F.softplus(b * x))


class SoftActivation(Part):
    """Put a soft activation in place of every nn.ReLU until the ghost window closes.

    `window` = (T0, T1) in progress: b = b0 until T0, then log-linear to b1 at T1, where each site becomes nn.ReLU
    again; T1 above 1 keeps them to the end.
    """

    def __init__(self, window: tuple[float, float], shape: str = "swish", b0: float = 1.0, b1: float = 100.0) -> None:
        self.window, self.shape, self.b0, self.b1 = window, shape, b0, b1
        self.stays = window[1] > 1
        self.sites: list[tuple[nn.Module, str]] = []
        self.softs: list[Soft] = []

    def attach(self, model: nn.Module) -> None:
        """Replace every nn.ReLU of the model."""
        for parent in model.modules():
            for name, child in parent.named_children():
                if type(child) is nn.ReLU:
                    self.sites.append((parent, name))
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        for parent, name in self.sites:
            soft = Soft(self.shape, torch.tensor(self.b0, device=device))
            setattr(parent, name, soft)
            self.softs.append(soft)
        self.ghosts = bool(self.softs)

    def strength(self, progress: float) -> float:
        """Return b at a point of training."""
        start, end = self.window
        share = min(max((progress - start) / (end - start), 0.0), 1.0)
        return self.b0 * math.exp(share * math.log(self.b1 / self.b0))

    def step(self, progress: float) -> None:
        """Harden; past the window's end, leave ReLU behind."""
        if not self.softs:
            return
        if progress >= self.window[1]:
            self.detach()
            return
        b = self.strength(progress)
        for soft in self.softs:
            soft.b.fill_(b)

    def detach(self) -> None:
        """Put nn.ReLU back at every site."""
        for parent, name in self.sites:
            setattr(parent, name, nn.ReLU())
        self.sites, self.softs, self.ghosts = [], [], False
