"""Several processes train one network: the same as one process, but for the order in which numbers are added."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing import assert_close

from harness.errors import UserError
from harness.train.group import Together
from harness.train.order import Order
from harness.train.synced_norm import SyncedBatchNorm, synchronise
from tests.harness.ranks import trained
from tests.harness.test_training import orders  # noqa: F401 - a fixture

STEPS = 20


@pytest.fixture
def order(orders: Callable[..., dict[str, Order]]) -> Order:  # noqa: F811
    """A ToST training of a network with batch norm, 18 steps an epoch, the last of them with 3 images."""
    return orders(", batch: 76", recipe="tost")["train"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_four_processes_train_as_one_does(order: Order, tmp_path: Path, dtype: str, tolerance: float) -> None:
    (alone,) = trained(order, 1, STEPS, dtype, tmp_path)
    assert_alike(trained(order, 4, STEPS, dtype, tmp_path), alone, dtype, tolerance)


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


@pytest.fixture
def _one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "meet"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_synchronised_batch_norm_is_torchs_on_the_whole_batch(momentum: float | None) -> None:
    torch.manual_seed(0)
    plain, ours = (nn.Sequential(nn.BatchNorm2d(3, momentum=momentum)).double() for _ in range(2))
    synchronise(ours)
    for _ in range(3):
        x = (5 + 3 * torch.randn(4, 3, 2, 2, dtype=torch.float64)).requires_grad_()
        y = x.detach().clone().requires_grad_()
        weights = torch.randn(4, 3, 2, 2, dtype=torch.float64)
        (plain(x) * weights).sum().backward()
        (ours(y) * weights).sum().backward()
        assert_close(ours(y).detach(), plain(x).detach())
        assert_close(y.grad, x.grad)
    assert_close(dict(ours.state_dict()), dict(plain.state_dict()))


def test_hooks_and_names_outlive_synchronising() -> None:
    net, seen = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), []
    net[1].register_forward_hook(lambda *_: seen.append(1))
    before = list(net.state_dict())
    synchronise(net)
    net.eval()(torch.zeros(1, 1, 4, 4))
    assert seen == [1]
    assert list(net.state_dict()) == before
    assert isinstance(net[1], SyncedBatchNorm)


class Own(nn.BatchNorm2d):
    pass


def test_a_batch_norm_of_ones_own_is_refused() -> None:
    with pytest.raises(UserError, match=r"the layer 0 is a Own, .* or world: 1"):
        synchronise(nn.Sequential(Own(2)))


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
