"""Layer-wise re-scaled initialisation: slopes against finite differences, and the optimizer's arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from tost.catalog import PARTS
from tost.masks import Masks, find_masks, prunable
from tost.masks.apply import apply_masks
from tost.masks.scores import magnitude
from tost.recipe.rescaled_init import RescaledInit, Scale, _Problem, find_scales

Batch = tuple[Tensor, Tensor]


def small() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    ).double()
    with torch.no_grad():
        net[4].bias.add_(0.3)  # type: ignore[union-attr, operator]
        net[1].bias.add_(0.2)  # type: ignore[union-attr, operator]
    return net


def batches(seed: int = 0) -> Callable[[], Batch]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: (
        torch.randn(8, 2, 4, 4, generator=generator, dtype=torch.float64),
        torch.randint(3, (8,), generator=generator),
    )


def half(net: nn.Module) -> Masks:
    return find_masks(magnitude, net, sum(w.numel() for w in prunable(net).values()) // 2, scope="layer")


def slopes_by_difference(value: Callable[[dict[str, float]], float], names: list[str]) -> dict[str, float]:
    found = {}
    for name in names:
        sides = [value({n: 1.1 + step * (n == name) for n in names}) for step in (1e-5, -1e-5)]
        found[name] = (sides[0] - sides[1]) / 2e-5
    return found


@pytest.mark.parametrize("through", [True, False])
def test_the_constraint_steps_slopes_are_those_of_the_gradients_norm(through: bool) -> None:
    net, batch = small(), batches()()
    problem = _Problem(net, half(net), through)
    theta = problem.at(dict.fromkeys(problem.start, 1.1))
    norm, _ = problem.gradient(theta, batch)
    slopes = problem.norm_slopes(norm, theta)
    measured = slopes_by_difference(lambda s: problem.gradient(problem.at(s), batch)[0].item(), list(theta))
    assert slopes == pytest.approx(measured, rel=1e-5, abs=1e-8)
    assert max(map(abs, slopes.values())) > 1e-3


def test_the_look_ahead_steps_slopes_are_those_of_the_loss_after_a_fixed_step() -> None:
    net, draw = small(), batches()
    problem, eta = _Problem(net, half(net), through=True), 0.1
    theta = problem.at(dict.fromkeys(problem.start, 1.1))
    norm, gradient = problem.gradient(theta, draw())
    held = {name: (eta * g / norm).detach() for name, g in gradient.items()}
    later = draw()

    def loss(scales: dict[str, float]) -> float:
        ahead = {name: (tensor - held[name]).detach() for name, tensor in problem.at(scales).items()}
        return problem.loss(ahead, later).item() / eta

    slopes = problem.look_ahead_slopes(theta, gradient, norm, eta, later)
    assert slopes == pytest.approx(slopes_by_difference(loss, list(theta)), rel=1e-5, abs=1e-7)
    assert max(map(abs, slopes.values())) > 1e-3


def test_the_norm_counts_kept_weights_only_unless_the_authors_way_is_asked_for() -> None:
    net, batch = small(), batches()()
    masks = half(net)
    apply_masks(net, masks)
    net.train()
    loss = F.cross_entropy(net(batch[0]), batch[1])
    gradients = dict(zip(dict(net.named_parameters()), torch.autograd.grad(loss, list(net.parameters())), strict=True))
    all_of_them = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    kept = math.sqrt(sum(float((g[masks[n]] if n in masks else g).square().sum()) for n, g in gradients.items()))
    for through, expected in ((True, kept), (False, all_of_them)):
        problem = _Problem(net, masks, through)
        norm, _ = problem.gradient(problem.at(dict.fromkeys(problem.start, 1.0)), batch)
        assert norm.item() == pytest.approx(expected)
    assert kept < all_of_them


def test_pruned_weights_stay_zero_in_the_look_ahead_of_the_default_and_not_of_the_authors() -> None:
    net, draw = small(), batches()
    masks = half(net)
    for through in (True, False):
        problem = _Problem(net, masks, through)
        theta = problem.at(dict.fromkeys(problem.start, 1.0))
        _, gradient = problem.gradient(theta, draw())
        moved = [bool((gradient[name][~mask] != 0).any()) for name, mask in masks.items()]
        assert any(moved) is not through


@pytest.mark.parametrize("variant", PARTS["lrsi"].knobs["variant"].choices)
def test_finding_scales_changes_nothing_and_scaled_pruned_weights_are_zero(variant: str) -> None:
    net = small()
    masks = half(net)
    before, state = {n: v.clone() for n, v in net.state_dict().items()}, torch.get_rng_state()
    found = find_scales(net, masks, batches(), variant=variant, iterations=12)
    assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())
    assert any(scale != 1.0 for scale in found.scales.values())
    apply_masks(net, masks)
    RescaledInit(found.scales).attach(net)
    weights = prunable(net)
    assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())
    for name, value in net.named_parameters():
        expected = before[name] * found.scales[name]
        assert_close(value.detach(), torch.where(masks[name], expected, 0) if name in masks else expected)


def test_scales_of_a_compiled_network_are_found_and_used_by_either_ones_names() -> None:
    net = small()
    compiled, masks = torch.compile(net, backend="eager"), half(net)
    theirs = {f"_orig_mod.{name}": mask for name, mask in masks.items()}
    assert set(theirs) == set(prunable(compiled))
    found = find_scales(net, masks, batches(), iterations=3)
    for given in (masks, theirs):
        assert find_scales(compiled, given, batches(), iterations=3) == found
    with pytest.raises(ValueError, match="belongs to no parameter of Sequential"):
        find_scales(net, theirs, batches(), iterations=1)
    before = net[0].weight.detach().clone()  # type: ignore[index, union-attr, operator]
    for prefix in ("", "_orig_mod."):
        RescaledInit({f"{prefix}0.weight": 2.0}).attach(compiled)
    assert torch.equal(net[0].weight, 4 * before)  # type: ignore[index]


def test_the_dense_variant_knows_no_mask() -> None:
    net = small()
    assert find_scales(net, half(net), batches(), variant="authors-dense", iterations=5) == find_scales(
        net, {}, batches(), iterations=5
    )


def test_gamma_decides_between_the_two_kinds_of_step() -> None:
    net = small()
    assert find_scales(net, {}, batches(), gamma=1e-9, iterations=4).constraint_steps == 4
    assert find_scales(net, {}, batches(), gamma=1e9, iterations=4).constraint_steps == 0


def test_the_objective_falls() -> None:
    """Held to a gradient norm it violates, the network comes closer to it."""
    net, batch = small(), batches(7)()
    problem = _Problem(net, {}, through=True)

    def norm(scales: dict[str, float]) -> float:
        return problem.gradient(problem.at(scales), batch)[0].item()

    found = find_scales(net, {}, lambda: batch, gamma=0.01, iterations=30)
    assert norm(found.scales) < norm(dict.fromkeys(found.scales, 1.0))


def test_adam_of_a_scale_by_hand() -> None:
    scale = Scale(floor=0.01)
    scale.descend(0.5, 0.1, constraint=True)  # first step of Adam: the learning rate, whatever the slope
    assert scale.value == pytest.approx(0.9)
    scale.descend(-0.2, 0.1, constraint=False)
    # own first moment, so -0.02 / 0.1; shared second moment after two steps
    second = (0.999 * 0.001 * 0.25 + 0.001 * 0.04) / (1 - 0.999**2)
    assert scale.value == pytest.approx(0.9 + 0.1 * 0.2 / math.sqrt(second), rel=1e-6)
    for _ in range(50):
        scale.descend(1.0, 0.1, constraint=True)
    assert scale.value == 0.01


def test_a_tensor_without_a_norm_keeps_its_scale() -> None:
    net = small()
    with torch.no_grad():
        net[4].bias.zero_()  # type: ignore[union-attr, operator]
    assert find_scales(net, {}, batches(), iterations=5).scales["4.bias"] == 1.0


def test_the_first_two_batches_and_a_third_where_it_looks_ahead_are_drawn() -> None:
    for gamma, expected in ((1e-9, 2), (1e9, 3)):
        drawn: list[int] = []
        draw = batches()

        def counted(drawn: list[int] = drawn, draw: Callable[[], Batch] = draw) -> Batch:
            drawn.append(1)
            return draw()

        find_scales(small(), {}, counted, gamma=gamma, iterations=1)
        assert len(drawn) == expected


def test_a_network_without_a_finite_gradient_is_refused() -> None:
    net = small()
    with torch.no_grad():
        net[4].weight.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match="gradient is not finite at iteration 1"):
        find_scales(net, {}, batches(), iterations=2)
