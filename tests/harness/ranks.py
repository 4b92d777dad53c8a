"""One rank of a training in a process of its own, for tests that compare trainings by one and by several processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from harness.train.group import Group, joined
from harness.train.loop import Watcher, train
from harness.train.order import Order
from harness.train.ranks import open_store
from harness.train.run import Training
from harness.train.training import prepare, resume, state_tensors


def listening() -> list[str]:
    """Return the addresses that this process takes connections at, as the kernel writes them: 0100007F is 127.0.0.1."""
    own = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]


class Losses(Watcher):
    """Notes the loss of every step as all ranks have it, and stops after some."""

    def __init__(self, steps: int) -> None:
        self.steps, self.sums = steps, [0.0]

    def after_step(self, training: Training, due: Callable[[], None]) -> None:
        due()
        self.sums.append(training.position.loss_sum)
        if len(self.sums) > self.steps:
            raise StopIteration

    def after_epoch(self, training: Training) -> None:
        self.sums.append(0.0)


def loaded(message: dict[str, Any]) -> Order:
    parents = {role: tuple(value) for role, value in message["parents"].items()}
    return Order(**{**message, "parents": parents})


def prepared(order: Order, dtype: str) -> tuple[Training, str]:
    """Return a training whose numbers are of a dtype, and a hash of weights and masks before that."""
    run = prepare(order)
    held = {**run.model.state_dict(), **{f"mask/{n}": mask for n, mask in run.masks(0).items()}}
    ticket = sha256(save({name: value.contiguous() for name, value in held.items()}))
    run.model.to(getattr(torch, dtype))
    for state in run.optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].to(getattr(torch, dtype))
    images = run.images
    images.mean, images.std = (value.to(getattr(torch, dtype)) for value in (images.mean, images.std))
    return run, ticket.hexdigest()


def train_on(run: Training, group: Group, steps: int) -> list[float]:
    """Train for some steps; return the losses."""
    watch = Losses(steps)
    with contextlib.suppress(StopIteration):
        train(run, watch)
    group.check(run.model)
    return watch.sums


def main(steps: str, dtype: str, cut: str, out: str) -> None:
    """Take an order from stdin, train for some steps in a dtype, save losses and what the network holds then.

    After the step `cut`, if not 0, a new training goes on from the checkpoint that the first one would have left there.
    """
    torch.set_num_threads(1)
    order = loaded(json.loads(sys.stdin.readline()))
    run, ticket = prepared(order, dtype)
    with joined(order) as group:
        run.group = group
        group.prepare(run.model, run.batch_norm)
        if int(cut):
            train_on(run, group, int(cut))
            left = group.same((run.position, state_tensors(run)) if order.rank == 0 else None)
            run, _ = prepared(order, dtype)
            run.group = group
            group.prepare(run.model, run.batch_norm)
            resume(run, *left)
        losses = train_on(run, group, int(steps) - int(cut))
        group.gather()
        addresses = listening()
    held = {"losses": losses, "state": run.model.state_dict(), "rows": run.position.rows, "ticket": ticket}
    torch.save({**held, "listening": addresses}, out)


def trained(
    order: Order,
    world: int,
    steps: int,
    dtype: str,
    folder: Path,
    place: Callable[[int], Sequence[str]] = lambda rank: (),
    meet: str = "127.0.0.1",
    cut: int = 0,
) -> list[dict[str, Any]]:
    """Train an order by several processes; return what each of them has at the end.

    `place`: what stands before a rank's command, such as srun; `meet`: this host as the ranks call it; `cut`: the step
    after which another training goes on.
    """
    files = [folder / f"{world}-{dtype}-{cut}-{rank}.pt" for rank in range(world)]

    told = (str(steps), dtype, str(cut))

    def command(rank: int) -> list[str]:
        return [*place(rank), sys.executable, "-m", "tests.harness.ranks", *told, str(files[rank])]

    store = open_store(meet)
    meeting = {"MASTER_ADDR": meet, "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    running = []
    for rank in range(world):
        own = {**os.environ, **meeting, "RANK": str(rank), "WORLD_SIZE": str(world)}
        process = subprocess.Popen(command(rank), stdin=subprocess.PIPE, env=own, text=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps({**order.__dict__, "world": world, "rank": rank}) + "\n")
        process.stdin.close()
        running.append(process)
    assert [process.wait(120) for process in running] == [0] * world
    return [torch.load(file) for file in files]


if __name__ == "__main__":
    main(*sys.argv[1:])
