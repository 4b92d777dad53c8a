"""Gradients summed over the processes that train one network together, while the backward pass still goes on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from itertools import islice
from operator import is_
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tost.flat import room_for

BUCKET = 4 * 2**20
"""Bytes of gradients in one collective: DDP's 25 MiB would leave small networks' whole exchange to the end."""


class Bucket:
    """Gradients of one dtype that are summed by one collective, and the memory that it sums them in."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.flat, self.views = room_for(parameters)
        """The summed gradients, lying in memory as their parameters do."""
        self.idle: set[int] = set()
        """Parameters that no rank had a gradient for at the last step, and that are not waited for at this one."""
        self.awaited: set[int] = set()
        self.work: Any = None
        """The collective, once it is under way."""
        self.stale = False
        """Whether a gradient came, or changed, after it was sent."""

    def expect(self) -> None:
        """Wait for the gradients of a new step."""
        self.awaited, self.work, self.stale = set(range(len(self.parameters))) - self.idle, None, False

    def send(self, group: Any) -> None:
        """Begin to sum the gradients that are there, with zeros for the others."""
        there = [(view, p.grad) for view, p in zip(self.views, self.parameters, strict=True) if p.grad is not None]
        if len(there) < len(self.views):
            self.flat.zero_()
        if there:
            torch._foreach_copy_([view for view, _ in there], [gradient for _, gradient in there])
        self.work = dist.all_reduce(self.flat, group=group, async_op=True)

    def receive(self, there: Sequence[int]) -> None:
        """Wait for the sums; they become the gradients of those parameters for which any rank had one."""
        self.work.wait()
        self.idle = {number for number, any_rank in enumerate(there) if not any_rank}
        for parameter, view, any_rank in zip(self.parameters, self.views, there, strict=True):
            if any_rank:
                parameter.grad = view


def buckets(parameters: Sequence[Tensor]) -> list[Bucket]:
    """Return buckets of parameters, the last parameters first, as backward passes mostly reach them."""
    full: list[list[Tensor]] = []
    filling: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in reversed(parameters):
        kind = (parameter.dtype, parameter.device)
        if kind not in filling or sum(p.nbytes for p in filling[kind]) + parameter.nbytes > BUCKET:
            filling[kind] = []
            full.append(filling[kind])
        filling[kind].append(parameter)
    return [Bucket(bucket) for bucket in full]


class Gradients:
    """Sums gradients over all ranks, bucket by bucket, while the backward pass still goes on.

    All ranks send the same buckets in the same order: each once its gradients are there and the one before it is sent.
    For which parameters a rank has none shows when its backward pass is over; it sends the buckets left then. What a
    bucket holds follows from the parameters alone, and when it is sent changes no sum: a resumed training adds in the
    same order as one that was not interrupted.
    """

    def __init__(self, patience: timedelta) -> None:
        # A communicator of their own: between the collectives that batch norm makes in a backward pass, buckets are
        # sent at another place on each rank, where a branch was not taken by all.
        self.group = dist.new_group(timeout=patience)
        self.parameters: list[Tensor] = []
        self.buckets: list[Bucket] = []
        self.hooks: list[Any] = []
        self.sent = 0
        self.passing = False
        """Whether the backward pass goes on that these gradients are of; a network may do others on its way forward."""

    def backward(self, model: nn.Module, loss: Tensor) -> None:
        """Give every rank the sum of all ranks' gradients."""
        self._watch([parameter for parameter in model.parameters() if parameter.requires_grad])
        for bucket in self.buckets:
            bucket.expect()
        self.sent, self.passing = 0, True
        torch.autograd.backward(loss)
        self.passing = False
        self.receive()

    def receive(self) -> None:
        """Send what is left, and wait for all sums."""
        for bucket in self.buckets[self.sent :]:
            bucket.send(self.group)
        flags = [flag for b in self.buckets for flag in (b.stale, *(p.grad is not None for p in b.parameters))]
        shared = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)  # between CPUs, so that no GPU is waited for
        known = iter(shared.tolist())
        for bucket in self.buckets:
            if next(known):  # on any rank: then all send it once more, whole, so that nothing is added in another order
                bucket.work.wait()
                bucket.send(self.group)
            bucket.receive(list(islice(known, len(bucket.parameters))))

    def _watch(self, parameters: list[Tensor]) -> None:
        """Hook the parameters that are trained now: they are others where one was frozen, replaced or removed."""
        if len(parameters) == len(self.parameters) and all(map(is_, parameters, self.parameters)):
            return
        for hook in self.hooks:
            hook.remove()
        self.parameters, self.buckets = parameters, buckets(parameters)
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(self._arrived, bucket, number)
            )
            for bucket in self.buckets
            for number, parameter in enumerate(bucket.parameters)
        ]

    def _arrived(self, bucket: Bucket, number: int, parameter: Tensor) -> None:
        if not self.passing:
            return
        bucket.stale = bucket.work is not None
        bucket.awaited.discard(number)
        while self.sent < len(self.buckets) and not self.buckets[self.sent].awaited:
            self.buckets[self.sent].send(self.group)
            self.sent += 1
