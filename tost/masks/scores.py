"""The scores of the mask methods: pure functions that change no weight, gradient, buffer, flag or random state.

A score takes the model and, by parameter name, whatever else it needs: `batches` (a list of (images, labels)),
`shape` (of one image, [C, H, W]), `generator` (its own random stream), and its knobs. It returns a tensor of the
weight's shape for every prunable weight; the highest are kept. Gradients are taken in float64, so that a mask does not
depend on the device or the number of threads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from tost.masks.apply import prunable

Batch = tuple[Tensor, Tensor]

MICROBATCH = 32
"""Images at a time where batch norm is in eval mode: no sum depends on it, and a double backward needs the memory."""


def random(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Score by independent uniform numbers; a serious baseline (Liu et al., 2022).

    Layer densities agree in expectation; scope `layer` makes them equal, `erk` those of Evci et al. (2020).
    """
    return {n: torch.rand(w.shape, generator=generator, dtype=torch.float64) for n, w in prunable(model).items()}


def magnitude(model: nn.Module) -> dict[str, Tensor]:
    """Score by |weight| (Han et al., 2015)."""
    return {name: weight.detach().abs() for name, weight in prunable(model).items()}


def snip(model: nn.Module, batches: Sequence[Batch], bn: str = "eval") -> dict[str, Tensor]:
    """Score by |weight · dL/dweight| of the initial network (SNIP; Lee, Ajanthan & Torr, 2019).

    L is the mean cross-entropy over all images. `bn`: `eval` uses the running statistics, as the authors' code does on
    a fresh network; `train` each batch's own.
    """
    return _sensitivity(model, batches, bn)


def taylor(model: nn.Module, batches: Sequence[Batch], bn: str = "eval") -> dict[str, Tensor]:
    """Score by |weight · dL/dweight|, the first-order change of the loss on removal (Molchanov et al., 2017).

    Of one network and batch it ranks as SNIP does; it is meant for trained weights. The gradient is summed over all
    images before the absolute value.
    """
    return _sensitivity(model, batches, bn)


@torch.enable_grad()
def grasp(
    model: nn.Module, batches: Sequence[Batch], bn: str = "train", temperature: float = 200.0
) -> dict[str, Tensor]:
    """Score by weight · (H g), signed (GraSP; Wang, Zhang & Grosse, 2020): what adds to the gradient flow is kept.

    g is the gradient of the mean cross-entropy of logits / temperature over *all* images with respect to the prunable
    weights, H g the gradient of <g, gradient>. `bn`: `train` as the authors' code has it, or `eval`.
    """
    net, weights = _copy(model, bn)
    total = [torch.zeros_like(weight) for weight in weights.values()]
    samples = sum(len(labels) for _, labels in batches)
    for images, labels in _portions(batches, bn):
        loss = _loss(net, images, labels, samples, temperature)
        for sum_, gradient in zip(total, _gradients(loss, weights), strict=True):
            sum_ += gradient
    flow = [torch.zeros_like(weight) for weight in weights.values()]
    for images, labels in _portions(batches, bn):
        with sdpa_kernel(SDPBackend.MATH):  # the fast attention kernels have no second derivative
            loss = _loss(net, images, labels, samples, temperature)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
        product = sum((g * t).sum() for g, t in zip(gradients, total, strict=True))
        assert isinstance(product, Tensor)  # there is at least one weight # noqa: S101
        for sum_, gradient in zip(flow, _gradients(product, weights), strict=True):
            sum_ += gradient
    return {name: (weights[name] * hg).detach() for name, hg in zip(weights, flow, strict=True)}


@torch.enable_grad()
def synflow(model: nn.Module, shape: Sequence[int]) -> dict[str, Tensor]:
    """Score by (dR/d|w|)|w| with R the sum of the outputs for an input of ones (SynFlow; Tanaka et al., 2020).

    All parameters enter by absolute value, in float64 (float32 overflows deep networks), batch norm in eval mode with
    fresh statistics (mean 0, variance 1), so that every term is positive and layer sums are equal on a chain. The upper
    bound of ReLU6 and Hardtanh is lifted: the flow is far above it and would find no gradient there.
    """
    net = copy.deepcopy(model).eval()
    for parent in list(net.modules()):
        if isinstance(parent, _BatchNorm) and parent.running_mean is None:  # it would normalise the flow away
            parent.register_buffer("running_mean", torch.zeros(parent.num_features))
            parent.register_buffer("running_var", torch.ones(parent.num_features))
        for name, child in parent._modules.items():  # named_children skips a second name of the same module
            if isinstance(child, nn.Hardtanh):  # ReLU6 is one
                setattr(parent, name, nn.ReLU())
    parameters = {name: p.detach().abs().double().requires_grad_(True) for name, p in net.named_parameters()}
    buffers = {
        name: torch.zeros_like(b, dtype=torch.float64)
        if name.endswith("running_mean")
        else torch.ones_like(b, dtype=torch.float64)
        if name.endswith("running_var")
        else b.double()
        if b.is_floating_point()
        else b
        for name, b in net.named_buffers()
    }
    ones = torch.ones((1, *shape), dtype=torch.float64, device=next(iter(parameters.values())).device)
    flow = functional_call(net, {**parameters, **buffers}, (ones,)).sum()
    names = list(prunable(net))
    gradients = torch.autograd.grad(flow, [parameters[name] for name in names], materialize_grads=True)
    return {n: (g * parameters[n]).detach() for n, g in zip(names, gradients, strict=True)}


@torch.enable_grad()
def _sensitivity(model: nn.Module, batches: Sequence[Batch], bn: str) -> dict[str, Tensor]:
    net, weights = _copy(model, bn)
    total = [torch.zeros_like(weight) for weight in weights.values()]
    samples = sum(len(labels) for _, labels in batches)
    for images, labels in _portions(batches, bn):
        for sum_, gradient in zip(total, _gradients(_loss(net, images, labels, samples), weights), strict=True):
            sum_ += gradient
    return {name: (weights[name].detach() * sum_).abs() for name, sum_ in zip(weights, total, strict=True)}


def differentiable(model: nn.Module, bn: str) -> nn.Module:
    """Return a copy in eval mode whose parameters all take gradients, its batch norm in the mode asked for."""
    net = copy.deepcopy(model).eval().requires_grad_(True)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.train(bn == "train")
    return net


def _copy(model: nn.Module, bn: str) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Return a float64 copy to differentiate, and its prunable weights."""
    net = differentiable(model, bn).double()
    return net, prunable(net)


def _portions(batches: Sequence[Batch], bn: str) -> Iterator[Batch]:
    for images, labels in batches:
        size = MICROBATCH if bn == "eval" else len(labels)
        yield from zip(torch.split(images, size), torch.split(labels, size), strict=True)


def _loss(net: nn.Module, images: Tensor, labels: Tensor, samples: int, temperature: float = 1.0) -> Tensor:
    """Return a batch's share of the mean cross-entropy over all samples."""
    return F.cross_entropy(net(images.double()) / temperature, labels, reduction="sum") / samples


def _gradients(loss: Tensor, weights: dict[str, nn.Parameter]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
