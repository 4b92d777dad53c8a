"""The scores of the mask methods: pure functions that change no weight, gradient, buffer, flag or random state.

A score takes the model and, by parameter name, whatever else it needs: `batches` ((images, labels) one after another),
`shape` (of one image, [C, H, W]), `generator` (its own random stream), and its knobs. It returns a tensor of the
weight's shape for every prunable weight, frozen ones too; the highest are kept. Gradients are taken in float64, so that
a mask does not depend on the device or the number of threads.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from tost.catalog import BN, check_choice
from tost.masks.apply import EVERY, MaskError, copied, prunable

Batch = tuple[Tensor, Tensor]

NORMALISATIONS = (F.group_norm, F.layer_norm, F.instance_norm, F.rms_norm)
BUILTINS: Mapping[Any, tuple[str, ...]] = {
    torch.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    torch.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    torch.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    torch.instance_norm: (
        "input", "weight", "bias", "running_mean", "running_var", "use_input_stats", "momentum", "eps",
    ),
}  # fmt: skip
"""The same, called without `torch.nn.functional`: the names of their arguments, which they do not tell themselves."""
EPSILON = {torch.group_norm: 1e-5, torch.layer_norm: 1e-5}
"""What those take where nothing is given."""
GATES = {"softmax", "sigmoid", "hardsigmoid", "tanh"}
"""Those of the following that weigh branches, where they are taken of parameters alone: positive, as all else is."""
UNCOVERED = {
    "softmax", "log_softmax", "sigmoid", "hardsigmoid", "tanh", "glu", "lstm", "gru", "rnn_tanh",
    "scaled_dot_product_attention", "multi_head_attention_forward", "_transformer_encoder_layer_fwd",
}  # fmt: skip
"""Functions that SynFlow has no meaning for: attention, and what saturates where the flow is large."""
ANOTHER = "choose another mask method"
ROUNDING = 1e-9
"""Of a tensor's largest score, how far below 0 rounding may bring one."""

MICROBATCH = 32
"""Images at a time where batch norm is in eval mode: no sum depends on it, and a double backward needs the memory."""


def random(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Score by independent uniform numbers; a serious baseline (Liu et al., 2022).

    Layer densities agree in expectation; scope `layer` makes them equal, `erk` those of Evci et al. (2020).
    """
    return {n: torch.rand(w.shape, generator=generator, dtype=torch.float64) for n, w in prunable(model, EVERY).items()}


def magnitude(model: nn.Module) -> dict[str, Tensor]:
    """Score by |weight| (Han et al., 2015)."""
    return {name: weight.detach().abs() for name, weight in prunable(model, EVERY).items()}


def snip(model: nn.Module, batches: Iterable[Batch], bn: str = "eval") -> dict[str, Tensor]:
    """Score by |weight · dL/dweight| of the initial network (SNIP; Lee, Ajanthan & Torr, 2019).

    L is the mean cross-entropy over all images. `bn`: `eval` uses the running statistics, as the authors' code does on
    a fresh network; `train` each batch's own.
    """
    return _sensitivity(model, batches, bn)


def taylor(model: nn.Module, batches: Iterable[Batch], bn: str = "eval") -> dict[str, Tensor]:
    """Score by |weight · dL/dweight|, the first-order change of the loss on removal (Molchanov et al., 2017).

    Of one network and batch it ranks as SNIP does; it is meant for trained weights. The gradient is summed over all
    images before the absolute value.
    """
    return _sensitivity(model, batches, bn)


@torch.enable_grad()
def grasp(
    model: nn.Module, batches: Iterable[Batch], bn: str = "train", temperature: float = 200.0
) -> dict[str, Tensor]:
    """Score by weight · (H g), signed (GraSP; Wang, Zhang & Grosse, 2020): what adds to the gradient flow is kept.

    g is the gradient of the mean cross-entropy of logits / temperature over *all* images with respect to the prunable
    weights, H g the gradient of <g, gradient>. `bn`: `train` as the authors' code has it, or `eval`.
    """
    net, weights = _copy(model, bn)
    batches = held(batches)
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

    All parameters and buffers enter by absolute value, in float64 (float32 overflows deep networks), so that every term
    is positive. Normalisation is as batch norm in eval mode with fresh statistics (mean 0, variance 1): group, layer,
    instance and RMS normalisation too only multiply by |gamma| and add |beta|, since what they subtract and divide by
    would cancel the flow. The upper bound of ReLU6 and Hardtanh is lifted: the flow is far above it and would find no
    gradient there. On a chain without biases every layer's scores have the same sum; with biases, what flows out of
    them counts from there on only.
    Raises MaskError for softmax, attention, sigmoid and tanh, to which none of this applies (of parameters alone they
    are weights of branches, and pass), for a network that takes token ids, and where a score is negative all the same.
    """
    net = copied(model).eval()
    for module in net.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:  # it would normalise the flow away
            module.register_buffer("running_mean", torch.zeros(module.num_features))
            module.register_buffer("running_var", torch.ones(module.num_features))
    parameters = {name: p.detach().abs().double().requires_grad_(True) for name, p in net.named_parameters()}
    buffers = {
        name: torch.zeros_like(b, dtype=torch.float64)
        if name.endswith("running_mean")
        else torch.ones_like(b, dtype=torch.float64)
        if name.endswith("running_var")
        else b.double().abs()
        if b.is_floating_point()
        else b
        for name, b in net.named_buffers()
    }
    device = next((p.device for p in parameters.values()), None)
    ones = torch.ones((1, *shape), dtype=torch.float64, device=device, requires_grad=True)
    with Flow(ones):
        flow = functional_call(net, {**parameters, **buffers}, (ones.clone(),)).sum()
    names = list(prunable(model, EVERY))
    gradients = torch.autograd.grad(flow, [parameters[name] for name in names], materialize_grads=True)
    scores = {n: (g * parameters[n]).detach() for n, g in zip(names, gradients, strict=True)}
    for name, score in scores.items():
        if bool((score < -ROUNDING * score.abs().max()).any()):
            raise MaskError(f"synflow: scores of {name!r} are negative: something in the network subtracts; {ANOTHER}")
    return scores


class Flow(TorchFunctionMode):
    """Computes, inside it, as SynFlow's theory has it: bounds lifted, normalisation without statistics."""

    def __init__(self, source: Tensor) -> None:
        """`source`: the leaf that the network's input is made of, which takes a gradient as all parameters do."""
        super().__init__()
        self.source = source

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function, or what stands for it."""
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in UNCOVERED and not (name in GATES and self._of_parameters(args[0] if args else kwargs["input"])):
            remedy = "where it is the last of it, return the logits instead; else " if name == "log_softmax" else ""
            raise MaskError(
                f"synflow: the network uses {name.strip('_')}, through which the flow is not conserved "
                f"(Tanaka et al., 2020, treat networks of ReLU); {remedy}{ANOTHER}"
            )
        if func is F.embedding and args[0].is_floating_point():
            raise MaskError(f"synflow: the network takes token ids, and no input of ones can stand for them; {ANOTHER}")
        if func in (F.relu6, F.hardtanh):
            return F.relu(args[0])
        known = func in NORMALISATIONS or func in BUILTINS
        return _affine(func, args, kwargs) if known else func(*args, **kwargs)

    def _of_parameters(self, tensor: Tensor) -> bool:
        """Return whether a tensor was computed from parameters, and from nothing that depends on the input."""
        node: Any = tensor.grad_fn
        nodes, seen = [node] if node is not None else [], {node}
        while nodes:
            node = nodes.pop()
            if getattr(node, "variable", None) is self.source:
                return False
            new = {one for one, _ in node.next_functions if one is not None} - seen
            seen |= new
            nodes += new
        return tensor.requires_grad


def _affine(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return what a normalisation makes of its input [N, C, ...] as if the mean were 0 and the variance 1."""
    if func in BUILTINS:
        given = {"eps": EPSILON.get(func), **dict(zip(BUILTINS[func], args, strict=False)), **kwargs}
    else:
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
    out: Tensor = given["input"] / math.sqrt(1 + (given["eps"] or 0.0))
    channels = func in (F.group_norm, F.instance_norm, torch.group_norm, torch.instance_norm)
    by_channel = (-1, *[1] * (out.dim() - 2)) if channels else ()
    weight, bias = (
        None if one is None else one.view(by_channel) if by_channel else one
        for one in (given.get("weight"), given.get("bias"))
    )
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


@torch.enable_grad()
def _sensitivity(model: nn.Module, batches: Iterable[Batch], bn: str) -> dict[str, Tensor]:
    net, weights = _copy(model, bn)
    batches = held(batches)
    total = [torch.zeros_like(weight) for weight in weights.values()]
    samples = sum(len(labels) for _, labels in batches)
    for images, labels in _portions(batches, bn):
        for sum_, gradient in zip(total, _gradients(_loss(net, images, labels, samples), weights), strict=True):
            sum_ += gradient
    return {name: (weights[name].detach() * sum_).abs() for name, sum_ in zip(weights, total, strict=True)}


def differentiable(model: nn.Module, bn: str) -> nn.Module:
    """Return a copy in eval mode whose parameters all take gradients, its batch norm in the mode asked for.

    Raises ValueError for another mode than `eval` and `train`.
    """
    check_choice("bn", bn, BN)
    net = copied(model).eval().requires_grad_(True)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.train(bn == "train")
    return net


def _copy(model: nn.Module, bn: str) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Return a float64 copy to differentiate, and its prunable weights."""
    net = differentiable(model, bn).double()
    parameters = dict(net.named_parameters())
    return net, {name: parameters[name] for name in prunable(model, EVERY)}


def held(batches: Iterable[Batch]) -> list[Batch]:
    """Return batches as a list, which can be read again. Raises MaskError for none, and for what is no batches."""
    if isinstance(batches, tuple) and all(isinstance(one, Tensor) for one in batches):
        raise MaskError("batches is one pair of images and labels; write [(images, labels)]")
    found = list(batches)
    if not any(len(batch[-1]) for batch in found):
        raise MaskError("batches is empty: there is no image to score the weights with")
    return found


def _portions(batches: Sequence[Batch], bn: str) -> Iterator[Batch]:
    for images, labels in batches:
        size = MICROBATCH if bn == "eval" else len(labels)
        yield from zip(torch.split(images, size), torch.split(labels, size), strict=True)


def _loss(net: nn.Module, images: Tensor, labels: Tensor, samples: int, temperature: float = 1.0) -> Tensor:
    """Return a batch's share of the mean cross-entropy over all samples."""
    inputs = images.double() if images.is_floating_point() else images  # token ids stay whole numbers
    return F.cross_entropy(net(inputs) / temperature, labels, reduction="sum") / samples


def _gradients(loss: Tensor, weights: dict[str, nn.Parameter]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
