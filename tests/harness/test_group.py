"""Several processes train one network: the same as one process, but for the order in which numbers are added."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from harness.errors import UserError
from harness.protocol import Protocol
from harness.train.group import ALONE, Together
from harness.train.order import Order
from harness.train.process import stamp
from harness.train.synced_norm import SyncedBatchNorm, statistics, synchronise
from tests.harness.exchange import Odd, exchanged, steps
from tests.harness.ranks import trained
from tests.harness.test_training import orders  # noqa: F401 - a fixture

STEPS = 20


@pytest.fixture
def order(orders: Callable[..., dict[str, Order]]) -> Order:  # noqa: F811
    """A ToST training of a network with batch norm, 18 steps an epoch, the last of them with 3 images."""
    return orders(", batch: 76", recipe="tost")["train"]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float64", 1e-9), pytest.param("float32", 1e-4, marks=[pytest.mark.slow, pytest.mark.long])],
)
def test_four_processes_train_as_one_does(
    order: Order, tmp_path: Path, dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    (alone,) = trained(order, 1, STEPS, dtype, tmp_path)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "of-other-nodes")
    ranks = trained(order, 4, STEPS, dtype, tmp_path)
    assert_alike(ranks, alone, dtype, tolerance)
    assert {address for rank in ranks for address in rank["listening"]} == {"0100007F"}, "on loopback alone"


def assert_alike(ranks: list[dict[str, Any]], alone: dict[str, Any], dtype: str, tolerance: float) -> None:
    """Fail unless the ranks have one ticket, one network, and the losses and weights of one process alone."""
    assert {rank["ticket"] for rank in ranks} == {alone["ticket"]}
    assert_close(ranks[0]["losses"], alone["losses"], rtol=tolerance, atol=tolerance)
    if dtype == "float64":
        for name, value in alone["state"].items():
            assert_close(ranks[0]["state"][name], value, rtol=tolerance, atol=tolerance, msg=name)
    for rank in ranks[1:]:
        assert all(torch.equal(value, rank["state"][name]) for name, value in ranks[0]["state"].items())
    assert alone["rows"][0]["dev_accuracy"] == pytest.approx(ranks[0]["rows"][0]["dev_accuracy"], abs=1.0)


def test_hooks_and_names_outlive_synchronising() -> None:
    net, seen = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), []
    net[1].register_forward_hook(lambda *_: seen.append(1))
    before = list(net.state_dict())
    synchronise(net, torch.device("cpu"))
    net.eval()(torch.zeros(1, 1, 4, 4))
    assert seen == [1]
    assert list(net.state_dict()) == before
    assert isinstance(net[1], SyncedBatchNorm)


class Own(nn.BatchNorm2d):
    pass


def test_a_batch_norm_of_ones_own_is_refused() -> None:
    with pytest.raises(UserError, match=r"the layer 0 is a Own, .* or world: 1"):
        synchronise(nn.Sequential(Own(2)), torch.device("cpu"))


@pytest.mark.parametrize(("count", "world"), [(8, 4), (10, 4), (5, 4), (4, 4), (3, 4), (1, 2)])
def test_the_ranks_parts_make_up_the_batch(count: int, world: int) -> None:
    ranks = [Together(rank, world, torch.device("cpu")) for rank in range(world)]
    batch = torch.arange(count)
    parts = [rank.part(batch) for rank in ranks]
    assert sum(rank.weight(count) for rank in ranks) == pytest.approx(1)
    if count >= world:
        assert torch.cat(parts).tolist() == batch.tolist()
        assert [rank.weight(count) for rank in ranks] == pytest.approx([len(part) / count for part in parts])
    else:
        assert all(part.tolist() == batch.tolist() for part in parts)


# Gradients, summed while the backward pass goes on --------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], list[dict[str, Any]]]:
    """What came out of every rank that trained the odd network with a sort of batch norm."""
    return cache(lambda world, batch_norm: exchanged(world, batch_norm, tmp_path_factory.mktemp(batch_norm)))


Ranks = Callable[[int, str], list[dict[str, Any]]]


@pytest.mark.parametrize(
    ("world", "batch_norm", "tolerance"), [(2, "synced", 1e-9), (4, "synced", 1e-9), (3, "local", 1e-5)]
)
def test_gradients_are_those_of_one_process_whichever_rank_has_some(
    world: int, batch_norm: str, tolerance: float, ranks: Ranks
) -> None:
    local = batch_norm == "local"
    found, alone = ranks(world, batch_norm), steps(ALONE, batch_norm, parts=world if local else 1)
    for name in untold(alone["state"]) if local else alone["state"]:
        close = {"rtol": tolerance, "atol": tolerance}
        assert_close(found[0]["state"][name], alone["state"][name], **close, msg=name)
    torch.manual_seed(0)
    untouched = {n: v for n, v in Odd().state_dict().items() if n.startswith(("unused", "frozen"))}
    for rank in found:
        assert rank["graded"] == alone["graded"]
        for other in (found[0]["state"], rank["again"], untouched):
            assert all(torch.equal(value, rank["state"][name]) for name, value in other.items())
    assert [any(rank["taken"]) for rank in found] == [True] + [False] * (world - 1)
    assert not any(name.startswith(("unused", "frozen")) for names in alone["graded"] for name in names)


def test_a_gradient_in_several_pieces_is_refused(ranks: Ranks) -> None:
    for rank in ranks(2, "synced"):
        assert re.match(r"the gradient of twice\.\w+ comes in several pieces, .* or write world: 1$", rank["refusal"])


def untold(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of what does not tell which images a batch norm saw, and in how many passes."""
    return [name for name in state if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]


# Batch norm of a rank's own images ------------------------------------------------------------------------------------


def test_local_batch_norms_agree_on_the_mean_of_what_they_remember(ranks: Ranks) -> None:
    first, *others = ranks(3, "local")
    rows = first["rows"]
    assert all(torch.equal(rank["rows"], rows) for rank in others)
    assert not torch.equal(rows[0], rows[1])
    net = Odd()
    net.load_state_dict(others[0]["state"])
    agreed = torch.cat([value.flatten() for value in statistics(net).values()])
    assert_close(agreed, rows.mean(0))
    ALONE.restore(net, rows)  # a checkpoint of several processes, resumed by one
    assert_close(torch.cat([value.flatten() for value in statistics(net).values()]), agreed)


@pytest.mark.slow
def test_with_local_batch_norm_two_processes_resume_to_the_bit(
    orders: Callable[..., dict[str, Order]],  # noqa: F811
    tmp_path: Path,
) -> None:
    local = orders(", batch: 76, batch_norm: local")["train"]
    whole, resumed = (trained(local, 2, STEPS, "float32", tmp_path, cut=cut) for cut in (0, 7))
    for rank, again in zip(whole, resumed, strict=True):
        assert rank["rows"] == again["rows"] == whole[0]["rows"]
        assert all(torch.equal(value, rank["state"][name]) for name, value in again["state"].items())
    first, second = (rank["state"] for rank in whole)
    assert all(torch.equal(first[name], second[name]) for name in untold(first))
    assert not torch.equal(first["1.running_mean"], second["1.running_mean"])


@pytest.mark.parametrize("count", [3, 4, 5])
def test_no_rank_normalises_a_single_image(count: int) -> None:
    ranks = [Together(rank, 2, torch.device("cpu")) for rank in range(2)]
    for rank in ranks:
        rank.local, rank.least = True, 2
    parts = [rank.part(torch.arange(count)) for rank in ranks]
    assert min(map(len, parts)) >= 2
    assert sum(rank.weight(count) for rank in ranks) == pytest.approx(1)
    assert {rank.shares(count) for rank in ranks} == {count > 3}


def test_key_and_stamp_tell_of_local_batch_norm() -> None:
    synced, local = Protocol(), Protocol(batch_norm="local")
    assert "batch_norm" not in synced.training
    assert local.training["batch_norm"] == "local"

    def stamped(protocol: Protocol, world: int) -> dict[str, Any]:
        return stamp(Order("", "train", {"protocol": protocol.training}, "", "", (), {}, world=world))

    assert stamped(local, 2)["batch_norm"] == "local"
    assert not any("batch_norm" in one for one in (stamped(local, 1), stamped(synced, 2)))
