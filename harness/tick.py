"""`harness tick`: one look at a sweep and at this machine, and the workers that are missing here started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from harness.claims import LEASE, Observer
from harness.errors import UserError, printable
from harness.index import Standing, stand
from harness.launch.kept import ARGV, kept
from harness.launch.local import Machine, this_machine
from harness.plan import Plan
from harness.planfile import SavedPlan, find_plan, read_plan, sweep_name
from harness.presence import present
from harness.rounds import go_round
from harness.store import Store
from harness.words import count


def ready(plan: Plan, standing: Standing) -> list[str]:
    """Return the stages that a worker could take now."""
    return [
        key
        for key, state in standing.states.items()
        if state.claimable and not any(parent in standing.states for parent in plan.stages[key].parents.values())
    ]


def start_detached(name: str, store: Store, machine: Machine, used: Counter[str], argv: list[str]) -> int:
    """Start one worker that outlives this process, on the GPU that fewest use, and count it; return its number."""
    environment = dict(os.environ)
    if machine.gpus:
        gpu = environment["CUDA_VISIBLE_DEVICES"] = min(machine.gpus, key=lambda gpu: used[gpu])
        used[gpu] += 1
    folder = store.sweep(name) / "workers"
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "harness.worker",
        name,
        "--store",
        str(store.root),
        "--as-one",
        *argv,
        *machine.argv,
    ]
    with (folder / f"log-{os.uname().nodename}").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment,
        )
    return process.pid


def _round(saved: SavedPlan, store: Store, lease: float) -> int:
    """Submit what a sweep on a cluster lacks, with the profile as it was last used; return the exit code."""
    name = saved.plan.name
    seen = go_round(saved, store, kept(store, name), Observer(lease))
    there = "another round is under way" if seen.elsewhere else f"{count(len(seen.jobs), 'worker')} in the queue"
    there += "; cancelled until the sweep command is run again" if seen.cancelled else ""
    left, could = len(seen.standing.states), sum(seen.wanted.values())
    for sentence in seen.submitted:
        typer.echo(f"submitted {sentence}")
    typer.echo(f"{name}: {left} stages to do, {could} could be run now; {there}")
    return 0


def main(
    sweep: Annotated[str, typer.Argument(help="A sweep's name, or its file.")],
    store: Annotated[Path, typer.Option(help="The store's folder.")] = Path("runs"),
    workers: Annotated[int | None, typer.Option(help="Workers wanted on this machine.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads a worker.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="A torch device: cpu, cuda, mps.")] = None,
    until: Annotated[str, typer.Option(help="Workers leave before this much time is over: 55m, 23h30m.")] = "",
    lease: Annotated[float, typer.Option(help="Seconds without a heartbeat that mean a lost worker.", min=0.5)] = LEASE,
) -> None:
    """Start the workers that a sweep could use and this machine lacks, and leave; for cron, or by hand, at any time.

    The sweep must have been planned by the sweep command. Workers started here outlive this command; their words go to
    runs/sweeps/NAME/workers/log-HOST.
    """
    try:
        place = Store(store)
        saved = read_plan(find_plan(place, sweep_name(sweep)))
        launch = saved.launch
        if (place.sweep(saved.plan.name) / ARGV).exists() or launch.get("via", "local") != "local":
            raise typer.Exit(_round(saved, place, lease))
        name, standing = saved.plan.name, stand(saved.plan, place, Observer(lease))
        machine = this_machine(
            workers or launch.get("workers"), threads or launch.get("threads"), device or launch.get("device")
        )
        here = [worker for worker in present(place, name) if worker.here]
        could, running = ready(saved.plan, standing), len(standing.owners)
        idle = len(here) - sum(owner.host == socket.gethostname() for owner, _, _ in standing.owners.values())
        elsewhere = any(not owner.is_here for owner, _, _ in standing.owners.values())
        wanted = len(could) or int(elsewhere)  # what runs elsewhere needs somebody who sees it die
        missing = max(0, min(machine.workers - len(here), wanted - idle))
        argv = ["--at-most", str(machine.workers), "--lease", str(lease), *(["--until", until] if until else [])]
        used = Counter(str(worker.about.get("visible")) for worker in here)
        started = [start_detached(name, place, machine, used, argv) for _ in range(missing)]
    except (UserError, OSError) as error:
        typer.echo(printable(str(error)), err=True)
        raise typer.Exit(2) from None
    said = f"{name}: {count(len(could), 'stage')} ready, {running} running, {len(standing.states)} to do in all; "
    said += f"{count(len(here), 'worker')} here"
    typer.echo(f"{said}, {len(started)} started" if started else f"{said}, none started")
