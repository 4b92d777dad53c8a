"""Scores: cases worked by hand, and the laws that each formula obeys."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from tests.tost.nets import TwoLinear, offers, small_net, total
from tost.catalog import MODELS, resolve
from tost.masks import MaskError, find_masks, keep_count, prunable
from tost.masks.scores import grasp, magnitude, snip, synflow, taylor


def test_synflow_by_hand() -> None:
    # |B||A|1 = [[2,1],[1,3]] [[1,2],[.5,1]] [1,1]: column sums of |B| are 3 and 4, row sums of |A| 3 and 1.5
    scores = synflow(TwoLinear(), (2, 1, 1))
    assert_close(scores["a.weight"], torch.tensor([[3.0, 6.0], [2.0, 4.0]], dtype=torch.float64))
    assert_close(scores["b.weight"], torch.tensor([[6.0, 1.5], [3.0, 4.5]], dtype=torch.float64))
    assert scores["a.weight"].sum() == scores["b.weight"].sum() == 15


def test_snip_by_hand() -> None:
    net, x, y = TwoLinear().double(), torch.tensor([[1.0, 1.0]]).double(), torch.tensor([0])
    hidden = torch.tensor([-1.0, 1.5]).double()
    logits = torch.tensor([-0.5, 5.5]).double()
    error = torch.softmax(logits, 0) - torch.tensor([1.0, 0.0])  # dL/dlogits
    b_gradient = error[:, None] * hidden[None]
    a_gradient = (net.b.weight.detach().T @ error)[:, None] * x
    scores = snip(net, [(x, y)])
    assert_close(scores["b.weight"], (net.b.weight * b_gradient).abs().detach())
    assert_close(scores["a.weight"], (net.a.weight * a_gradient).abs().detach())


def test_magnitude_by_hand() -> None:
    assert magnitude(TwoLinear())["a.weight"].tolist() == [[1.0, 2.0], [0.5, 1.0]]


def test_snip_sums_signed_gradients_so_that_splitting_the_batch_changes_nothing() -> None:
    net = small_net().double()
    images, labels = torch.randn(20, 3, 8, 8).double(), torch.arange(20) % 4
    whole = snip(net, [(images, labels)])
    for cut in (10, 3):
        parts = [(images[:cut], labels[:cut]), (images[cut:], labels[cut:])]
        assert_close(snip(net, parts), whole, rtol=1e-10, atol=1e-15)


def test_snip_in_train_mode_uses_the_batch_statistics() -> None:
    net = small_net()
    with torch.no_grad():
        net[1].running_var.mul_(50)  # type: ignore[union-attr, operator]
    assert not torch.allclose(
        snip(net, offers()["batches"], bn="train")["0.weight"], snip(net, offers()["batches"])["0.weight"]
    )


def test_synflow_conserves_flow_and_ignores_signs_data_and_statistics() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3, bias=False),
        nn.Flatten(), nn.Linear(4 * 36, 3, bias=False),
    )  # fmt: skip
    scores = synflow(net, (3, 8, 8))
    sums = [float(score.sum()) for score in scores.values()]
    assert max(sums) - min(sums) < 1e-9 * max(sums)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(torch.where(torch.rand_like(parameter) < 0.5, -1, 1))
    net(torch.randn(8, 3, 8, 8) + 5)
    assert_close(synflow(net, (3, 8, 8)), scores, rtol=1e-12, atol=0)


def test_synflow_stays_finite_where_float32_would_overflow() -> None:
    layers: list[nn.Module] = []
    for _ in range(60):
        layers += [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.ReLU()]
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight.fill_(0.5)  # type: ignore[union-attr, operator]
    scores = synflow(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, 2)), (16, 8, 8))
    assert max(float(score.max()) for score in scores.values()) > torch.finfo(torch.float32).max
    assert all(bool(torch.isfinite(score).all()) for score in scores.values())


def test_synflow_empties_no_layer_where_one_shot_does() -> None:
    torch.manual_seed(0)
    widths = [3, 16, 32, 64, 64]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    keep = keep_count(total(net), Fraction(1, 500))
    masks = find_masks(synflow, net, keep, steps=100, offered={"shape": (3, 8, 8)})
    assert all(bool(mask.any()) for mask in masks.values())


# Taylor, GraSP --------------------------------------------------------------------------------------------------------


def test_taylor_ranks_as_snip_does_on_the_same_network_and_batch() -> None:
    net, batches = small_net(), offers()["batches"]
    assert_close(taylor(net, batches), snip(net, batches), rtol=0, atol=0)


def test_grasp_by_hand() -> None:
    """Forward, gradient and Hessian-gradient product of y = B A x / T with cross-entropy, written out."""
    net, temperature = TwoLinear().double(), 3.0
    x, y = torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([0])
    a, b, column = net.a.weight.detach(), net.b.weight.detach(), x.T
    h = a @ column
    p = torch.softmax((b @ h)[:, 0] / temperature, 0)[:, None]
    e = (p - torch.tensor([[1.0], [0.0]])) / temperature  # dL/dz
    grad_b, grad_a = e @ h.T, b.T @ e @ column.T
    dh = grad_a @ column
    dz = grad_b @ h + b @ dh
    de = (torch.diag(p[:, 0]) - p @ p.T) @ dz / temperature**2
    product_b = de @ h.T + e @ dh.T
    product_a = (grad_b.T @ e + b.T @ de) @ column.T
    scores = grasp(net, [(x, y)], bn="eval", temperature=temperature)
    assert_close(scores["b.weight"], b * product_b)
    assert_close(scores["a.weight"], a * product_a)


def by_definition(net: nn.Module, batches: list[tuple[Tensor, Tensor]], temperature: float) -> dict[str, Tensor]:
    """theta · H g with g the gradient of the mean loss over all samples, by a double backward over one joined batch."""
    weights = prunable(net)
    images, labels = (torch.cat([batch[n] for batch in batches]) for n in (0, 1))
    loss = F.cross_entropy(net(images) / temperature, labels)
    g = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    inner = sum((a * a.detach()).sum() for a in g)
    hg = torch.autograd.grad(inner, list(weights.values()))  # type: ignore[arg-type]
    return {name: (w * h).detach() for (name, w), h in zip(weights.items(), hg, strict=True)}


@pytest.mark.parametrize("cut", [20, 10, 3])
def test_grasp_is_the_double_backward_of_its_definition_however_the_batch_is_split(cut: int) -> None:
    net = small_net().double().eval()
    images, labels = torch.randn(20, 3, 8, 8).double(), torch.arange(20) % 4
    parts = [(images[:cut], labels[:cut]), (images[cut:], labels[cut:])][: 1 if cut == 20 else 2]
    assert_close(grasp(net, parts, bn="eval"), by_definition(net, [(images, labels)], 200.0), rtol=1e-9, atol=1e-18)


def test_graspps_layer_sums_are_the_slopes_of_the_gradient_flow_sign_included() -> None:
    """sum of theta · (H g) over a layer = d(|g|²/2) / d(log of the layer's scale), by central differences."""
    net = small_net().double().eval()
    images, labels = torch.randn(20, 3, 8, 8).double(), torch.arange(20) % 4
    scores = grasp(net, [(images, labels)], bn="eval", temperature=1.0)

    def flow() -> float:
        loss = F.cross_entropy(net(images), labels)
        return sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(prunable(net).values()))) / 2

    for name, weight in prunable(net).items():
        flows = []
        for step in (1e-5, -1e-5):
            kept = weight.detach().clone()
            with torch.no_grad():
                weight.mul_(1 + step)
            flows.append(flow())
            with torch.no_grad():
                weight.copy_(kept)
        assert float(scores[name].sum()) == pytest.approx((flows[0] - flows[1]) / 2e-5, rel=1e-4, abs=1e-12)


def test_snip_ranks_the_same_after_a_rescaling_that_changes_no_output() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    batches = [(torch.randn(12, 6).double(), torch.arange(12) % 4)]
    before = snip(net, batches)
    with torch.no_grad():
        net[0].weight.mul_(8)  # type: ignore[union-attr, operator]
        net[0].bias.mul_(8)  # type: ignore[union-attr, operator]
        net[2].weight.div_(8)  # type: ignore[union-attr, operator]
    assert_close(snip(net, batches), before, rtol=1e-10, atol=0)


def test_synflow_looks_through_the_bound_of_relu6() -> None:
    def net(activation: type[nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), activation(), nn.Conv2d(8, 8, 3), activation(), nn.Flatten())

    clipped, plain = net(nn.ReLU6), net(nn.ReLU)
    with torch.no_grad():
        for module in (*clipped, *plain):  # type: ignore[misc]
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(100)
    assert_close(synflow(clipped, (3, 8, 8)), synflow(plain, (3, 8, 8)), rtol=0, atol=0)


@pytest.mark.parametrize(("width", "one_of"), [(0.125, 500), pytest.param(0.5, 1000, marks=pytest.mark.long)])
def test_synflow_collapses_nothing_of_vgg16(width: float, one_of: int) -> None:
    torch.manual_seed(0)
    net = resolve(MODELS["vgg16"].path)(10, 3, width)
    keep = keep_count(total(net), Fraction(1, one_of))
    masks = find_masks(synflow, net, keep, steps=100, offered={"shape": (3, 32, 32)})
    assert sum(int(mask.sum()) for mask in masks.values()) == keep
    assert all(bool(mask.any()) for mask in masks.values())


def test_synflows_steps_keep_the_counts_of_the_exponential_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    import tost.masks.find as find

    counts: list[int] = []
    plain = find.select
    monkeypatch.setattr(find, "select", lambda *args: counts.append(args[1]) or plain(*args))  # type: ignore[func-returns-value]
    net, wanted = small_net(), Fraction(1, 7)
    size = total(net)
    find_masks(synflow, net, keep_count(size, wanted), density=wanted, steps=10, offered={"shape": (3, 8, 8)})
    assert counts == [round(size * float(wanted) ** (t / 10)) for t in range(1, 11)]


def test_attention_can_be_scored_to_the_second_order() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, 4)
            self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.embed(x).flatten(2).mT
            logits: Tensor = self.head(self.mix(tokens, tokens, tokens, need_weights=False)[0].mean(1))
            return logits

    scores = grasp(Attends(), offers()["batches"])
    assert sorted(scores) == ["embed.weight", "head.weight", "mix.out_proj.weight"]


@pytest.mark.parametrize("score", [snip, taylor, grasp])
def test_scores_need_no_gradient_mode_from_outside(score: Callable[..., dict[str, Tensor]]) -> None:
    net, batches = small_net(), offers()["batches"]
    plain = score(net, batches)
    with torch.no_grad():
        assert_close(score(net, batches), plain, rtol=0, atol=0)


def test_synflow_passes_a_batch_norm_without_running_statistics() -> None:
    def net(track: bool) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=track), nn.Flatten())

    assert_close(synflow(net(False), (3, 8, 8)), synflow(net(True), (3, 8, 8)), rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "instance", "rms", "functional"])
def test_synflow_conserves_flow_through_every_normalisation(norm: str) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, (8, 8), self.weight)

    make: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: nn.BatchNorm2d(6),
        "group": lambda: nn.GroupNorm(2, 6),
        "layer": lambda: nn.LayerNorm([6, 8, 8]),
        "instance": lambda: nn.InstanceNorm2d(6, affine=True),
        "rms": lambda: nn.RMSNorm([6, 8, 8]),
        "functional": Functional,
    }
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), make[norm](), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, bias=False),
        make[norm](), nn.ReLU6(), nn.Flatten(), nn.Linear(6 * 64, 5, bias=False),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for module in (net[1], net[4]):
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()  # type: ignore[operator, union-attr]
    scores = synflow(net, (3, 8, 8))
    assert all(float(score.min()) >= 0 for score in scores.values())
    sums = [float(score.sum()) for score in scores.values()]
    assert max(sums) - min(sums) < 1e-9 * max(sums)


def test_a_normalisation_without_statistics_multiplies_by_its_weight_and_adds_its_bias() -> None:
    """Of one channel a group norm and a batch norm are alike: score by score."""

    def net(norm: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        whole = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))  # type: ignore[operator, union-attr]
            norm.bias.fill_(-0.25)  # type: ignore[operator, union-attr]
        return whole

    plain = synflow(net(nn.BatchNorm2d(4)), (3, 8, 8))
    assert_close(synflow(net(nn.GroupNorm(4, 4)), (3, 8, 8)), plain, rtol=1e-12, atol=0)
    assert_close(synflow(net(nn.InstanceNorm2d(4, affine=True)), (3, 8, 8)), plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("middle", "said"),
    [
        (nn.Softmax(1), "softmax"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Tanh(), "tanh"),
        (nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), "multi_head_attention_forward"),
    ],
)
def test_synflow_refuses_what_conserves_no_flow(middle: nn.Module, said: str) -> None:
    with pytest.raises(MaskError, match=f"synflow: the network uses {said}.*choose another mask method"):
        synflow(nn.Sequential(nn.Linear(8, 8), middle, nn.Linear(8, 2)), (4, 8))


class Calls(nn.Module):
    """A network of two layers whose forward pass is given."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.call = nn.Linear(6, 6), nn.Linear(6, 3), call
        self.branches, self.scale = nn.Parameter(torch.randn(2)), nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


@pytest.mark.parametrize(
    ("builtin", "function"),
    [
        (lambda x, w: torch.layer_norm(x, (6,), w), lambda x, w: F.layer_norm(x, (6,), w)),
        (lambda x, w: torch.group_norm(x, 2, w, eps=1e-3), lambda x, w: F.group_norm(x, 2, w, eps=1e-3)),
        (lambda x, w: torch.rms_norm(x, (6,), weight=w), lambda x, w: F.rms_norm(x, (6,), w)),
        (
            lambda x, w: torch.instance_norm(x[..., None], w, None, None, None, True, 0.1, 1e-5, False)[..., 0],
            lambda x, w: F.instance_norm(x[..., None], weight=w)[..., 0],
        ),
    ],
    ids=["layer", "group", "rms", "instance"],
)
def test_synflow_knows_a_normalisation_by_either_of_its_names(
    builtin: Callable[[Tensor, Tensor], Tensor], function: Callable[[Tensor, Tensor], Tensor]
) -> None:
    found, wanted = (
        synflow(Calls(lambda net, x: net.last(norm(net.first(x), net.scale))), (6,))  # noqa: B023
        for norm in (builtin, function)
    )
    assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("gate", [torch.softmax, lambda a, _: torch.sigmoid(input=a), lambda a, _: a.tanh()])
def test_synflow_passes_weights_of_branches_and_refuses_those_that_depend_on_the_input(
    gate: Callable[[Tensor, int], Tensor],
) -> None:
    def weighed(net: Any, x: Tensor) -> Tensor:
        one, other = gate(net.branches, 0)
        out: Tensor = net.last(one * net.first(x) + other * x)
        return out

    net = Calls(weighed)
    found = synflow(net, (6,))
    one, _ = gate(net.branches.detach().abs().double(), 0)
    with torch.no_grad():
        net.first.weight.mul_(2)
        net.first.bias.mul_(2)
    doubled = synflow(net, (6,))
    assert float(one) > 0
    assert_close(doubled["first.weight"], 2 * found["first.weight"])
    for argument in (lambda net, x: net.branches * x.mean(), lambda net, x: x.mean().detach() * net.branches.detach()):
        with pytest.raises(MaskError, match="through which the flow is not conserved"):
            synflow(Calls(lambda net, x: gate(argument(net, x), 0)[0] * net.last(net.first(x))), (6,))  # noqa: B023


def test_synflow_names_the_remedy_for_a_network_that_ends_in_log_softmax() -> None:
    with pytest.raises(MaskError, match=r"log_softmax.*return the logits instead"):
        synflow(Calls(lambda net, x: F.log_softmax(net.last(net.first(x)), 1)), (6,))


def test_synflow_refuses_a_network_that_subtracts() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - 2 * x.mean(1, keepdim=True)

    with pytest.raises(MaskError, match=r"scores of '0\.weight' are negative: something in the network subtracts"):
        synflow(nn.Sequential(nn.Linear(4, 4), Centred(), nn.Linear(4, 2)), (4,))


def test_biases_are_a_source_of_flow_for_the_layers_behind_them() -> None:
    first, last = (float(score.sum()) for score in synflow(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)), (3, 2, 2)
    ).values())  # fmt: skip
    assert first < last


@pytest.mark.parametrize("score", [snip, taylor, grasp])
def test_batches_may_be_read_once_and_must_not_be_empty(score: Callable[..., dict[str, Tensor]]) -> None:
    net, pairs = small_net(), [(image[None], label[None]) for image, label in zip(*offers()["batches"][0], strict=True)]
    assert_close(score(net, iter(pairs), bn="eval"), score(net, pairs, bn="eval"), rtol=0, atol=0)
    assert_close(
        find_masks(score, net, 50, steps=2, offered={"batches": iter(pairs), "bn": "eval"}),
        find_masks(score, net, 50, steps=2, offered={"batches": pairs, "bn": "eval"}),
        rtol=0, atol=0,
    )  # fmt: skip
    for empty in ([], iter(()), [(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long))]):
        with pytest.raises(MaskError, match="batches is empty"):
            score(net, empty)
    with pytest.raises(MaskError, match=r"write \[\(images, labels\)\]"):
        score(net, pairs[0])


@pytest.mark.parametrize("score", [snip, taylor, grasp])
def test_a_mode_of_batch_norm_that_does_not_exist_is_refused(score: Callable[..., dict[str, Tensor]]) -> None:
    with pytest.raises(ValueError, match="bn: 'Train' is not allowed; choose from eval, train"):
        score(small_net(), offers()["batches"], bn="Train")


@pytest.mark.parametrize("score", [snip, taylor, grasp])
def test_networks_of_token_ids_are_scored_by_gradients(score: Callable[..., dict[str, Tensor]]) -> None:
    net = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 3))
    ids, labels = torch.arange(18).view(6, 3) % 10, torch.arange(6) % 3
    found = score(net, [(ids, labels)])["2.weight"]
    whole = net[2]
    features = nn.Flatten()(net[0](ids)).detach()
    assert_close(found, score(nn.Sequential(whole), [(features, labels)])["0.weight"], rtol=1e-6, atol=1e-12)
    with pytest.raises(MaskError, match="takes token ids"):
        synflow(net, (3,))
