"""The scores of the mask methods: pure functions that change no weight, gradient, buffer, flag or random state.

A score takes the model and, by parameter name, whatever else it needs: `batches` (a list of (images, labels)),
`shape` (of one image, [C, H, W]), `generator` (its own random stream), and its knobs. It returns a tensor of the
weight's shape for every prunable weight; the highest are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tost.masks.apply import prunable

Batch = tuple[Tensor, Tensor]


def random(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Score by independent uniform numbers; layer densities agree in expectation (scope `layer` makes them equal)."""
    return {n: torch.rand(w.shape, generator=generator, dtype=torch.float64) for n, w in prunable(model).items()}


def magnitude(model: nn.Module) -> dict[str, Tensor]:
    """Score by |weight| (Han et al., 2015)."""
    return {name: weight.detach().abs() for name, weight in prunable(model).items()}


def snip(model: nn.Module, batches: Sequence[Batch], bn: str = "eval") -> dict[str, Tensor]:
    """Score by |weight * dL/dweight| of the mean cross-entropy over all batches (SNIP; Lee, Ajanthan & Torr, 2019).

    Gradients are summed with their sign, weighted by sample, before the absolute value. `bn`: `eval` uses the running
    statistics, as the authors' code does on a fresh network; `train` the batch's own.
    """
    net = copy.deepcopy(model).train(bn == "train").requires_grad_(True)
    weights = prunable(net)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for images, labels in batches:
        loss = F.cross_entropy(net(images), labels, reduction="sum")
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[name] += gradient
    samples = sum(len(labels) for _, labels in batches)
    return {name: (weights[name].detach() * total[name] / samples).abs() for name in weights}


def synflow(model: nn.Module, shape: Sequence[int]) -> dict[str, Tensor]:
    """Score by (dR/d|w|)|w| with R the sum of the outputs for an input of ones (SynFlow; Tanaka et al., 2020).

    All parameters enter by absolute value, in float64 (float32 overflows deep networks), batch norm in eval mode with
    fresh statistics (mean 0, variance 1), so that every term is positive and layer sums are equal on a chain.
    """
    net = copy.deepcopy(model).eval()
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
    gradients = torch.autograd.grad(flow, [parameters[name] for name in names])
    return {n: (g * parameters[n]).detach() for n, g in zip(names, gradients, strict=True)}
