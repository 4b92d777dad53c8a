"""The processes that train one network together: how a batch is shared, and what all of them agree on.

Every rank has the whole network and sees its part of each batch of the order that one process would see. Gradients are
sums weighted by the true number of images, so that the update is the one of a single process but for the order in which
numbers are added. torch's DistributedDataParallel sums them while the backward pass still goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from operator import is_
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from harness.errors import UserError
from harness.train.order import Order
from harness.train.synced_norm import SyncedBatchNorm, SyncedBatchNormOnCuda, remember, statistics, synchronise
from harness.watchdog import LONGEST, STALL

LOOPBACK = "127.0.0.1"
"""Where processes of one node meet: nothing outside it reaches them there."""
JOINING = timedelta(minutes=10)
"""How long a rank waits for the others to join it."""
PATIENCE = timedelta(seconds=LONGEST * STALL)
"""How long a collective may take: a rank that waits for a file system is not dead; its supervisor decides."""
BUCKET = 4.0
"""MiB of gradients in one collective: DDP's own 25 would leave small networks' whole exchange to the end."""


class Group:
    """One process alone: it has the whole of every batch, and agrees with itself."""

    rank = 0
    world = 1

    def prepare(self, model: nn.Module, batch_norm: str = "synced") -> None:
        """Make a network's batch statistics those of the whole batch, or leave them those of a rank's part of it."""

    def shares(self, count: int) -> bool:
        """Return whether a batch of `count` images is shared; of one too small for that, every rank has the whole."""
        return True

    def part(self, batch: Tensor) -> Tensor:
        """Return this rank's part of a batch [N, ...]: contiguous, parts differ by one image at most."""
        return batch

    def weight(self, count: int) -> float:
        """Return the weight of this rank's mean loss in the mean over a batch of `count` images."""
        return 1.0

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the network's output for this rank's part of a batch, for `backward` to start from."""
        logits: Tensor = model(images)
        return logits

    def backward(self, loss: Tensor, count: int) -> None:
        """Give every rank the gradients of the mean over a batch of `count` images, of which `loss` is its own part's.

        A parameter that no rank's images used keeps none.
        """
        torch.autograd.backward(loss)

    def statistics(self, model: nn.Module) -> Tensor | None:
        """Return what the ranks' batch norms remember [ranks, values], where that may differ; else None."""
        return None

    def restore(self, model: nn.Module, rows: Tensor) -> None:
        """Give batch norms back what `statistics` found; by another number of ranks, its mean."""
        remember(model, rows[self.rank] if len(rows) == self.world else rows.mean(0))

    def agree(self, model: nn.Module) -> None:
        """Give the batch norms of all ranks the mean of what they remember."""

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
        self.reducer: DistributedDataParallel | None = None
        self.trained: list[nn.Parameter] = []
        """The parameters whose gradients the reducer sums."""
        self.alone: list[SyncedBatchNorm | SyncedBatchNormOnCuda] = []
        """The synchronised layers, told where a batch is too small to be shared."""
        self.local = False
        """Whether batch norms see only their rank's part of a batch."""
        self.least = 1
        """Images that a rank's part of a batch must have: of one alone there is no variance."""

    def prepare(self, model: nn.Module, batch_norm: str = "synced") -> None:
        """Make batch norm take the statistics of the whole batch. Raises UserError for layers of another kind.

        `local` leaves every rank's to its own part of the batch.
        """
        # A communicator of their own: between the collectives that batch norm makes in a backward pass, buckets are
        # sent at another place on each rank, where a branch was not taken by all.
        self.reducers = dist.new_group(timeout=PATIENCE)
        self.reducer = None
        self.local = batch_norm == "local"
        if self.local:
            self.least = 2
        else:
            self.alone = synchronise(model, self.device)

    def shares(self, count: int) -> bool:
        """Return whether there are images enough for all ranks."""
        return count >= self.least * self.world

    def part(self, batch: Tensor) -> Tensor:
        """Return this rank's part of a batch; of one with too few images for all ranks, all of it."""
        shared = self.shares(len(batch))
        for layer in self.alone:
            layer.synchronised = shared
        return batch.tensor_split(self.world)[self.rank] if shared else batch

    def weight(self, count: int) -> float:
        """Return the share of a batch's images that this rank has."""
        if not self.shares(count):
            return 1 / self.world
        return (count // self.world + (self.rank < count % self.world)) / count

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the output of the network in its reducer: a new one where layers were frozen, replaced or removed.

        What a bucket holds follows from the trained parameters alone, since `find_unused_parameters` keeps DDP from
        filling them anew by the first backward pass: a resumed training adds in the order of an undisturbed one.
        """
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.reducer or len(trained) != len(self.trained) or not all(map(is_, trained, self.trained)):
            self.trained = trained
            self.reducer = DistributedDataParallel(
                model,
                process_group=self.reducers,
                bucket_cap_mb=BUCKET,
                find_unused_parameters=True,
                init_sync=False,  # `check` compares the ranks' networks
            )
            self.reducer.broadcast_buffers = False
            self.reducer.register_comm_hook(None, _summing(self.reducers))
        logits: Tensor = self.reducer(images)
        return logits

    def backward(self, loss: Tensor, count: int) -> None:
        """Sum the gradients of all ranks. Raises UserError for one that comes in several pieces."""
        try:
            torch.autograd.backward(loss * self.weight(count))
        except RuntimeError as error:
            if "ready only once" not in str(error):
                raise
            named = re.search(r"with name \.?(\S+)", str(error))
            raise UserError(
                f"the gradient of {named[1] if named else 'a parameter'} comes in several pieces, or from outside the "
                "network's forward pass, which torch's DistributedDataParallel cannot sum over processes; call "
                "torch.utils.checkpoint with use_reentrant=False, or write world: 1"
            ) from error

    def statistics(self, model: nn.Module) -> Tensor | None:
        """Return what all ranks' batch norms remember, in every rank, where they see only their own images."""
        own = [value.flatten() for value in statistics(model).values()] if self.local else []
        if not own:
            return None
        mine = torch.cat(own)
        rows = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(rows, mine)
        return torch.stack(rows)

    def agree(self, model: nn.Module) -> None:
        """Take the mean over ranks; all compute it from the same numbers."""
        if (rows := self.statistics(model)) is not None:
            remember(model, rows.mean(0))

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
        """Compare a hash of all weights and buffers, but of what local batch norms remember."""
        digest = hashlib.sha256()
        differing = statistics(model) if self.local else {}
        for name, value in model.state_dict().items():
            if name not in differing:
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


def _summing(group: Any) -> Callable[[Any, Any], Any]:
    """Return what sums a bucket of gradients, of which DDP of itself takes the mean.

    A lambda: DDP refuses annotations that are not evaluated.
    """
    return lambda _, bucket: (
        dist.all_reduce(bucket.buffer(), group=group, async_op=True).get_future().then(lambda done: done.value()[0])
    )


@contextlib.contextmanager
def joined(order: Order, agreed: tuple[type[Exception], ...] = ()) -> Iterator[Group]:
    """Join the other ranks of an order, and leave them at its end, or at an exception that all ranks raise together.

    The ranks meet at MASTER_ADDR and MASTER_PORT. A process group that is initialised already is used, and left to
    whoever initialised it. At any other exception the group is left as it is, to die with the process: to take it down
    can wait for ranks that wait for this one.
    """
    if order.world == 1:
        yield ALONE
        return
    device = torch.device(order.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UserError(f"world: {order.world} needs CUDA devices or CPUs; {order.device} trains with world: 1")
    together = Together(order.rank, order.world, device)
    if dist.is_initialized():
        yield together
        return
    if os.environ["MASTER_ADDR"] == LOOPBACK:  # gloo listens at the address of the host's name, or of this interface
        os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, *_ = next(rendezvous("env://", timeout=JOINING))
    dist.init_process_group(backend, store=store, rank=order.rank, world_size=order.world, timeout=PATIENCE)
    try:
        yield together
    except agreed:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()
