"""The training loop, its data and its checkpoints, inside one process."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from harness.check import load_sweep
from harness.errors import UserError
from harness.plan import Stage
from harness.planfile import keep_methods
from harness.planner import make_plan
from harness.protocol import Protocol, make_protocol
from harness.store import Store, file_sha256
from harness.train import loop, schedules
from harness.train.checkpoint import Position, load_checkpoint, pack, write_checkpoint
from harness.train.draws import seed_for, stream
from harness.train.images import Images
from harness.train.loop import Diverged, train
from harness.train.network import build, load_weights, open_images, wanted_size
from harness.train.order import Corrupt, Order
from harness.train.rescaling import load_scales
from harness.train.run import Training, spoilt
from harness.train.stages import run_stage
from harness.train.training import prepare, resume, state_tensors
from tests.conftest import GRID
from tost.masks import prunable
from tost.masks.apply import dead_filters
from tost.masks.io import load_masks
from tost.masks.schedule import GradualPruning


class Watcher(loop.Watcher):
    """Stops the loop after some steps, or never."""

    def __init__(self, stop_after: int = -1) -> None:
        self.stop_after, self.steps = stop_after, 0

    def begin(self, training: Training) -> None:
        self.begun_at = training.done

    def after_step(self, training: Training, due: Callable[[], None]) -> None:
        self.steps += 1
        if self.steps == self.stop_after:
            due()
            raise Pause


class Pause(Exception):
    pass


@pytest.fixture
def orders(project: Path) -> Callable[..., dict[str, Order]]:
    """Run the stages above the chosen cell, and return the orders of all its stages by label."""

    def make(
        extra: str = "", recipe: str = "default", mask: str = "random", epochs: str = "3", arch: str = "thin"
    ) -> dict[str, Order]:
        text = GRID.replace("epochs: 2}", f"epochs: {epochs}{extra}}}")
        text = text.replace("mask: [random, lth]", f"mask: [{mask}]").replace("[default, ls]", f"[{recipe}]")
        text = text.replace("arch: thin", f"arch: {arch}")
        text = text.split("also:")[0].replace("seed: 0..1", "seed: 0")
        (project / "tiny.yaml").write_text(text)
        store = Store(project / "runs")
        plan = make_plan(load_sweep(project / "tiny.yaml"), store, project)
        keep_methods(plan, store)
        made: dict[str, tuple[str, str]] = {}
        found = {}
        for stage in plan.stages.values():
            order = _order(project, store, stage, made)
            found[stage.kind] = order
            if stage.key not in plan.leaves:
                made[stage.key] = _made(order)
        return found

    return make


def _order(project: Path, store: Store, stage: Stage, made: dict[str, tuple[str, str]]) -> Order:
    attempts = project / "attempts"
    attempts.mkdir(exist_ok=True)
    attempt = attempts / str(len(list(attempts.iterdir())))
    attempt.mkdir()
    parents = {role: made[key] for role, key in stage.parents.items()}
    return Order(stage.key, stage.kind, stage.spec, str(store.root), str(attempt), (), parents, stage.place)


def _made(order: Order) -> tuple[str, str]:
    draft = run_stage(order, Watcher()).draft
    return str(draft), file_sha256(draft)


def finish(order: Order) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    run = prepare(order)
    train(run, Watcher())
    return {k: v.clone() for k, v in run.model.state_dict().items()}, run.position.rows


def cut_and_resumed(order: Order, cut: int, folder: Path) -> Training:
    """Stop a training after some steps, put another where its checkpoint stands, and train that one to the end."""
    run = prepare(order)
    with pytest.raises(Pause):
        train(run, Watcher(cut))
    attempt = folder / f"cut-{cut}"
    attempt.mkdir()
    write_checkpoint(attempt, *pack(run.done, run.position, state_tensors(run), order.read))
    torch.manual_seed(cut)  # whatever the global state is
    resumed, found = prepare(order), load_checkpoint([attempt], order.read)
    assert found is not None
    resume(resumed, *found)
    assert resumed.done == cut
    train(resumed, Watcher())
    return resumed


RECIPES = ["default", "gsw+ls", "gsk", "{gsk: {variant: authors}}", "{tost: {lrsi: {iterations: 2}}}"]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "extra", ["", ", optimizer: adamw, lr: 0.01", ", schedule: cosine, nesterov: true", ", precision: bf16"]
)
def test_a_training_cut_anywhere_and_resumed_ends_the_same_to_the_bit(
    recipe: str, extra: str, orders: Callable[..., dict[str, Order]], tmp_path: Path
) -> None:
    order = orders(extra, recipe)["train"]
    weights, rows = finish(order)
    total = 3 * prepare(order).steps
    for cut in (1, random.Random(recipe + extra).randrange(2, total - 1), total - 1, total):
        resumed = cut_and_resumed(order, cut, tmp_path)
        assert_close(dict(resumed.model.state_dict()), weights, rtol=0, atol=0)
        assert resumed.position.rows == rows


@pytest.mark.parametrize("recipe", RECIPES)
def test_pruned_weights_are_exactly_zero_after_every_step(recipe: str, orders: Callable[..., dict[str, Order]]) -> None:
    order = orders(", nesterov: true, weight_decay: 0.01", recipe)["train"]
    run = prepare(order)
    masks = run.masks(0)

    class Look(Watcher):
        def after_step(self, training: Training, due: Callable[[], None]) -> None:
            self.steps += 1
            weights = dict(training.model.named_parameters())
            assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())

    watcher = Look()
    train(run, watcher)
    assert watcher.steps == 3 * run.steps
    outcome = run_stage(order, Watcher())
    assert outcome.metrics["kept"] == sum(int(mask.sum()) for mask in masks.values())


def test_a_training_learns(orders: Callable[..., dict[str, Order]]) -> None:
    _, rows = finish(orders()["train"])
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["train_accuracy"] > 2 * 10


def test_another_seed_orders_and_starts_otherwise(orders: Callable[..., dict[str, Order]]) -> None:
    order = orders()["train"]
    weights, _ = finish(order)
    for name in ("seed", "ticket_seed"):
        other = Order(**{**order.__dict__, "spec": {**order.spec, name: 5}})
        assert any(not torch.equal(a, b) for a, b in zip(finish(other)[0].values(), weights.values(), strict=True))


def test_a_dead_loss_is_caught_in_its_step(orders: Callable[..., dict[str, Order]]) -> None:
    run = prepare(orders()["train"])
    plain, calls = run.criterion, iter(range(10**6))
    run.criterion = lambda logits, labels: plain(logits, labels) * (float("nan") if next(calls) == 30 else 1)
    with pytest.raises(Diverged) as caught:
        train(run, Watcher())
    assert (caught.value.epoch, caught.value.step) == divmod(30, run.steps)


class Spoil(torch.autograd.Function):
    """Passes values on as they are; of the gradient, one number is infinite."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        spoilt = gradient.clone()
        spoilt.view(-1)[0] = float("inf")
        return spoilt


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_dead_gradient_is_caught_in_its_step_though_the_loss_is_sound(
    precision: str, orders: Callable[..., dict[str, Order]]
) -> None:
    run = prepare(orders(f", precision: {precision}")["train"])
    plain, calls, losses = run.criterion, iter(range(10**6)), list[float]()

    def criterion(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = plain(Spoil.apply(logits) if next(calls) == 30 else logits, labels)
        losses.append(loss.item())
        return loss

    run.criterion = criterion
    with pytest.raises(Diverged, match="the gradient is not finite") as caught:
        train(run, Watcher())
    assert (caught.value.epoch, caught.value.step) == divmod(30, run.steps)
    assert np.isfinite(losses).all()
    assert len(losses) == 31


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_seen_in_gradients_of_any_sort(bad: float) -> None:
    laid = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    sparse = torch.sparse_coo_tensor([[1, 1, 2]], [1.0, 2.0, 3.0], (4,), check_invariants=True)
    gradients = [laid, torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.complex64), sparse]
    before = laid.clone()
    assert not spoilt(gradients)
    assert torch.equal(laid, before)
    for number in range(len(gradients)):
        one = gradients[number].clone()
        (one._values() if one.is_sparse else one)[1] = bad
        assert spoilt([*gradients[:number], one, *gradients[number + 1 :]])


def test_a_damaged_parent_is_refused(orders: Callable[..., dict[str, Order]]) -> None:
    order = orders()["train"]
    path = Path(order.parents["mask"][0])
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(Corrupt):
        Order(**{**order.__dict__, "parents": {**order.parents, "mask": (str(copy), order.parents["mask"][1])}}).parent(
            "mask"
        )


def test_a_parent_that_is_damaged_after_it_was_read_is_refused_too(orders: Callable[..., dict[str, Order]]) -> None:
    order = orders()["train"]
    path = Path(order.parents["mask"][0])
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    again = Order(**{**order.__dict__, "parents": {**order.parents, "mask": (str(copy), order.parents["mask"][1])}})
    assert again.parent("mask") == copy
    copy.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(Corrupt):
        again.parent("mask")


# Checkpoints ----------------------------------------------------------------------------------------------------------


def put(folder: Path, *steps: int, parents: dict[str, str] | None = None) -> list[Path]:
    for step in steps:
        tensors = {"w": torch.full((3,), float(step))}
        write_checkpoint(folder, *pack(step, Position(step=step), tensors, parents or {"data": "a"}))
    return sorted(folder.glob("checkpoint-*"))


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    assert [path.name[11:20] for path in put(tmp_path, 1, 2, 30, 4)] == ["000000004", "000000030"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path: Path) -> None:
    older, newest = put(tmp_path, 7, 9)
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    said: list[str] = []
    found = load_checkpoint([tmp_path], {"data": "a"}, said.append)
    assert found is not None
    assert found[0].step == 7
    assert newest.name in said[0]
    assert "damaged" in said[0]
    older.write_bytes(b"")
    assert load_checkpoint([tmp_path], {"data": "a"}, said.append) is None


def test_a_checkpoint_of_other_parents_is_never_resumed(tmp_path: Path) -> None:
    put(tmp_path, 7)
    assert load_checkpoint([tmp_path], {"data": "b"}, lambda text: None) is None


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(orders: Callable[..., dict[str, Order]]) -> Images:
    order = orders()["train"]
    return Images(order.parent("data"), {**order.spec, "augment": {"pad": 2, "flip": True}}, torch.device("cpu"))


def test_splits_are_disjoint_and_stratified(images: Images) -> None:
    assert (len(images.train), len(images.dev), len(images.test)) == (1295, 143, 359)
    for split in (images.dev, images.test):
        assert split.labels.bincount(minlength=10).min() > 10
    rows = {bytes(image.numpy().tobytes()) for image in images.train.images}
    assert not rows & {bytes(image.numpy().tobytes()) for image in images.dev.images}


def test_scoring_images_are_balanced_and_none_of_dev(images: Images) -> None:
    batches = images.per_class(0, 10)
    labels = torch.cat([y for _, y in batches])
    assert labels.bincount().tolist() == [10] * 10
    known = {image.numpy().tobytes() for image in images.scaled(images.train.images)}
    assert all(picture.numpy().tobytes() in known for x, _ in batches for picture in x)


def test_streams_are_their_own() -> None:
    assert len({seed_for(s, p, i) for s in range(5) for p in ("order", "augment") for i in range(5)}) == 50
    state = torch.get_rng_state()
    first = torch.rand(3, generator=stream(1, "mask"))
    assert torch.equal(first, torch.rand(3, generator=stream(1, "mask")))
    assert torch.equal(torch.get_rng_state(), state)


# Schedules and keys ---------------------------------------------------------------------------------------------------


def test_the_tost_schedule_is_the_authors() -> None:
    protocol = Protocol()
    rates = [schedules.multistep(epoch, protocol) for epoch in (0, 89.99, 90, 134.99, 135, 181)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_with_warm_up() -> None:
    protocol = make_protocol("tost", {"schedule": "cosine", "epochs": 110, "warmup": 10.0})
    rates = [schedules.cosine(epoch, protocol) for epoch in (5, 10, 60, 110)]
    assert rates == pytest.approx([0.501, 1.0, 0.5, 0.0], abs=1e-3)
    assert all(np.diff([schedules.cosine(e / 10, protocol) for e in range(100)]) > 0)


def test_a_key_holds_what_is_read_and_leaves_defaults_out() -> None:
    assert Protocol().training == {}
    assert Protocol(report="test@best-dev", prunable="conv").training == {}
    assert Protocol(beta1=0.8).training == {}, "sgd reads no beta1"
    assert Protocol(optimizer="adamw", beta1=0.8, momentum=0.5).training == {"optimizer": "adamw", "beta1": 0.8}


def test_defaults_are_pinned_because_a_changed_one_would_rename_nothing_and_change_everything() -> None:
    assert Protocol().model_dump(mode="json") == {
        "optimizer": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "beta1": 0.9,
        "beta2": 0.999,
        "weight_decay": 2e-4,
        "schedule": "multistep",
        "milestones": [90.0, 135.0],
        "gamma": 0.1,
        "warmup": 0.0,
        "loss": "cross_entropy",
        "epochs": 182,
        "batch": 128,
        "precision": "fp32",
        "augment": "standard",
        "dev": "standard",
        "select": "dev_accuracy",
        "report": "test@last",
        "prunable": "conv+linear",
        "resize": 0,
        "on_collapse": "allow",
        "batch_norm": "synced",
        "match_cost": "",
    }


# Tickets, schedules, recipes ------------------------------------------------------------------------------------------


def at_each_step(order: Order, look: Callable[[Training], None]) -> Training:
    class Look(Watcher):
        def after_step(self, training: Training, due: Callable[[], None]) -> None:
            look(training)

    run = prepare(order)
    train(run, Look())
    return run


def test_gradual_pruning_cut_anywhere_and_resumed_ends_the_same_to_the_bit(
    orders: Callable[..., dict[str, Order]], tmp_path: Path
) -> None:
    order = orders("", "gsk", "{gmp: {begin: 0.1, end: 0.6, every: 5, scope: global}}")["train"]
    weights, rows = finish(order)
    begin, steps = round(0.1 * 3 * prepare(order).steps), prepare(order).steps
    for cut in (1, begin - 1, begin, begin + 1, begin + 5, begin + 7, steps, 2 * steps + 1):
        resumed = cut_and_resumed(order, cut, tmp_path)
        assert_close(dict(resumed.model.state_dict()), weights, rtol=0, atol=0)
        assert resumed.position.rows == rows


def test_gradual_pruning_keeps_the_schedules_count_at_every_step_and_zeros_are_zero(
    orders: Callable[..., dict[str, Order]],
) -> None:
    order = orders("", "default", "{gmp: {begin: 0.1, end: 0.6, every: 5, scope: global}}")["train"]
    counts: list[int] = []

    def look(run: Training) -> None:
        masks, weights = run.masks(-1), dict(run.model.named_parameters())
        assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())
        counts.append(sum(int(mask.sum()) for mask in masks.values()))

    run = at_each_step(order, look)
    pruning = run.masks
    assert isinstance(pruning, GradualPruning)
    updates = range(pruning.begin, pruning.last + 1, 5)
    expected = [
        pruning.total if step < pruning.begin else pruning.count(max(u for u in updates if u <= step))
        for step in range(len(counts))
    ]
    assert counts == expected
    assert counts[-1] == pruning.keep == round(pruning.total / 2)
    assert not any(row["best"] for row in run.position.rows if row["epoch"] * run.steps < pruning.last)
    metrics = run_stage(order, Watcher()).metrics
    assert metrics["kept"] == pruning.keep
    assert (
        metrics["inference_flops"]
        < metrics["training_flops"] / (3 * 3 * len(run.images.train))
        < metrics["inference_flops_dense"]
    )


def test_a_ticket_begins_from_its_initial_weights_bit_for_bit(orders: Callable[..., dict[str, Order]]) -> None:
    order = orders(mask="omp")["train"]
    run, init = prepare(order), build(order, open_images(order)).state_dict()
    masks = run.masks(0)
    for name, value in run.model.state_dict().items():
        expected = torch.where(masks[name], init[name], 0) if name in masks else init[name]
        assert torch.equal(value, expected), name


def test_a_rewound_ticket_goes_on_where_the_dense_training_stood(orders: Callable[..., dict[str, Order]]) -> None:
    order = orders(mask="{lth: {rewind: 2}}", recipe="gsw")["train"]
    run, (start, _) = prepare(order), load_weights(order.parent("start"))
    masks = run.masks(run.done)
    assert run.done == 2 * run.steps
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, torch.where(masks[name], start[name], 0) if name in masks else start[name]), name
    train(run, Watcher())
    assert [row["epoch"] for row in run.position.rows] == [3]
    metrics = run_stage(order, Watcher()).metrics
    assert metrics["epochs"] == 3
    assert metrics["training_flops"] == 3 * len(run.images.train) * metrics["inference_flops"], "one epoch trained here"


def test_the_training_to_rewind_to_is_the_dense_ones_first_epochs(orders: Callable[..., dict[str, Order]]) -> None:
    start, _ = load_weights(orders(mask="{lth: {rewind: 2}}")["train"].parent("start"))
    order = orders(mask="random")["train"]
    run = prepare(Order(**{**order.__dict__, "parents": {"data": order.parents["data"]}}))
    with pytest.raises(Pause):
        train(run, Watcher(2 * run.steps))
    assert_close(dict(run.model.state_dict()), start, rtol=0, atol=0)


def test_a_fresh_control_has_the_mask_and_other_weights(orders: Callable[..., dict[str, Order]]) -> None:
    plain, fresh = (orders(mask=mask)["train"] for mask in ("snip", "{snip: {control: fresh}}"))
    assert plain.parents["mask"][1] == fresh.parents["mask"][1]
    one, other = prepare(plain).model.state_dict(), prepare(fresh).model.state_dict()
    assert not torch.equal(one["0.weight"], other["0.weight"])


def test_scales_are_applied_to_the_ticket_before_it_trains(orders: Callable[..., dict[str, Order]]) -> None:
    made = orders(recipe="{lrsi: {iterations: 3}}")
    order = made["train"]
    scales, spent = load_scales(order.parent("rescale"))
    assert spent > 0
    run, init = prepare(order), build(order, open_images(order)).state_dict()
    assert any(scale != 1 for scale in scales.values())
    masks = run.masks(0)
    for name, parameter in run.model.named_parameters():
        theta = torch.where(masks[name], init[name], 0) if name in masks else init[name]
        assert torch.equal(parameter.detach(), theta * scales[name]), name


def test_a_rescaling_can_be_stopped(orders: Callable[..., dict[str, Order]]) -> None:
    class Stop(Watcher):
        def at(self, done: int, of: int) -> None:
            assert of == 50
            if done == 2:
                raise Pause

    made = orders(recipe="{lrsi: {iterations: 2}}")["rescale"]
    spec = {**made.spec, "method": {**made.spec["method"], "args": {"iterations": 50}}}
    with pytest.raises(Pause):
        run_stage(Order(**{**made.__dict__, "spec": spec}), Stop())


def test_a_small_dense_network_is_as_large_as_the_sparse_one(orders: Callable[..., dict[str, Order]]) -> None:
    sparse, small = (orders(mask=mask, arch="{resnet20: {width: 1.5}}")["train"] for mask in ("random", "small_dense"))
    net, thin = (build(order, open_images(order)) for order in (sparse, small))
    wanted = sum(p.numel() for p in net.parameters()) - sum(w.numel() for w in prunable(net).values()) // 2
    assert sum(p.numel() for p in thin.parameters()) == pytest.approx(wanted, rel=0.01)
    assert wanted_size(small) == wanted


def test_a_matched_cost_lengthens_default_by_the_recipes_extra_operations(
    orders: Callable[..., dict[str, Order]],
) -> None:
    plain = prepare(orders(epochs="8")["train"])
    lengths = {}
    for recipe in ("ls", "gsk", "lrsi"):
        run = prepare(orders(epochs=f"match_cost({recipe})")["train"])
        lengths[recipe] = run.epochs
        for share in (0.4, 0.6, 0.9):
            assert run.rate(run.epochs * share) == plain.rate(8 * share), "milestones keep their places"
        assert run.parts == []
    assert lengths["ls"] in (8, 9), "softened targets cost next to nothing"
    assert 8 < lengths["gsk"] <= 13
    assert lengths["lrsi"] > 12, "180 iterations are many epochs of so few images"


def test_ghosts_are_counted_while_they_live_and_where_they_stay(orders: Callable[..., dict[str, Order]]) -> None:
    found = {}
    for recipe in ("default", "gsk", "{gsk: {window: permanent}}", "{gsk: {variant: authors}}"):
        found[recipe] = run_stage(orders(recipe=recipe)["train"], Watcher()).metrics
    operations = [metrics["ghost_operations"] for metrics in found.values()]
    assert operations[0] == 0
    assert 0 < operations[1] < operations[2]
    assert [metrics["ghost_parameters"] for metrics in found.values()] == [0, 0, 0, 6 * 8 + 16]
    assert [metrics["ghosts_stay"] for metrics in found.values()] == [False, False, True, True]
    kept = [metrics["parameters_kept"] for metrics in found.values()]
    assert kept[3] == kept[0] + 6 * 8 + 16


@pytest.mark.parametrize("shape", ["swish", "mish"])
def test_a_parts_own_settings_are_not_taken_for_what_the_harness_offers(
    shape: str, orders: Callable[..., dict[str, Order]]
) -> None:
    (part,) = prepare(orders(recipe=f"{{gsw: {{shape: {shape}}}}}")["train"]).parts
    assert part.shape == shape  # type: ignore[attr-defined] # not the images' [C, H, W]


def test_what_a_part_reaches_only_in_part_stands_in_the_result(
    orders: Callable[..., dict[str, Order]], project: Path
) -> None:
    assert "reached" not in run_stage(orders(recipe="gsw")["train"], Watcher()).metrics
    text = (project / "thin.py").read_text().replace("BatchNorm2d(8), nn.ReLU()", "BatchNorm2d(8), Called()")
    called = "\nclass Called(nn.Module):\n    def forward(self, x):\n        return nn.functional.relu(x)\n"
    (project / "thin.py").write_text(text + called)
    with pytest.warns(UserWarning, match="soft neurons reach 1 of 2 ReLUs of Sequential: the others are calls"):
        metrics = run_stage(orders(recipe="gsw+gsk")["train"], Watcher()).metrics
    assert metrics["reached"] == {"gsw": "1 of 2 ReLUs"}
    assert (metrics["activations_of"], list(metrics["activations"])) == ("1 of 2 ReLUs", ["2"])


def frozen(project: Path, *layers: str) -> None:
    """Freeze layers of the thin network: they are not trained, whatever else is done to it."""
    text = (project / "thin.py").read_text().replace("    return nn.Sequential(", "    net = nn.Sequential(")
    lines = "".join(f"    net{layer}.requires_grad_(False)\n" for layer in layers)
    (project / "thin.py").write_text(f"{text.rstrip()}\n{lines}    return net\n")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_parameters_are_neither_moved_nor_pruned_nor_scaled(
    optimizer: str, orders: Callable[..., dict[str, Order]], project: Path
) -> None:
    frozen(project, "[0]", "[1]", "[3].weight")
    extra = f", optimizer: {optimizer}, weight_decay: 0.1"
    order = orders(extra, recipe="{tost: {lrsi: {iterations: 2}}}", mask="magnitude")["train"]
    start = build(order, open_images(order)).state_dict()
    run = prepare(order)
    held = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    train(run, Watcher())
    for name, parameter in run.model.named_parameters():
        stays = name in ("0.weight", "1.weight", "1.bias", "3.weight")
        assert torch.equal(parameter, start[name]) == stays, name
        assert (id(parameter) in held) != stays
        assert (name in run.masks(run.done)) == (name == "8.weight")


def test_a_network_that_is_frozen_all_over_is_refused(orders: Callable[..., dict[str, Order]], project: Path) -> None:
    frozen(project, "")
    with pytest.raises(UserError, match="every parameter of the network is frozen"):
        prepare(orders(mask="dense")["train"])


def test_what_is_measured_at_the_end(orders: Callable[..., dict[str, Order]]) -> None:
    order = orders(mask="magnitude")["train"]
    metrics = run_stage(order, Watcher()).metrics
    masks = load_masks(order.parent("mask"))
    assert metrics["layers"] == {n: [m.numel(), int(m.sum()), dead_filters(m)] for n, m in masks.items()}
    assert metrics["density"] == metrics["kept"] / metrics["prunable"] == 0.5
    sizes = {"0.weight": 6 * 9 * 64, "3.weight": 6 * 8 * 9 * 16, "8.weight": 80}
    assert metrics["inference_flops_dense"] == 2 * sum(sizes.values())
    assert set(metrics["activations"]) == {"2", "5"}
    assert all(0 <= share <= 1 and 0 <= silent <= of for share, silent, of in metrics["activations"].values())
    assert 0 < metrics["near_zero"] < 1


@pytest.mark.parametrize("answer", ["allow", "error", "keep_one"])
def test_a_collapse_is_reported_refused_or_kept_from_happening(
    answer: str, orders: Callable[..., dict[str, Order]], project: Path
) -> None:
    thin = (project / "thin.py").read_text()
    (project / "thin.py").write_text(
        thin.replace("    return nn.Sequential(", "    net = nn.Sequential(")
        + "    net[8].weight.data.mul_(1e-4)\n    return net\n"
    )
    extra = "" if answer == "allow" else f", on_collapse: {answer}"
    if answer == "error":
        with pytest.raises(UserError, match=r"nothing is kept of 8\.weight; lower the sparsity, or write on_collapse"):
            orders(extra, mask="magnitude")
        return
    made = run_stage(orders(extra, mask="magnitude")["train"], Watcher()).metrics
    assert made["empty_layers"] == (["8.weight"] if answer == "allow" else [])
    assert made["kept"] == round(made["prunable"] / 2)
    if answer == "keep_one":
        assert made["layers"]["8.weight"][1] == 1


def test_a_part_that_fits_no_network_says_so(orders: Callable[..., dict[str, Order]], project: Path) -> None:
    (project / "thin.py").write_text((project / "thin.py").read_text().replace("nn.ReLU()", "nn.Tanh()"))
    with pytest.raises(UserError, match=r"the recipe does not fit this network: soft neurons need nn\.ReLU modules"):
        prepare(orders(recipe="gsw")["train"])


def test_a_network_that_cannot_train_on_an_epochs_last_single_image_is_refused(
    orders: Callable[..., dict[str, Order]], project: Path
) -> None:
    text = (project / "thin.py").read_text()
    (project / "thin.py").write_text(
        text.replace("nn.AdaptiveAvgPool2d(1), ", "nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), ")
    )
    with pytest.raises(UserError, match=r"batch of 1 image .* choose a batch size that leaves no single image"):
        prepare(orders(", batch: 647")["train"])  # 1,295 training images


def own_net(project: Path, body: str) -> None:
    """Write a network of the user's own in place of the thin one, `net` and what it is made of."""
    (project / "thin.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build(classes, channels, width=6):\n"
        + "".join(f"    {line}\n" for line in body.splitlines())
        + "    return net\n"
    )


@pytest.mark.parametrize("mask", ["dense", "snip"])
@pytest.mark.parametrize("wrap", ["nn.utils.parametrizations.weight_norm", "nn.utils.spectral_norm"])
def test_a_network_whose_weights_are_reparametrised_is_refused_before_anything_trains(
    mask: str, wrap: str, orders: Callable[..., dict[str, Order]], project: Path
) -> None:
    own_net(project, f"net = nn.Sequential(nn.Flatten(), {wrap}(nn.Linear(64 * channels, classes)))")
    with pytest.raises(UserError, match=r"the weight of '1' is re-parametrised .* use a network with plain layers"):
        prepare(orders(mask=mask)["train"])


STANDARDISED = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, width, 3), nn.Linear(width, classes)

    def forward(self, x):
        weight = self.conv.weight
        x = nn.functional.conv2d(x, weight - weight.mean((1, 2, 3), keepdim=True))
        return self.head(x.relu().mean((2, 3)))
net = Net()"""


@pytest.mark.parametrize("mask", ["dense", "snip"])
def test_a_network_that_standardises_its_weights_is_refused_before_anything_trains(
    mask: str, orders: Callable[..., dict[str, Order]], project: Path
) -> None:
    own_net(project, STANDARDISED)
    with pytest.raises(UserError, match=r"the weight of 'conv' is not multiplied as it is"):
        prepare(orders(mask=mask)["train"])


def test_a_network_without_prunable_weights_trains_dense_and_is_refused_a_mask(
    orders: Callable[..., dict[str, Order]], project: Path
) -> None:
    own_net(project, "net = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (64 * channels, 1)), nn.ConvTranspose1d("
                     "64 * channels, classes, 1), nn.Flatten())")  # fmt: skip
    metrics = run_stage(orders(mask="dense")["train"], Watcher()).metrics
    assert metrics["inference_flops"] == metrics["inference_flops_dense"] == 2 * 64 * 10
    assert metrics["density"] == 1
    with pytest.raises(UserError, match="the network has no weight to prune: no Conv2d or Linear layer"):
        orders(mask="snip")


def test_weights_that_no_mask_speaks_of_are_counted_and_named(
    orders: Callable[..., dict[str, Order]], project: Path
) -> None:
    own_net(project, "net = nn.Sequential(nn.Flatten(2), nn.Conv1d(channels, width, 1), nn.ReLU(), nn.Flatten(),\n"
                     "                    nn.Linear(64 * width, classes))")  # fmt: skip
    metrics = run_stage(orders(mask="snip")["train"], Watcher()).metrics
    assert metrics["left_out"] == {"1.weight": 6}
    assert metrics["prunable"] == 3840
    assert metrics["inference_flops_dense"] == 2 * (64 * 6 + 3840)
    assert metrics["inference_flops"] == 2 * (64 * 6 + metrics["kept"])


@pytest.mark.parametrize("extra", ["", ", prunable: conv+linear+frozen"])
def test_frozen_weights_stay_as_they_are_and_are_pruned_only_where_they_are_asked_for(
    extra: str, orders: Callable[..., dict[str, Order]], project: Path
) -> None:
    thin = (project / "thin.py").read_text()
    (project / "thin.py").write_text(
        thin.replace("    return nn.Sequential(", "    net = nn.Sequential(")
        + "    net[0].weight.requires_grad_(False)\n    return net\n"
    )
    order = orders(extra, mask="snip", epochs="2")["train"]
    masks = load_masks(order.parent("mask"))
    assert ("0.weight" in masks) == bool(extra)
    first = build(order, open_images(order)).state_dict()["0.weight"].clone()
    outcome = run_stage(order, Watcher())
    last = load_weights(outcome.draft)[0]["0.weight"]
    assert torch.equal(last, first.masked_fill(~masks["0.weight"], 0) if extra else first)
    assert outcome.metrics["left_out"] == ({} if extra else {"0.weight (frozen)": first.numel()})
