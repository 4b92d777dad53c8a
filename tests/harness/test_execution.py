"""How networks are run: as ordered and told, and what is compiled differs in last bits alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.train.execution import COMPILED, forward_pass, set_execution
from harness.train.group import Group
from harness.train.loop import train
from harness.train.order import Order
from harness.train.process import set_mode
from harness.train.training import prepare
from tests.conftest import hashes, run_sweep, save_whole_plan
from tests.harness.test_training import Watcher, finish, orders  # noqa: F401 - orders is a fixture

Orders = Callable[..., dict[str, Order]]


class Pair(Group):
    """One of two processes."""

    world = 2


def test_a_training_by_several_processes_stays_eager(orders: Orders) -> None:  # noqa: F811
    order = replace(orders()["train"], execution="compiled")
    run = prepare(order)
    run.group = Pair()
    set_execution(order, run)
    assert (run.execution, run.forward) == ("eager", None)


@pytest.mark.parametrize("way", list(COMPILED))
def test_a_network_that_cannot_be_compiled_says_what_to_write(way: str, orders: Orders) -> None:  # noqa: F811
    """As where a machine has no C++ compiler."""
    run = prepare(orders()["train"])
    forward = forward_pass(run.model.eval(), way)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",)}),
        pytest.raises(RuntimeError) as found,
    ):
        forward(torch.randn(4, *run.images.shape))
    assert "launch: {execution: eager}" in "".join(found.value.__notes__)


def trained_alike(order: Order, way: str) -> None:
    """Train twice, as it is and in another way; compare the weights by how far they have moved."""
    expected, rows = finish(order)
    run = prepare(order)
    first = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    run.execution, run.forward = way, forward_pass(run.model, way)
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
def test_trainings_are_run_as_the_file_says(project: Path) -> None:
    """It reaches the trainer of trainings alone, what their keys are is the same, and so is what others make."""
    grid = (project / "tiny.yaml").read_text()
    found = {}
    for store, launch in {"plain": "{}", "fast": "{fast: true, execution: compiled}"}.items():
        (project / "tiny.yaml").write_text(f"{grid}launch: {launch}\n")
        chosen = ("--only", "mask=random,recipe=default,seed=0", "--workers", "1")
        assert run_sweep(project, "tiny.yaml", "--store", store, *chosen).returncode == 0
        found[store] = {
            (path.parents[1].parent.name, path.parents[0].name): json.loads(path.read_text())["result"]["stamp"]
            for path in (project / store).glob("stages/*/*/*/result-*.json")
        }
    assert set(found["plain"]) == set(found["fast"])
    for (kind, key), stamp in found["fast"].items():
        told = {"execution": "compiled", "fast": True} if kind == "train" else {}
        assert {name: stamp[name] for name in ("execution", "fast") if name in stamp} == told, key
    assert {stamp.get("execution") for stamp in found["plain"].values()} == {"eager", None}
    trained = {key for kind, key in found["plain"] if kind == "train"}
    plain, fast = ({k: v for k, v in hashes(project / store).items() if k not in trained} for store in found)
    assert plain == fast


@pytest.mark.parametrize("more", [("--plan", "--device", "cpu"), ("--device", "cpu"), (), ("--via", "debug")])
def test_graphs_are_refused_without_a_gpu(
    more: tuple[str, ...], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with (project / "tiny.yaml").open("a") as file:
        file.write("launch: {execution: graphs}\n")
    done = run_sweep(project, "tiny.yaml", *more)
    assert done.returncode == 2
    assert "launch.execution: graphs replays CUDA graphs, and the device is cpu; write eager" in done.stderr
    assert not list(project.glob("runs/stages/*"))


@pytest.mark.parametrize("command", [("worker",), ("tick", "--workers", "1")])
def test_workers_refuse_graphs_without_a_gpu(command: tuple[str, ...], project: Path) -> None:
    """As where a plan made for a cluster is worked on elsewhere."""
    with (project / "tiny.yaml").open("a") as file:
        file.write("launch: {execution: graphs}\n")
    save_whole_plan(project)
    argv = [sys.executable, "-m", "harness.cli", *command, "tiny", "--device", "cpu"]
    done = subprocess.run(argv, cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "launch.execution: graphs replays CUDA graphs, and the device is cpu" in done.stderr
