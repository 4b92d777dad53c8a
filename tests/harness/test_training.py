"""The training loop, its data and its checkpoints, inside one process."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from harness.check import load_sweep
from harness.plan import Stage
from harness.planner import make_plan
from harness.protocol import Protocol, make_protocol
from harness.store import Store, file_sha256
from harness.train import schedules
from harness.train.checkpoint import Position, load_checkpoint, save_checkpoint
from harness.train.draws import seed_for, stream
from harness.train.images import Images
from harness.train.loop import Diverged, Training, train
from harness.train.order import Corrupt, Order
from harness.train.stages import run_stage
from harness.train.training import prepare, resume, state_tensors


class Watcher:
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

    def at(self, done: int, of: int) -> None:
        pass

    def after_epoch(self, training: Training) -> None:
        pass


class Pause(Exception):
    pass


@pytest.fixture
def orders(project: Path) -> Callable[..., dict[str, Order]]:
    """Run the stages above the chosen cell, and return the orders of all its stages by label."""

    def make(extra: str = "", recipe: str = "default", mask: str = "random") -> dict[str, Order]:
        text = (project / "tiny.yaml").read_text().replace("epochs: 2}", f"epochs: 3{extra}}}")
        text = text.replace("mask: [random, lth]", f"mask: [{mask}]").replace("[default, ls]", f"[{recipe}]")
        text = text.split("also:")[0].replace("seed: 0..1", "seed: 0")
        (project / "tiny.yaml").write_text(text)
        store = Store(project / "runs")
        plan = make_plan(load_sweep(project / "tiny.yaml"), store, project)
        for plugin in plan.plugins:
            from harness.plugins import freeze

            freeze(plugin, store.root)
        made: dict[str, tuple[str, str]] = {}
        found = {}
        for stage in plan.stages.values():
            order = _order(project, store, stage, made)
            found[stage.kind] = order
            if stage.kind != "train":
                made[stage.key] = _made(order)
        return found

    return make


def _order(project: Path, store: Store, stage: Stage, made: dict[str, tuple[str, str]]) -> Order:
    attempt = project / "attempts" / stage.key
    attempt.mkdir(parents=True)
    parents = {role: made[key] for role, key in stage.parents.items()}
    return Order(stage.key, stage.kind, stage.spec, str(store.root), str(attempt), (), parents, stage.place)


def _made(order: Order) -> tuple[str, str]:
    draft = run_stage(order, Watcher()).draft
    return str(draft), file_sha256(draft)


def finish(order: Order) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    run = prepare(order)
    train(run, Watcher())
    return {k: v.clone() for k, v in run.model.state_dict().items()}, run.position.rows


RECIPES = ["default", "gsw", "ls", "gsw+ls"]


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
        run = prepare(order)
        with pytest.raises(Pause):
            train(run, Watcher(cut))
        attempt = tmp_path / f"cut-{cut}"
        attempt.mkdir()
        save_checkpoint(attempt, run.done, run.position, state_tensors(run), order.read)
        torch.manual_seed(cut)  # whatever the global state is
        resumed = prepare(order)
        found = load_checkpoint([attempt], order.read)
        assert found is not None
        resume(resumed, *found)
        assert resumed.done == cut
        train(resumed, Watcher())
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


def test_a_damaged_parent_is_refused(orders: Callable[..., dict[str, Order]]) -> None:
    order = orders()["train"]
    path = Path(order.parents["mask"][0])
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(Corrupt):
        Order(**{**order.__dict__, "parents": {**order.parents, "mask": (str(copy), order.parents["mask"][1])}}).parent(
            "mask"
        )


# Checkpoints ----------------------------------------------------------------------------------------------------------


def put(folder: Path, *steps: int, parents: dict[str, str] | None = None) -> list[Path]:
    for step in steps:
        save_checkpoint(
            folder, step, Position(step=step), {"w": torch.full((3,), float(step))}, parents or {"data": "a"}
        )
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


def test_an_epoch_shows_every_image_once_the_last_batch_too(images: Images) -> None:
    images.pad, images.flip = 0, False
    seen = torch.cat([batch for _, batch, _ in images.epoch(0, 0, 100, 0)])
    assert [len(b) for _, b, _ in images.epoch(0, 0, 100, 0)][-1] == 95
    assert_close(
        seen.flatten(1).sum(1).sort().values, images.scaled(images.train.images).flatten(1).sum(1).sort().values
    )


def test_an_epoch_entered_in_the_middle_goes_on_as_it_would_have(images: Images) -> None:
    whole = list(images.epoch(3, 1, 128, 0))
    for (step, x, y), (step2, x2, y2) in zip(whole[4:], images.epoch(3, 1, 128, 4), strict=True):
        assert step == step2
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_crops_and_flips_are_those_of_the_definition(images: Images) -> None:
    """Each picture equals torchvision's crop and flip of the padded one, with the offsets of the same draws."""
    from torchvision.transforms.v2 import functional as tv

    count = len(images.train)
    order = torch.randperm(count, generator=stream(5, "order", 2))
    draws = stream(5, "augment", 2)
    shifts, flips = torch.randint(5, (2, count), generator=draws), torch.randint(2, (count,), generator=draws)
    (_, x, _) = next(iter(images.epoch(5, 2, 50, 0)))
    for picture, index in zip(x, order[:50].tolist(), strict=True):
        padded = tv.pad(images.train.images[index], [2, 2, 2, 2])
        cut = tv.crop(padded, int(shifts[0, index]), int(shifts[1, index]), 8, 8)
        expected = tv.horizontal_flip(cut) if flips[index] else cut
        assert_close(picture, images.scaled(expected[None])[0])


def test_offsets_and_flips_are_uniform(images: Images) -> None:
    draws = stream(0, "augment", 0)
    shifts, flips = torch.randint(5, (2, 20_000), generator=draws), torch.randint(2, (20_000,), generator=draws)
    counts = torch.stack([row.bincount(minlength=5) for row in shifts]).double() / 20_000
    assert bool(((counts - 0.2).abs() < 0.015).all())
    assert abs(flips.double().mean() - 0.5) < 0.015


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
        "match_cost": "",
    }
