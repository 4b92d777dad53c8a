"""One rank of a few steps with an odd network, for tests of how gradients are summed over ranks."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.errors import UserError
from harness.protocol import Protocol
from harness.train import group as groups
from harness.train.group import Group, Together
from harness.train.optimizers import sgd

STEPS = 20
REPLACED, FROZEN, THAWED = 3, 4, 6
"""Steps before which a layer is replaced, one frozen, and trained again."""
FORGOTTEN = 5
BATCH = 10
"""Images, of which two, three and four ranks get parts of one size or of two."""


class Odd(nn.Module):
    """A branch that only some images take, one for none, one that is used at some steps, and a layer used twice.

    Batch norm stands between, whose own collectives come while gradients are summed. `reentrant`: how the layer used
    twice is checkpointed; its gradient comes in two parts then, which DDP refuses. `single`: the dtype of one layer.
    """

    def __init__(self, single: torch.dtype = torch.float64, reentrant: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.branch = nn.Linear(6, 6)
        self.now_and_then = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 6)
        self.frozen = nn.Linear(6, 6)
        self.frozen.requires_grad_(False)
        self.twice = nn.Linear(6, 6)
        self.single, self.reentrant = nn.Linear(6, 6), reentrant
        self.last = nn.BatchNorm1d(6, momentum=None)
        self.head = nn.Linear(6, 3)
        self.step = 0
        self.taken: list[bool] = []
        """At which steps some image took the branch."""
        self.double().train()
        self.single.to(single)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x)).relu()
        rare = x[:, 0] > 10
        self.taken.append(bool(rare.any()))
        if rare.any():
            y = y.index_add(0, rare.nonzero()[:, 0], self.branch(y[rare]))
        if self.step % 3 == 2:
            y = y + self.now_and_then(y)
        for _ in range(2):
            y = checkpoint(self.twice, y, use_reentrant=self.reentrant)
        y = self.frozen(y) + self.single(y.to(self.single.weight.dtype)).to(y.dtype)
        return self.head(self.last(y).relu())


def steps(group: Group, batch_norm: str = "synced", parts: int = 1, forgetful: bool = False) -> dict[str, Any]:
    """Train for some steps; return the state at the end and what has a gradient after each step.

    `batch_norm`: with `local` the network is of two dtypes. `parts`: by how many forward passes a batch is seen, each
    with batch statistics of its own. `forgetful`: begin anew in the middle, as a resumed training would, that knows
    nothing of the steps before.
    """
    torch.manual_seed(0)
    net = Odd(torch.float32 if batch_norm == "local" else torch.float64)
    group.prepare(net, batch_norm)
    optimizer = sgd(net.parameters(), Protocol(lr=0.1, momentum=0.9, weight_decay=0.01))
    found: dict[str, Any] = {"graded": [], "taken": net.taken}
    for step in range(STEPS):
        net.step = step
        if step == REPLACED:
            net.head = nn.Linear(6, 3).double()
            optimizer.add_param_group({"params": list(net.head.parameters())})
        net.stem.requires_grad_(not FROZEN <= step < THAWED)
        if forgetful and step == FORGOTTEN:
            group.prepare(net, batch_norm)
        x, labels = torch.randn(BATCH, 4, dtype=torch.float64), torch.randint(3, (BATCH,))
        if step % 2:
            x[0, 0] = 11.0  # in the first rank's part
        seen = [group.part(value).tensor_split(parts) for value in (x, labels)]
        losses = [F.cross_entropy(group.forward(net, x), y, reduction="sum") for x, y in zip(*seen, strict=True)]
        optimizer.zero_grad(set_to_none=True)
        group.backward(torch.stack(losses).sum() / sum(map(len, seen[1])), BATCH)
        found["graded"].append([name for name, parameter in net.named_parameters() if parameter.grad is not None])
        optimizer.step()
    found["rows"] = group.statistics(net)
    group.check(net)
    group.agree(net)
    return {**found, "state": net.state_dict()}


def main(rank: str, world: str, batch_norm: str, folder: str) -> None:
    """Train as one rank of several, twice, and save what came out, and what is said of a reentrant checkpoint."""
    torch.set_num_threads(1)
    groups.BUCKET = 500 / 2**20  # 500 bytes: of the odd network several buckets
    store = dist.FileStore(f"{folder}/meet", int(world))
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=int(world), timeout=timedelta(seconds=60))
    group = Together(int(rank), int(world), torch.device("cpu"))
    found = steps(group, batch_norm)
    again = steps(group, batch_norm, forgetful=True)
    said = refusal(group)
    dist.destroy_process_group()
    torch.save({**found, "again": again["state"], "refusal": said}, Path(folder) / f"{rank}.pt")


def refusal(group: Group) -> str:
    """Return why a network with a reentrant checkpoint is not trained."""
    net = Odd(reentrant=True)
    group.prepare(net, "local")
    loss = group.forward(net, torch.randn(4, 4, dtype=torch.float64)).sum()
    try:
        group.backward(loss, 4 * group.world)
    except UserError as error:
        return str(error)
    return ""


def exchanged(world: int, batch_norm: str, folder: Path) -> list[dict[str, Any]]:
    """Return what came out of every rank."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.harness.exchange"]
    running = [subprocess.Popen([*command, str(rank), str(world), batch_norm, str(folder)]) for rank in range(world)]
    assert [process.wait(120) for process in running] == [0] * world
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


if __name__ == "__main__":
    main(*sys.argv[1:])
