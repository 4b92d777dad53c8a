"""Ghost skip connections: shortcuts around single convolutions early in training that are gone at its end."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tost.catalog import SKIP_VARIANTS, check_choice
from tost.masks.apply import GHOSTS
from tost.recipe.part import Part, check_window, device_of, window_share

ALPHA = f"{GHOSTS}skip_alpha"
BRANCH = f"{GHOSTS}skip"
FILL = 1e-4
"""What the authors' 1x1 convolutions begin with."""

SHORTCUT = re.compile(r"(^|\.)(downsample|shortcut|skip|identity)(\.|$)")


@dataclass(frozen=True)
class Site:
    """A convolution with a ghost skip, the batch norm that takes its output, and the shapes [C, H, W] on both sides."""

    name: str
    norm: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    stride: tuple[int, ...]


class GhostSkips(Part):
    """Add a skip around every convolution but the stem and shortcuts, behind the batch norm that follows it.

    One of the parts of ToST (Jaiswal et al., 2022). `window` = (T0, T1) in progress.

    `parameter-free`: y + alpha·S(x), alpha 1 until T0, then linear to 0 at T1, where the skips are gone. S is the
    identity, or average-pooling by the stride with zero-padded or cut channels where shapes differ, then brought to
    mean 0 and variance 1 image by image. Nothing is trained. `sum` leaves that last step out: in a residual network the
    skips then multiply along the blocks' own, and training does not survive it (mean loss of resnet20's first epoch on
    digits: 187, against 1.3 with it and 1.6 without skips).
    `authors`: the ToST authors' form, a 1x1 convolution (no bias, filled with 1e-4) with batch norm, trained, unmasked,
    never removed. T1 above 1 keeps the others too. `shape`: of one image, [C, H, W], to find the sites with.
    """

    def __init__(
        self, window: tuple[float, float], variant: str = "parameter-free", shape: Sequence[int] | None = None
    ) -> None:
        check_choice("variant", variant, SKIP_VARIANTS)
        check_window(window)
        self.window, self.variant, self.shape = window, variant, shape
        self.stays = window[1] > 1 or variant == "authors"
        self.model: nn.Module | None = None
        self.handles: list[RemovableHandle] = []

    def attach(self, model: nn.Module) -> None:
        """Hook every site. Raises ValueError where the model has none, or one that the variant does not fit."""
        sites = skip_sites(model, self.shape)
        if not sites:
            raise ValueError(f"ghost skips need convolutions beyond the first; {type(model).__name__} has none")
        device = device_of(model)
        branches = [(site, _branch(site).to(device)) for site in sites if self.variant == "authors"]
        for site, branch in branches:
            model.get_submodule(site.name).add_module(BRANCH, branch)  # a convolution's forward looks at no child
        model.register_buffer(ALPHA, torch.ones((), device=device), persistent=False)
        for site in sites:
            skip = _Skip(model, site, self.variant)
            self.handles.append(model.get_submodule(site.name).register_forward_pre_hook(skip.keep))
            self.handles.append(model.get_submodule(site.norm or site.name).register_forward_hook(skip.add))
        self.model, self.ghosts = model, True

    def step(self, progress: float) -> None:
        """Fade; past the window's end, remove the skips."""
        if self.model is None or self.variant == "authors":
            return
        if progress >= self.window[1] and not self.stays:
            self.detach()
        else:
            self.model.get_buffer(ALPHA).fill_(1 - window_share(progress, self.window))

    def detach(self) -> None:
        """Remove the hooks, alpha and, of the authors' variant, the branches."""
        if self.model is None:
            return
        for handle in self.handles:
            handle.remove()
        delattr(self.model, ALPHA)
        for module in [m for m in self.model.modules() if BRANCH in m._modules]:
            delattr(module, BRANCH)
        self.model, self.handles, self.ghosts = None, [], False


def skip_sites(model: nn.Module, shape: Sequence[int] | None = None) -> list[Site]:
    """Return the sites of a model in the order in which they run, found by running a copy on one empty image.

    Without a shape the image has the first convolution's channels and 32x32 pixels.
    Raises ValueError where the model cannot be run so.
    """
    probe = copy.deepcopy(model).eval()
    convolutions = [(n, m) for n, m in probe.named_modules() if isinstance(m, nn.Conv2d)]
    if not convolutions:
        return []
    shape = shape or (convolutions[0][1].in_channels, 32, 32)
    made: list[tuple[str, nn.Conv2d, Tensor, Tensor]] = []
    norms: dict[int, str] = {}

    def convolved(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str) -> None:
        assert isinstance(module, nn.Conv2d)  # hooked below # noqa: S101
        made.append((name, module, inputs[0], output))

    def normed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str) -> None:
        norms[id(inputs[0])] = name

    for name, module in probe.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(partial(convolved, name=name))
        elif type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm):  # a subclass may hold an activation of its own
            module.register_forward_hook(partial(normed, name=name))
    try:
        with torch.no_grad():
            probe(torch.zeros(1, *shape, device=device_of(model)))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(
            f"ghost skips: {type(model).__name__} cannot take an image of {list(shape)}; give its shape: {error}"
        ) from error
    return [
        Site(name, norms.get(id(y), ""), tuple(x.shape[1:]), tuple(y.shape[1:]), conv.stride)
        for name, conv, x, y in made[1:]
        if not SHORTCUT.search(name)
    ]


class _Skip:
    """A skip's two hooks: the convolution's input is kept until the output of its batch norm is there."""

    def __init__(self, model: nn.Module, site: Site, variant: str) -> None:
        self.model, self.site, self.variant = model, site, variant
        self.x: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Skip:
        return _Skip(copy.deepcopy(self.model, memo), self.site, self.variant)

    def keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.x = inputs[0]

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, self.x = self.x, None
        if x is None:  # the batch norm was called by itself
            return output
        if self.variant == "authors":
            added: Tensor = self.model.get_submodule(f"{self.site.name}.{BRANCH}")(x)
            return output + added
        alpha = self.model.get_buffer(ALPHA).to(output.dtype)
        skip = fitted(x, self.site.stride, output.shape[1:])
        if self.variant == "parameter-free":
            skip = F.group_norm(skip, 1)
        return output + alpha * skip.to(output.dtype)


def fitted(x: Tensor, stride: tuple[int, ...], shape: Sequence[int]) -> Tensor:
    """Bring maps [N, C, H, W] to [N, *shape] without parameters: pooled by the stride, then zero-padded or cut.

    Channels are padded or cut at their end, rows and columns on both sides.
    """
    if x.shape[2:] != tuple(shape[1:]) and max(stride) > 1:
        x = F.avg_pool2d(x, stride, ceil_mode=True)
    if tuple(x.shape[1:]) == tuple(shape):
        return x
    tall, wide = shape[1] - x.shape[2], shape[2] - x.shape[3]
    return F.pad(x, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2, 0, shape[0] - x.shape[1]))


def _branch(site: Site) -> nn.Sequential:
    inputs, outputs = site.inputs, site.outputs
    if any(-(-size // step) != out for size, step, out in zip(inputs[1:], site.stride, outputs[1:], strict=True)):
        raise ValueError(
            f"ghost skips: the authors' 1x1 convolution gives another map than {site.name} "
            f"({list(inputs)} to {list(outputs)}, stride {list(site.stride)}); use variant: parameter-free"
        )
    conv = nn.Conv2d(inputs[0], outputs[0], 1, (site.stride[0], site.stride[1]), bias=False)
    nn.init.constant_(conv.weight, FILL)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs[0]))
