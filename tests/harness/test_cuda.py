"""The training loop on a GPU: the draws and masks of the CPU, trainings that resume to the bit, masks that hold."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from harness.train.execution import COMPILED
from harness.train.images import Images
from harness.train.loop import train
from harness.train.network import build, load_weights, open_images
from harness.train.order import Order
from harness.train.process import failure, stamp
from harness.train.run import Training
from harness.train.stages import run_stage
from harness.train.training import prepare
from tests.harness.test_execution import trained_alike
from tests.harness.test_training import (  # noqa: F401 - orders is a fixture
    RECIPES,
    Watcher,
    at_each_step,
    cut_and_resumed,
    finish,
    orders,
)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

Orders = Callable[..., dict[str, Order]]

NETWORKS = ["resnet18", "resnet50", "resnet20", "vgg16", "mobilenet", "mobilenetv2"]
SCORES = [
    "random",
    "erk",
    "magnitude",
    "{taylor: {at: init}}",
    "snip",
    "{snip: {bn: train}}",
    "grasp",
    "{synflow: {steps: 10}}",
]


def on_gpu(order: Order) -> Order:
    return replace(order, device="cuda")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_learns(precision: str, orders: Orders) -> None:  # noqa: F811
    order = on_gpu(orders(f", precision: {precision}")["train"])
    weights, rows = finish(order)
    assert {value.device.type for value in weights.values()} == {"cuda"}
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["train_accuracy"] > 2 * 10
    assert stamp(order)["device_name"] == torch.cuda.get_device_name()


@pytest.mark.parametrize(
    ("recipe", "extra"),
    [
        *itertools.product([*RECIPES, "gmp"], ["", ", precision: bf16"]),
        ("gsk", ", optimizer: adamw, lr: 0.01"),
        ("gsk", ", schedule: cosine, nesterov: true"),
    ],
)
def test_a_training_cut_anywhere_and_resumed_ends_the_same_to_the_bit(
    recipe: str,
    extra: str,
    orders: Orders,  # noqa: F811
    tmp_path: Path,
) -> None:
    chosen = ("gsk", "{gmp: {begin: 0.1, end: 0.6, every: 5}}") if recipe == "gmp" else (recipe, "random")
    order = on_gpu(orders(extra, *chosen)["train"])
    weights, rows = finish(order)
    total = 3 * prepare(order).steps
    for cut in (1, random.Random(recipe + extra).randrange(2, total - 1)):
        resumed = cut_and_resumed(order, cut, tmp_path)
        assert_close(dict(resumed.model.state_dict()), weights, rtol=0, atol=0)
        assert resumed.position.rows == rows


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arch", NETWORKS)
def test_a_network_trained_twice_has_the_same_weights_to_the_bit(
    arch: str,
    precision: str,
    orders: Orders,  # noqa: F811
) -> None:
    """torch's warning of an operation without a deterministic kernel would be an error here."""
    order = on_gpu(orders(f", precision: {precision}", "gsw+gsk+ls", arch=arch, epochs="2")["train"])
    (first, rows), (second, again) = finish(order), finish(order)
    assert rows == again
    assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("way", list(COMPILED))
def test_a_compiled_training_differs_in_last_bits_alone(way: str, orders: Orders) -> None:  # noqa: F811
    trained_alike(on_gpu(orders(recipe="gsw+gsk+ls", epochs="2")["train"]), way)


def test_a_rescaling_made_twice_is_the_same(orders: Orders, tmp_path: Path) -> None:  # noqa: F811
    order = orders(recipe="{lrsi: {iterations: 5}}", arch="resnet20")["rescale"]
    first, second = drafts([on_gpu(order), on_gpu(order)], tmp_path)
    assert first == second


def drafts(given: list[Order], folder: Path) -> list[bytes]:
    """Run stages, each with an attempt's folder of its own, and return their artifacts."""
    made = []
    for order in given:
        attempt = folder / f"attempt-{len(list(folder.glob('attempt-*')))}"
        attempt.mkdir()
        made.append(run_stage(replace(order, attempt=str(attempt)), Watcher()).draft.read_bytes())
    return made


def test_orders_crops_and_flips_are_those_of_the_cpu_to_the_bit(orders: Orders) -> None:  # noqa: F811
    order = orders()["train"]
    spec = {**order.spec, "augment": {"pad": 2, "flip": True}}
    cpu, gpu = (Images(order.parent("data"), spec, torch.device(device)) for device in ("cpu", "cuda"))
    pairs = [
        *zip((batch[1:] for batch in cpu.epoch(3, 1, 100, 0)), (b[1:] for b in gpu.epoch(3, 1, 100, 0)), strict=True),
        *zip(cpu.per_class(0, 10), gpu.per_class(0, 10), strict=True),
        *zip(cpu.batches(cpu.dev), gpu.batches(gpu.dev), strict=True),
    ]
    for (images, labels), (pictures, targets) in pairs:
        assert pictures.is_cuda
        assert torch.equal(images, pictures.cpu())
        assert torch.equal(labels, targets.cpu())


@pytest.mark.parametrize("arch", ["resnet20", "{vgg16: {width: 0.25}}"])
@pytest.mark.parametrize("mask", SCORES)
def test_a_mask_is_the_one_found_on_the_cpu(mask: str, arch: str, orders: Orders, tmp_path: Path) -> None:  # noqa: F811
    order = orders(mask=mask, arch=arch)["mask"]
    (made,) = drafts([on_gpu(order)], tmp_path)
    assert made == (Path(order.attempt) / "mask.safetensors").read_bytes()


@pytest.mark.parametrize("recipe", RECIPES)
def test_pruned_weights_are_exactly_zero_after_every_step(recipe: str, orders: Orders) -> None:  # noqa: F811
    order = on_gpu(orders(", nesterov: true, weight_decay: 0.01", recipe)["train"])
    masks = {name: mask.cuda() for name, mask in prepare(order).masks(0).items()}

    def look(training: Training) -> None:
        weights = dict(training.model.named_parameters())
        assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())

    at_each_step(order, look)
    weights, worn = load_weights(run_stage(order, Watcher()).draft)
    assert {name: int((weights[name] != 0).sum()) for name in worn} == {n: int(m.sum()) for n, m in worn.items()}


@pytest.mark.parametrize("arch", ["thin", "resnet20"])
def test_what_remains_of_a_recipe_is_the_plain_network(arch: str, orders: Orders) -> None:  # noqa: F811
    order = on_gpu(orders(recipe="{tost: {lrsi: {iterations: 2}}}", arch=arch)["train"])
    run = prepare(order)
    train(run, Watcher())
    plain: nn.Module = build(order, open_images(order))
    assert list(run.model.state_dict()) == list(plain.state_dict())
    assert [type(module) for module in run.model.modules()] == [type(module) for module in plain.modules()]
    plain.load_state_dict(run.model.state_dict())
    for images, _ in run.images.batches(run.images.test):
        assert torch.equal(run.model.eval()(images), plain.eval()(images))


def test_memory_that_runs_out_is_the_gpus() -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2**45, dtype=torch.uint8, device="cuda")
    told = failure(caught.value)
    assert (told["cause"], told["resource"]) == ("oom", "gpu")


def test_an_internal_error_of_cudnn_is_no_want_of_memory_where_there_is_some() -> None:
    assert failure(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"))["cause"] == "code"
