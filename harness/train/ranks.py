"""The ranks of a training: the processes that train one network together, whoever launches them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from harness.store import read_json
from harness.train.process import read_order, run_order, testify
from harness.train.watch import Desk

AGREED = frozenset({"made", "stopped", "diverged"})
"""Outcomes that all ranks come to together."""


def run_rank(message: Mapping[str, Any], desk: Desk) -> dict[str, Any]:
    """Run an order as the rank that this process is; return how it ended, in rank 0 with what it made.

    Which rank it is stands in RANK, WORLD_SIZE and LOCAL_RANK, and where the ranks meet in MASTER_ADDR and MASTER_PORT,
    as torchrun and Ray Train set them. Where the process group is initialised already, that one is used and left as it
    is; it needs gloo for tensors on the CPU: `cpu:gloo,cuda:nccl`. `prepare_process` of harness.train.process must have
    set up this process before.

    Only rank 0 tells `desk` of progress. `desk.stop`, set in any rank, makes all of them save and leave. A rank that
    fails writes attempt/rank-R.json, of which `first_cause` finds the one to report.
    """
    if dist.is_initialized():
        rank, world = dist.get_rank(), dist.get_world_size()
    else:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device, local = message["device"], int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and world > 1 and torch.cuda.device_count() > local:
        device = f"cuda:{local}"  # else this process was given a GPU of its own
    order = read_order({**message, "rank": rank, "world": world, "device": device})
    end = run_order(order, desk)
    if world > 1 and end["outcome"] not in AGREED:
        testify(order, end)
    return end


def first_cause(attempt: Path, world: int, fallen: Mapping[int, dict[str, Any]] | None = None) -> dict[str, Any] | None:
    """Return how a training failed: the first testimony of a rank that does not only miss another one.

    `fallen`: how ranks ended that could say nothing, as their launcher saw it. None where no rank says anything.
    """
    found = {rank: read_json(attempt / f"rank-{rank}.json") for rank in range(world)}
    told = {rank: said for rank, said in found.items() if said}
    told |= {rank: {"outcome": "died", **said} for rank, said in (fallen or {}).items() if rank not in told}
    if not told:
        return None
    rank = min(told, key=lambda rank: (told[rank].get("peer", False), told[rank].get("time", float("inf"))))
    end = told[rank]
    where = f" on {end['host']}" if "host" in end else ""
    return {**end, "message": f"rank {rank} of {world}{where}: {end['message']}", "rank": rank}
