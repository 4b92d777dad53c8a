"""The processes that train one network together: how a batch is shared, and what all of them agree on.

Every rank has the whole network and sees its part of each batch of the order that one process would see. Gradients are
sums weighted by the true number of images, so that the update is the one of a single process but for the order in which
numbers are added.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined] # public, though not in its __all__

from harness.errors import UserError
from harness.train.order import Order
from harness.train.synced_norm import synchronise
from harness.trainer_signals import STALL

JOINING = timedelta(minutes=10)
"""How long a rank waits for the others to join it."""
PATIENCE = timedelta(seconds=STALL)
"""How long a collective may take: a rank that waits for a file system is not dead; its supervisor decides."""


class Group:
    """One process alone: it has the whole of every batch, and agrees with itself."""

    rank = 0
    world = 1

    def prepare(self, model: nn.Module) -> None:
        """Make a network's batch statistics those of the whole batch."""

    def part(self, batch: Tensor) -> Tensor:
        """Return this rank's part of a batch [N, ...]: contiguous, parts differ by one image at most."""
        return batch

    def weight(self, count: int) -> float:
        """Return the weight of this rank's mean loss in the mean over a batch of `count` images."""
        return 1.0

    def add_gradients(self, model: nn.Module) -> None:
        """Sum the gradients of all ranks, in every rank."""

    def total(self, sums: Tensor) -> Tensor:
        """Return sums over all ranks, of a tensor of the same shape in each."""
        return sums

    def most(self, wish: int) -> int:
        """Return the largest wish of all ranks."""
        return wish

    def same(self, value: Any) -> Any:
        """Return rank 0's value, in every rank."""
        return value

    def check(self, model: nn.Module) -> None:
        """Raise RuntimeError where the ranks' networks are no longer the same to the bit."""

    def gather(self) -> None:
        """Wait until all ranks have come this far."""


ALONE = Group()


class Together(Group):
    """Several processes, over torch.distributed: gloo for tensors on the CPU, NCCL for those on GPUs."""

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank, self.world, self.device = rank, world, device
        self.alone: list[Any] = []
        """The synchronised layers, told where a batch is too small to be shared."""

    def prepare(self, model: nn.Module) -> None:
        """Make batch norm take the statistics of the whole batch. Raises UserError for layers of another kind."""
        self.alone = synchronise(model)

    def part(self, batch: Tensor) -> Tensor:
        """Return this rank's part of a batch; of one with fewer images than ranks, all of it."""
        shared = len(batch) >= self.world
        for layer in self.alone:
            layer.synchronised = shared
        return batch.tensor_split(self.world)[self.rank] if shared else batch

    def weight(self, count: int) -> float:
        """Return the share of a batch's images that this rank has."""
        if count < self.world:
            return 1 / self.world
        return (count // self.world + (self.rank < count % self.world)) / count

    def add_gradients(self, model: nn.Module) -> None:
        """Sum the gradients of all ranks in one collective for each dtype."""
        by_type: dict[torch.dtype, list[Tensor]] = {}
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        there = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
        dist.all_reduce(there, op=dist.ReduceOp.MAX)
        for parameter, any_rank in zip(parameters, there.tolist(), strict=True):
            if any_rank:
                if parameter.grad is None:  # a branch that only other ranks' images took
                    parameter.grad = torch.zeros_like(parameter)
                by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_type.values():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, summed in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def total(self, sums: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        sums = sums.clone()
        dist.all_reduce(sums)
        return sums

    def most(self, wish: int) -> int:
        """Return the largest wish; exchanged between CPUs, so that no GPU is waited for."""
        wishes = torch.tensor([wish])
        dist.all_reduce(wishes, op=dist.ReduceOp.MAX)
        return int(wishes)

    def same(self, value: Any) -> Any:
        """Return rank 0's value."""
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def check(self, model: nn.Module) -> None:
        """Compare a hash of all weights and buffers."""
        digest = hashlib.sha256()
        for value in model.state_dict().values():
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        mine = torch.tensor([int.from_bytes(digest.digest()[:7], "big")])
        least, most = mine.clone(), mine
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        if not torch.equal(least, most):
            raise RuntimeError(
                f"the {self.world} processes of this training no longer have the same weights and buffers; a network "
                "that draws random numbers of its own, or keeps statistics of its batches, needs world: 1"
            )

    def gather(self) -> None:
        """Wait for all."""
        self.most(0)


@contextlib.contextmanager
def joined(order: Order, tell: Callable[..., None], agreed: tuple[type[Exception], ...] = ()) -> Iterator[Group]:
    """Join the other ranks of an order, and leave them at its end, or at an exception that all ranks raise together.

    Rank 0 opens the meeting point at a free port and tells where; the others' orders name it. At any other exception
    the group is left as it is, to die with the process: to take it down can wait for ranks that wait for this one.
    """
    if order.world == 1:
        yield ALONE
        return
    device = torch.device(order.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UserError(f"world: {order.world} needs CUDA devices or CPUs; {order.device} trains with world: 1")
    if order.rank == 0:
        store = TCPStore(order.meet, 0, is_master=True, wait_for_workers=False, timeout=JOINING)
        tell(at="meet", address=f"{order.meet}:{store.port}")
    else:
        host, _, port = order.meet.rpartition(":")
        store = TCPStore(host, int(port), is_master=False, timeout=JOINING)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=order.rank, world_size=order.world, timeout=PATIENCE)
    try:
        yield Together(order.rank, order.world, device)
    except agreed:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()
