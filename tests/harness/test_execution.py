"""Fast trainings: how their way is chosen, and that it changes last bits alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harness.sealed import read_note
from harness.train import execution
from harness.train.execution import CHOICES, EAGER, choices, choose, ends, hasten, quickest, ready, try_out
from harness.train.loop import train
from harness.train.order import Order
from harness.train.process import set_mode
from harness.train.run import Training
from harness.train.training import prepare
from tests.conftest import hashes, run_sweep
from tests.harness.test_training import Watcher, finish, orders  # noqa: F401 - orders is a fixture

Orders = Callable[..., dict[str, Order]]


@pytest.mark.parametrize(
    ("steps", "times", "chosen"),
    [
        (100, 1, EAGER),
        (1000, 1, EAGER),
        (10_000, 1, "compiled"),
        (10_000, 3, EAGER),
        (100_000, 3, "graphs"),
    ],
)
def test_what_takes_long_to_make_ready_must_save_more(steps: int, times: int, chosen: str) -> None:
    found = {
        EAGER: {"seconds": 0.010, "ready": 5.0},
        "compiled": {"seconds": 0.006, "ready": 30.0},
        "graphs": {"seconds": 0.005, "ready": 60.0},
        "broken": {"failed": "no such thing"},
    }
    assert quickest(found, steps, times) == chosen
    assert quickest({EAGER: found[EAGER], "compiled": {"seconds": 0.0095, "ready": 0.0}}, steps, times) == EAGER


def test_graphs_need_cuda() -> None:
    assert choices(torch.device("cpu")) == ["compiled"]
    assert choices(torch.device("cuda")) == ["compiled", "graphs"]


def test_a_network_changes_where_its_ghosts_leave(orders: Orders) -> None:  # noqa: F811
    assert ends(orders(recipe="default")["train"]) == set()
    assert ends(orders(recipe="gsw+gsk+ls")["train"]) == {89 / 180}


def test_a_short_training_is_left_as_it_is(orders: Orders) -> None:  # noqa: F811
    order = orders()["train"]
    run = prepare(order)
    drawn = torch.get_rng_state()
    assert choose(order, run) == EAGER
    assert torch.equal(drawn, torch.get_rng_state())
    assert not list(Path(order.store).glob("cache/pilots/*"))
    hasten(order, run)
    assert (run.execution, run.forward) == (EAGER, None), "only an order that may be fast is hastened"


def test_a_choice_is_remembered(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    order = orders()["train"]
    run = prepare(order)
    tried = []

    def tell(run: Training, name: str) -> dict[str, float]:
        tried.append(name)
        return {"seconds": 1000.0 if name == EAGER else 1.0, "ready": 1.0}

    monkeypatch.setattr(execution, "try_out", tell)
    assert choose(order, run) == choose(order, run) == "compiled"
    assert tried == [EAGER, "compiled"]
    (note,) = Path(order.store).glob("cache/pilots/*.json")
    assert (read_note(note) or {})["compiled"] == {"seconds": 1.0, "ready": 1.0}
    choose(replace(order, threads=7), run)
    assert len(tried) == 4, "another number of threads, another choice"


@pytest.mark.parametrize("way", list(CHOICES))
def test_a_network_whose_way_fails_runs_as_it_is(
    way: str,
    orders: Orders,  # noqa: F811
) -> None:
    """As where a machine has no C++ compiler."""
    run = prepare(orders()["train"])
    images = torch.randn(4, *run.images.shape)
    with torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",)}):
        assert torch.equal(ready(run.model.eval(), way)(images), run.model(images))


def test_a_way_that_cannot_be_tried_says_why(orders: Orders) -> None:  # noqa: F811
    class Odd(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            """Fail."""
            raise ValueError("not like this")

    run = prepare(orders()["train"])
    assert try_out(run, EAGER)["seconds"] > 0
    run.model = Odd()
    assert try_out(run, EAGER) == {"failed": "ValueError: not like this"}


def trained_alike(order: Order, way: str) -> None:
    """Train twice, as it is and in another way; compare the weights by how far they have moved."""
    expected, rows = finish(order)
    run = prepare(order)
    first = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    run.execution, run.forward = way, ready(run.model, way)
    train(run, Watcher())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2, "with ghosts, and without"
    for name, weight in run.model.named_parameters():
        moved = (expected[name] - first[name]).norm()
        assert (weight - expected[name]).norm() < 0.02 * moved, name
    assert run.position.rows[-1]["train_loss"] == pytest.approx(rows[-1]["train_loss"], rel=1e-2)


@pytest.mark.long
@pytest.mark.slow
def test_a_compiled_training_differs_in_last_bits_alone(orders: Orders) -> None:  # noqa: F811
    """With ghosts, which leave in the middle, and with a smaller last batch."""
    trained_alike(orders(recipe="gsw+gsk+ls", epochs="2")["train"], "compiled")


def test_kernels_are_the_same_every_time_unless_told() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        set_mode(fast=True)
        assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == (False, True)
        set_mode(fast=False)
        assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == (True, False)
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@pytest.mark.slow
def test_fast_trainings_say_so_and_the_rest_is_as_ever(project: Path) -> None:
    """On a CPU a short training is run as ever; what the command is told reaches the trainer of trainings alone."""
    for store, more in (("plain", ()), ("fast", ("--fast",))):
        assert run_sweep(project, "tiny.yaml", "--store", store, *more).returncode == 0
    stamps = {
        name: [
            (path.parents[1].parent.name, json.loads(path.read_text())["result"]["stamp"].get("fast"))
            for path in (project / name).glob("stages/*/*/*/result-*.json")
        ]
        for name in ("plain", "fast")
    }
    assert {fast for _, fast in stamps["plain"]} == {None}
    assert {(kind == "train", fast) for kind, fast in stamps["fast"]} == {(True, EAGER), (False, None)}
    assert hashes(project / "plain") == hashes(project / "fast")
