"""Layer-wise re-scaled initialisation: GradInit on the sparse network (Zhu et al., 2021, as ToST uses it, 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from tost.catalog import INIT_VARIANTS, check_choice
from tost.masks.apply import Masks, check_masks
from tost.masks.scores import differentiable
from tost.recipe.part import Part, unwrapped, unwrapped_names

Batch = tuple[Tensor, Tensor]
Tensors = Mapping[str, Tensor]

BETAS = (0.9, 0.999)
EPSILON = 1e-8
TINY = 1e-30
"""A gradient of exactly 0 takes no step instead of a NaN."""


@dataclass
class Scale:
    """The scale of one tensor, with Adam's state: a first moment for each kind of step, one second moment for both."""

    floor: float
    value: float = 1.0
    moments: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    steps: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    square: float = 0.0

    def descend(self, slope: float, lr: float, constraint: bool) -> None:
        """Take a step of Adam against a slope, not below the floor."""
        self.steps[constraint] += 1
        self.moments[constraint] = BETAS[0] * self.moments[constraint] + (1 - BETAS[0]) * slope
        self.square = BETAS[1] * self.square + (1 - BETAS[1]) * slope**2
        first = self.moments[constraint] / (1 - BETAS[0] ** self.steps[constraint])
        second = self.square / (1 - BETAS[1] ** sum(self.steps.values()))
        self.value = max(self.value - lr * first / (math.sqrt(second) + EPSILON), self.floor)


@dataclass(frozen=True)
class Rescaling:
    """Scales by parameter name, and how many iterations were constraint steps."""

    scales: dict[str, float]
    constraint_steps: int
    iterations: int


@torch.enable_grad()
def find_scales(
    model: nn.Module,
    masks: Masks,
    draw: Callable[[], Batch],
    *,
    variant: str = "default",
    eta: float = 0.1,
    gamma: float = 1.0,
    lr: float = 0.01,
    iterations: int = 180,
    clip: float = 1.0,
    floor: float = 0.01,
    each: Callable[[int], None] | None = None,
) -> Rescaling:
    """Learn one scale a tensor so that the first step of SGD lowers the loss, its gradient norm held below gamma.

    GradInit (Zhu et al., 2021) on a sparse network, as ToST has it (Jaiswal et al., 2022).
    `draw` gives (images [N, C, H, W], labels [N]), N the training batch size. `eta`: length of the look-ahead step;
    `floor`: smallest scale of a weight (of a bias, 0). `default` masks first and lets only kept weights into the
    gradient; `authors-masked` masks first and lets all into it; `authors-dense` rescales the dense network. Plain
    cross-entropy, batch norm by batch statistics. `each` is called before every iteration. The model is not changed.
    Of what torch.compile returns, the network inside is used: masks may have the names of either, scales have its own.
    Raises ValueError where the loss or its gradient is not finite, for a mask that fits no parameter and for a variant
    that does not exist.
    """
    check_choice("variant", variant, INIT_VARIANTS)
    model, masks = unwrapped(model), unwrapped_names(model, masks)
    check_masks(model, masks)
    problem = _Problem(model, {} if variant == "authors-dense" else masks, through=variant == "default")
    scales = {n: Scale(0.0 if n.endswith("bias") else floor) for n in problem.start}
    constraint_steps = 0
    for iteration in range(iterations):
        if each is not None:
            each(iteration)
        theta = problem.at({name: scale.value for name, scale in scales.items()})
        first, second = draw(), draw()
        norm, gradient = problem.gradient(theta, _joined(first, second))
        if not math.isfinite(norm.item()):
            raise ValueError(f"re-scaled initialisation: the gradient is not finite at iteration {iteration + 1}")
        constraint = norm.item() > gamma
        constraint_steps += constraint
        if constraint:
            slopes = problem.norm_slopes(norm, theta)
        else:
            slopes = problem.look_ahead_slopes(theta, gradient, norm, eta, _joined(first, draw()))
        for name, slope in slopes.items():
            if not math.isfinite(slope):
                raise ValueError(f"re-scaled initialisation: {name} has no finite slope at iteration {iteration + 1}")
            if name in problem.live and scales[name].value:
                scales[name].descend(min(max(slope, -clip), clip), lr, constraint)
    return Rescaling({name: scale.value for name, scale in scales.items()}, constraint_steps, iterations)


class _Problem:
    """The network as a function of its tensors, and the two objectives' slopes in the scales."""

    def __init__(self, model: nn.Module, masks: Masks, through: bool) -> None:
        self.net = differentiable(model, bn="train")
        self.masks = {n: m.to(p.device) for n, p in self.net.named_parameters() if (m := masks.get(n)) is not None}
        self.gradient_masks = self.masks if through else {}
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        self.start = {
            name: torch.where(self.masks[name], p, 0) if name in self.masks else p.clone()
            for name, p in ((n, p.detach()) for n, p in self.net.named_parameters())
            if name in trained
        }
        self.live = {name for name, start in self.start.items() if bool(start.any())}
        """Tensors that have a norm to scale; most biases begin with none."""

    def at(self, scales: Mapping[str, float]) -> dict[str, Tensor]:
        """Return the tensors at some scales, as leaves."""
        return {name: (scales[name] * start).requires_grad_(True) for name, start in self.start.items()}

    def loss(self, theta: Tensors, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, the running statistics of batch norm left alone."""
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        with sdpa_kernel(SDPBackend.MATH):  # the fast attention kernels have no second derivative
            return F.cross_entropy(functional_call(self.net, {**theta, **buffers}, (batch[0],)), batch[1])

    def gradient(self, theta: Tensors, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the norm of the gradient over all tensors, and the gradient, both differentiable."""
        gradients = torch.autograd.grad(
            self.loss(theta, batch), list(theta.values()), create_graph=True, materialize_grads=True
        )
        named = {
            name: torch.where(self.gradient_masks[name], g, 0) if name in self.gradient_masks else g
            for name, g in zip(theta, gradients, strict=True)
        }
        return torch.stack([g.square().sum() for g in named.values()]).sum().sqrt(), named

    def norm_slopes(self, norm: Tensor, theta: Tensors) -> dict[str, float]:
        """Return d norm / d scale."""
        return self._slopes(torch.autograd.grad(norm, list(theta.values()), materialize_grads=True), theta)

    def look_ahead_slopes(
        self, theta: Tensors, gradient: Tensors, norm: Tensor, eta: float, batch: Batch
    ) -> dict[str, float]:
        """Return d (loss after the step / eta) / d scale, the step itself held constant as in GradInit's own code."""
        ahead = {
            name: (tensor - eta * gradient[name] / norm.clamp(min=TINY)).detach().requires_grad_(True)
            for name, tensor in theta.items()
        }
        loss = self.loss(ahead, batch) / eta
        return self._slopes(torch.autograd.grad(loss, list(ahead.values()), materialize_grads=True), theta)

    def _slopes(self, gradients: tuple[Tensor, ...], theta: Tensors) -> dict[str, float]:
        """Return <gradient, start>, the slope in each scale of theta = scale · start."""
        products = [(g * self.start[name]).sum() for name, g in zip(theta, gradients, strict=True)]
        return dict(zip(theta, torch.stack(products).tolist(), strict=True))


def _joined(first: Batch, second: Batch) -> Batch:
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])


class RescaledInit(Part):
    """Multiply every tensor by its scale when training begins; nothing is left to do afterwards.

    One of the parts of ToST (Jaiswal et al., 2022). `scales` by parameter name, as find_scales has them; of what
    torch.compile returns, by its own names or those of the network inside.
    """

    def __init__(self, scales: Mapping[str, float]) -> None:
        self.scales = dict(scales)

    @torch.no_grad()
    def attach(self, model: nn.Module) -> None:
        """Scale in place. Raises ValueError for a scale that belongs to no parameter."""
        parameters = dict(unwrapped(model).named_parameters())
        for name, scale in unwrapped_names(model, self.scales).items():
            if name not in parameters:
                raise ValueError(f"scale {name!r} belongs to no parameter of {type(model).__name__}")
            parameters[name].mul_(scale)
