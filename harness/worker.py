"""The worker: `python -m harness.worker NAME` claims ready stages and runs them until none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from harness.allocation import job_id, nodes, refuse_salloc_shell, time_limit
from harness.caches import point_caches
from harness.claims import LEASE, Observer
from harness.completing import sweeps_here
from harness.errors import SchedulerUnavailable, UserError
from harness.events import Events, in_words
from harness.launch.kept import kept
from harness.launch.local import Workers, slots, this_machine
from harness.launch.starts import SIGNED_IN
from harness.options import refuse_graphs
from harness.planfile import find_plan, read_plan
from harness.rounds import round_in_turn
from harness.shift import Limits, work
from harness.store import Store
from harness.supervisor import Setup, Trouble, Unwritable
from harness.terminal import STORE, enter, examples, note
from harness.trainer import Trainer, leader
from harness.trainer_signals import HEEDED
from harness.words import given_span

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
EXAMPLES = examples(
    "harness worker quickstart",
    "harness worker quickstart --until 55m --slots 4",
    "python -m harness.worker quickstart --idle 90s --device cpu --threads 1",
)

SIGNALS = (*HEEDED, signal.SIGINT)


def _several(number: int, device: str | None, threads: int | None, argv: list[str]) -> int:
    """Run several workers on this machine until the last one leaves; a signal is passed on."""
    machine = this_machine(number, threads, device)
    crew = Workers([argv[0], *machine.argv, *argv[1:]], slots(machine, ()), lambda slot, event: in_words(**event))

    def ask(number: int, frame: FrameType | None) -> None:
        if not crew.stopping:  # asked twice, as schedulers do, they still save
            crew.stop()

    for number in SIGNALS:
        signal.signal(number, ask)
    crew.run()
    for sentence in crew.trouble:
        in_words(event="note", message=sentence)
    return 3 if crew.trouble or 3 in crew.codes else 0


def _stopping() -> threading.Event:
    """Return what is set when a signal asks this worker to leave."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in SIGNALS:
        signal.signal(number, ask)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # held back since the job began, so that none was lost
    return stop


@app.command(epilog=EXAMPLES)
def main(
    name: Annotated[str, typer.Argument(help="The sweep's name, as in its file.", autocompletion=sweeps_here)],
    store: Annotated[Path, typer.Option(help="The store's folder.")] = STORE,
    plan: Annotated[str, typer.Option(help="One of the sweep's plan files, in place of its newest.")] = "",
    until: Annotated[str | None, typer.Option(help="Leave before this much time is over: 55m, 23h30m.")] = None,
    idle: Annotated[str | None, typer.Option(help="Leave after so long with nothing to do: 90s. Else wait.")] = None,
    slots: Annotated[int, typer.Option(help="Workers to run side by side, spread over GPUs and cores.", min=1)] = 1,
    world: Annotated[int, typer.Option(help="Processes that train a network together.", min=1)] = 1,
    as_one: Annotated[bool, typer.Option("--as-one", help="Train in one process what asks for several.")] = False,
    large: Annotated[bool, typer.Option("--large", help="Take only what ran out of memory or time elsewhere.")] = False,
    at_most: Annotated[
        int | None, typer.Option(help="Leave if so many workers of this sweep run on this machine already.", min=1)
    ] = None,
    device: Annotated[str | None, typer.Option(help="A torch device, such as cpu or cuda.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a trainer.", min=1)] = None,
    memory: Annotated[float, typer.Option(help="GiB of memory for this worker's stages; 0: all there is.")] = 0.0,
    gpu_memory: Annotated[float, typer.Option(help="The same of its GPU's memory.")] = 0.0,
    scratch: Annotated[str, typer.Option(help="A folder on this machine's own disk for checkpoints.")] = "",
    discard_weights: Annotated[
        bool, typer.Option("--discard-weights", help="Keep no weights of trainings that no other stage reads.")
    ] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="Train faster, with numbers that differ in their last bits from run to run.")
    ] = False,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between two checkpoints.", min=0)] = 300.0,
    lease: Annotated[
        float, typer.Option(help="Seconds without a heartbeat after which a worker counts as lost.", min=0.5)
    ] = LEASE,
    sign_in: Annotated[
        str, typer.Option(help="A folder for a file that says this job's trainer is ready.", hidden=True)
    ] = "",
    submits: Annotated[
        bool, typer.Option("--submits", help="Submit workers for what it has made ready, and when leaving.")
    ] = False,
    events: Annotated[bool, typer.Option(help="Print events as JSON lines, and stop when nobody reads them.")] = False,
) -> None:
    """Claim and run a sweep's ready stages until none is left. Start as many as you like, wherever the store is.

    Inside a Slurm job it leaves before the job's time is over. Exit codes: 0 nothing left to do, or stopped; 2 a
    mistake on the command line; 3 it can take no more stages, or, leaving, gets no answer from the scheduler.
    """
    try:
        refuse_salloc_shell()
        if slots > 1 and world > 1:
            raise UserError("--slots and --world do not go together: start one worker for each group of processes")
        number, node = nodes() if world > 1 else (1, 0)
        if world % number:
            raise UserError(f"--world {world}: the job has {number} tasks; it needs one a node, each for as many ranks")
    except UserError as error:
        note(str(error))
        raise typer.Exit(2) from None
    if node:
        return  # the worker on the first node launches the ranks on the others
    if slots > 1:
        given = {"--store": store, "--plan": plan, "--until": until, "--scratch": scratch, "--lease": lease}
        given |= {"--idle": idle, "--memory": memory / slots, "--gpu-memory": gpu_memory}
        argv = [str(part) for option, value in given.items() if value for part in (option, value)]
        argv += [*(["--discard-weights"] if discard_weights else []), *(["--fast"] if fast else []), "--as-one"]
        raise typer.Exit(_several(slots, device, threads, [name, *argv, "--checkpoint-every", str(checkpoint_every)]))
    stop = _stopping()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA
    printer = Events(stop) if events else None
    tell = printer.tell if printer else in_words
    try:
        place = Store(store)
        own = given_span("--until", until) if until else None
        its = time_limit(tell=lambda sentence: tell(event="note", message=sentence))
        limits = Limits(
            min((end for end in (own, its.left if its else None) if end is not None), default=None),
            its.notice if its else 0.0,
            at_most,
            given_span("--idle", idle) if idle else None,
            not plan,
            f"{sign_in}/{SIGNED_IN}{job_id()}" if sign_in else "",
        )
        saved = read_plan(place.sweep(name) / Path(plan).name if plan else find_plan(place, name))
        here = this_machine(1, threads or 1, device)
        os.environ["OMP_NUM_THREADS"] = str(here.threads)
        amounts: dict[str, Any] = {
            "memory": int(memory * 2**30) or here.memory,
            "gpu_memory": int(gpu_memory * 2**30) or here.gpu_memory,
        }
        point_caches(os.path.expandvars(scratch))
        setup = Setup(here.device, here.threads, checkpoint_every, lease, **amounts, world=world, as_one=as_one)
        setup = replace(
            setup,
            time=min(filter(None, (own, its.whole if its else None)), default=0.0),
            discard_weights=discard_weights,
            scratch=os.path.expandvars(scratch),
            fast=fast,
            execution=saved.launch.get("execution", setup.execution),
            large=large,
        )
        refuse_graphs(setup.execution, setup.device)

        def submit(stop: threading.Event | None = None) -> None:
            round_in_turn(
                saved, place, Observer(lease), lambda: kept(place, name, saved.path.name if plan else ""), tell, stop
            )

        def freed() -> None:
            try:
                submit(stop)
            except (UserError, subprocess.SubprocessError) as error:  # what is left to do here goes on without
                tell(event="note", message=f"no workers were submitted: {error}")

        start = partial(leader, world=world, nodes=number) if world > 1 else Trainer
        work(saved, place, setup, limits, stop, tell, start, freed if submits else None)
        if submits:
            submit()
    except UserError as error:
        note(str(error))
        raise typer.Exit(2) from None
    except SchedulerUnavailable as error:
        note(str(error))
        raise typer.Exit(3) from None
    except (Trouble, OSError) as error:
        told = {"unwritable": isinstance(error, Unwritable | OSError)}
        tell(event="trouble", message=f"this worker takes no more stages: {error}", **told)
        raise typer.Exit(3) from None
    finally:
        if printer:
            printer.drain()


if __name__ == "__main__":
    enter(app)
