"""Ghost skip connections: shortcuts around single convolutions early in training that are gone at its end."""

from __future__ import annotations

import copy
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tost.catalog import SKIP_VARIANTS, check_choice
from tost.masks.apply import GHOSTS
from tost.recipe.part import Part, Reach, check_window, device_of, unwrapped, window_share
from tost.recipe.reach import Calls, Probe

ALPHA = f"{GHOSTS}skip_alpha"
BRANCH = f"{GHOSTS}skip"
BEYOND = "convolutions beyond the first"
FILL = 1e-4
"""What the authors' 1x1 convolutions begin with."""

SHORTCUT = re.compile(r"(^|\.)(downsample|shortcut|skip|identity)(\.|$)")


@dataclass(frozen=True)
class Site:
    """A convolution with a ghost skip, the batch norm that takes its output, and the shapes [C, H, W] on both sides.

    `norm`: empty where none takes it as it is, in train mode as in eval mode (dropout between them), or not every time
    that the convolution is used; the skip is then added to the convolution's own output. `inputs`, `outputs`: of the
    first time.
    """

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
    never removed. T1 above 1 keeps the others too. `shape`: of one image, [C, H, W], to find the sites with. Raises
    ValueError for settings that are not allowed.
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

    @torch.inference_mode(False)
    def attach(self, model: nn.Module) -> None:
        """Hook every site. Raises ValueError where the model has none, or one that the variant does not fit.

        Of what torch.compile returns, the network inside is hooked. Warns where convolutions are calls of functions,
        which nothing can be added to. The batch norm of a site may take the convolution's output in another dtype
        (`.float()` under autocast). Where it takes neither, a forward pass of the model raises ValueError.
        """
        model = unwrapped(model)
        sites, self.reach = _found(model, self.shape)
        if not sites:
            raise ValueError(f"ghost skips need convolutions beyond the first; {type(model).__name__} has none")
        if self.reach.partial:
            warnings.warn(
                f"ghost skips reach {self.reach} of {type(model).__name__}: the others "
                "are calls of functions; make them nn.Conv2d modules",
                stacklevel=3,  # the decorator is a frame of its own
            )
        if self.variant == "authors":
            convolutions = [cast(nn.Conv2d, model.get_submodule(site.name)) for site in sites]
            branches = [_branch(site, conv) for site, conv in zip(sites, convolutions, strict=True)]
            for conv, branch in zip(convolutions, branches, strict=True):
                conv.add_module(BRANCH, branch)  # a convolution's forward looks at no child
        if "torch._dynamo" in sys.modules:  # code that is compiled already does not look for hooks that come later
            torch.compiler.reset()
        model.register_buffer(ALPHA, torch.ones((), device=device_of(model)), persistent=False)
        self.handles = _hooked(model, [_Skip(model, site, self.variant) for site in sites])
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
    """Return the sites of a model in the order in which they first run, found by running a copy on one empty image.

    Without a shape the image has the first convolution's channels and 32x32 pixels.
    Raises ValueError where the model cannot be run so.
    """
    return _found(unwrapped(model), shape)[0]


@dataclass
class _Call:
    """One call of a convolution, and the batch norms that took what came out of it as it was."""

    inputs: Tensor
    output: Tensor
    version: int
    norms: list[str] = field(default_factory=list)


def _found(model: nn.Module, shape: Sequence[int] | None) -> tuple[list[Site], Reach]:
    """Return a model's sites, and how many calls of convolutions they are of all but the stem's and shortcuts'."""
    try:
        probe = Probe(model, shape)
    except ValueError as error:
        raise ValueError(f"ghost skips: {error}") from error
    calls: dict[str, list[_Call]] = {}

    def convolved(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str) -> None:
        calls.setdefault(name, []).append(_Call(inputs[0], output, output._version))

    def normed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str) -> None:
        for *_, last in calls.values():  # an output that is held: no other tensor can be taken for it
            if last.output is inputs[0] and last.version == inputs[0]._version:  # nor one changed in place, as by ReLU
                last.norms.append(name)

    convolutions = {n: m for n, m in probe.model.named_modules() if isinstance(m, nn.Conv2d)}
    if not convolutions:
        return [], Reach(0, 0, BEYOND)
    for name, module in probe.model.named_modules():
        if name in convolutions:
            module.register_forward_hook(partial(convolved, name=name))
        elif type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm):  # a subclass may hold an activation of its own
            module.register_forward_hook(partial(normed, name=name))
    functions = Calls(convolutions.values(), _is_convolution)
    try:
        probe.run(functions)
    except ValueError as error:
        raise ValueError(f"ghost skips: {error}") from error
    used, outside = dict(calls), functions.outside
    calls.clear()
    with suppress(ValueError):  # an auxiliary head may want a larger image: what ran until then tells all the same
        probe.run(functions, training=True)
    sites = [
        Site(
            name,
            _norm([*found, *calls.get(name, [])]),
            tuple(found[0].inputs.shape[1:]),
            tuple(found[0].output.shape[1:]),
            convolutions[name].stride,
        )
        for name, found in list(used.items())[1:]
        if not SHORTCUT.search(name)
    ]
    reached = sum(len(used[site.name]) for site in sites)
    return sites, Reach(reached, reached + outside, BEYOND)


def _norm(calls: Sequence[_Call]) -> str:
    """Return the batch norm that alone takes what a convolution gives, every time; else nothing."""
    first = calls[0].norms
    return first[0] if len(first) == 1 and all(call.norms == first for call in calls) else ""


def _is_convolution(operation: Any, args: Sequence[Any]) -> bool:
    """Tell a convolution of images from what else runs; a transposed one is none."""
    return operation is torch.ops.aten.convolution.default and args[1].ndim == 4 and not args[6]


class _Skip:
    """A skip around a convolution, added behind the batch norm that takes its output, or right behind it."""

    def __init__(self, model: nn.Module, site: Site, variant: str) -> None:
        self.model, self.site, self.variant = model, site, variant
        self.kept: tuple[Tensor, Tensor] | None = None
        """What the convolution was given, and what it made of it, until the batch norm takes that."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Skip:
        return _Skip(copy.deepcopy(self.model, memo), self.site, self.variant)

    def keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.kept = inputs[0], output

    def behind_convolution(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self.added(inputs[0], output)

    def added(self, x: Tensor, output: Tensor) -> Tensor:
        """Return an output with the skip of x."""
        if self.variant == "authors":
            branch: Tensor = self.model.get_submodule(f"{self.site.name}.{BRANCH}")(x)
            if branch.shape != output.shape:
                raise ValueError(_other_map(self.site, x.shape[1:], output.shape[1:]))
            return output + branch
        alpha = self.model.get_buffer(ALPHA).to(output.dtype)
        skip = fitted(x, self.site.stride, output.shape[1:])
        if self.variant == "parameter-free":
            skip = F.group_norm(skip, 1)
        return output + alpha * skip.to(output.dtype)


class _Norm:
    """A batch norm behind which the skips of some convolutions are added, each where it takes that one's output."""

    def __init__(self, skips: list[_Skip]) -> None:
        self.skips = skips

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Add the skip of the convolution whose output was given, as it is or in another dtype."""
        waiting = [(skip, skip.kept) for skip in self.skips if skip.kept is not None]
        for skip, (x, made) in waiting:
            alone = len(waiting) == 1  # of several, nothing tells which one a copy was made of
            if made is inputs[0] or (alone and made.dtype != inputs[0].dtype and made.shape == inputs[0].shape):
                skip.kept = None
                return skip.added(x, output)
        return output  # the batch norm was called for something else


class _Pass:
    """One forward pass of a model, at whose end every skip has been added."""

    def __init__(self, skips: list[_Skip]) -> None:
        self.skips = skips

    def begin(self, module: nn.Module, inputs: Any) -> None:
        """Forget what a pass that broke off has left."""
        for skip in self.skips:
            skip.kept = None

    def end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Raise ValueError for a skip that no batch norm took up."""
        lost = [skip.site for skip in self.skips if skip.kept is not None]
        self.begin(module, inputs)
        if lost:
            raise ValueError(
                f"ghost skips: {lost[0].norm} did not take the output of {lost[0].name} as it was, so that the skip "
                f"({len(lost)} of {len(self.skips)}) would be lost; when they were attached it did. Let it take the "
                "same in every pass, or train without ghost skips"
            )


def _hooked(model: nn.Module, skips: list[_Skip]) -> list[RemovableHandle]:
    """Hook the convolutions, their batch norms and, to find out what was lost, the model."""
    handles, norms = [], dict[str, list[_Skip]]()
    for skip in skips:
        hook = skip.keep if skip.site.norm else skip.behind_convolution
        handles.append(model.get_submodule(skip.site.name).register_forward_hook(hook))
        if skip.site.norm:
            norms.setdefault(skip.site.norm, []).append(skip)
    handles += [model.get_submodule(norm).register_forward_hook(_Norm(those).add) for norm, those in norms.items()]
    each = _Pass(skips)
    return [*handles, model.register_forward_pre_hook(each.begin), model.register_forward_hook(each.end)]


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


def _branch(site: Site, convolution: nn.Conv2d) -> nn.Sequential:
    inputs, outputs = site.inputs, site.outputs
    if any(-(-size // step) != out for size, step, out in zip(inputs[1:], site.stride, outputs[1:], strict=True)):
        raise ValueError(_other_map(site, inputs, outputs))
    conv = nn.Conv2d(inputs[0], outputs[0], 1, (site.stride[0], site.stride[1]), bias=False)
    nn.init.constant_(conv.weight, FILL)
    branch = nn.Sequential(conv, nn.BatchNorm2d(outputs[0])).train(convolution.training)
    return branch.to(convolution.weight.device, convolution.weight.dtype)


def _other_map(site: Site, inputs: Sequence[int], outputs: Sequence[int]) -> str:
    return (
        f"ghost skips: the authors' 1x1 convolution gives another map than {site.name} "
        f"({list(inputs)} to {list(outputs)}, stride {list(site.stride)}); use variant: parameter-free"
    )
