"""The worker: `python -m harness.worker NAME` claims ready stages and runs them until none is left."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from harness.claims import LEASE, Claim, Observer, Owner, State, take
from harness.errors import UserError
from harness.frontier import Frontier
from harness.plan import Stage, read_plan
from harness.store import Store
from harness.supervisor import Setup, Supervisor, Trouble

POLL = 0.5
"""Seconds between two looks at what others run."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Worker:
    """Takes stage after stage: the ready one with the longest chain below it first."""

    def __init__(self, frontier: Frontier, supervisor: Supervisor, stop: threading.Event, tell: Any) -> None:
        self.frontier, self.supervisor, self.stop, self.tell = frontier, supervisor, stop, tell
        self.token = uuid.uuid4().hex
        self.todo: dict[str, Stage] = {}
        self.broken: set[str] = set()
        """Stages that failed, and all below them."""

    def run(self) -> None:
        """Work until all is done or blocked by failures, or a stop is asked for."""
        self.look()
        while not self.stop.is_set():
            taken, others = self.take()
            if taken is not None:
                outcome = self.supervisor.run(*taken)
                if self.frontier.changed:
                    self.look()
                elif outcome == "published":
                    self.todo.pop(taken[0].key, None)
            elif others:
                self.stop.wait(min(POLL, self.frontier.observer.lease / 20))
            else:
                before = set(self.todo)
                self.look()
                if not self.todo or set(self.todo) == before:
                    return

    def look(self) -> None:
        """Read from the store what is left to do."""
        self.frontier.forget()
        heights = self.frontier.plan.heights
        survey = self.frontier.survey()
        keys = sorted(survey.todo, key=lambda key: (-heights[key], hash((self.token, key))))
        self.todo = {key: self.frontier.plan.stages[key] for key in keys}
        self.broken = set(self.frontier.blocked(survey))

    def ready(self) -> Iterator[tuple[Stage, State]]:
        """Yield the stages whose parents are done, with their states; what others finished leaves the list."""
        progress = True
        while progress:
            progress = False
            for key, stage in list(self.todo.items()):
                if key in self.broken or any(p in self.todo for p in stage.parents.values()):
                    if any(p in self.broken for p in stage.parents.values()):
                        self.broken.add(key)
                    continue
                if self.frontier.result(key, with_artifact=True):
                    del self.todo[key]
                    progress = True
                    continue
                yield stage, self.frontier.state(stage)

    def take(self) -> tuple[tuple[Stage, Claim] | None, bool]:
        """Claim a stage; else say whether others run something that may be waited for."""
        others = False
        seen: set[str] = set()
        for stage, state in self.ready():
            if stage.key in seen:
                continue
            seen.add(stage.key)
            if state.name in ("failed", "diverged"):
                self.broken.add(stage.key)
            elif not state.claimable:
                others = True
            else:
                folder = self.frontier.store.folder(stage.kind, stage.key)
                if folder.generation == state.generation:
                    claim = take(folder, state.generation, self.supervisor.owner())
                    if claim is not None and self.frontier.result(stage.key, with_artifact=True):
                        claim.end("gave up", message="it was published just before")  # between the look and the claim
                    elif claim is not None:
                        return (stage, claim), True
                others = True
        return None, others


def release(frontier: Frontier, cause: str) -> int:
    """Make failed stages claimable again whose recorded cause is the given one (or `all`); return how many.

    Done by an empty generation that ends at once, so that a failure is never forgotten and a retry is one of now.
    """
    released = 0
    for key, state in frontier.survey().todo.items():
        if state.name not in ("failed", "diverged"):
            continue
        stage = frontier.plan.stages[key]
        folder = frontier.store.folder(stage.kind, key)
        end = folder.end(state.generation) or {}
        if cause in ("all", state.name, end.get("cause")) or (cause == "died" and end.get("outcome") == "died"):
            claim = take(folder, state.generation, Owner.me())
            if claim is not None:
                claim.end("stopped", message="released for another try")
                released += 1
    return released


class Events:
    """Prints events as JSON lines, and never waits: a reader that is stopped (Ctrl-Z) must not stop the heartbeats."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.waiting: queue.Queue[str] = queue.Queue(1000)
        threading.Thread(target=self._write, daemon=True).start()

    def tell(self, **event: Any) -> None:
        """Queue an event; progress is dropped where the reader is behind."""
        if event["event"] != "step" or self.waiting.qsize() < 100:
            with contextlib.suppress(queue.Full):
                self.waiting.put_nowait(json.dumps(event) + "\n")

    def drain(self) -> None:
        """Give what is queued a moment to be read."""
        deadline = time.monotonic() + 2
        while self.waiting.unfinished_tasks and time.monotonic() < deadline and not self.stop.wait(0.01):
            pass

    def _write(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                sys.stdout.write(self.waiting.get())
                sys.stdout.flush()
                self.waiting.task_done()
        self.stop.set()  # nobody reads any more: the command that started this worker is gone


def _words(**event: Any) -> None:
    """Print starts and ends for a person or a log file."""
    if event["event"] == "start":
        print(f"start  {event['label']}", flush=True)  # noqa: T201 - this is the worker's output
    elif event["event"] == "end":
        print(f"{event['outcome']:6s} {event['label']} {event['message']}", flush=True)  # noqa: T201


@app.command()
def main(
    name: Annotated[str, typer.Argument(help="The sweep's name, as in its file.")],
    store: Annotated[Path, typer.Option(help="The store's folder.")] = Path("runs"),
    plan: Annotated[str, typer.Option(help="One of the sweep's plan files, in place of its newest.")] = "plan.json",
    device: Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads of the trainer.", min=1)] = 1,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between two checkpoints.", min=0)] = 300.0,
    lease: Annotated[
        float, typer.Option(help="Seconds without a heartbeat after which a worker counts as lost.", min=0.5)
    ] = LEASE,
    events: Annotated[bool, typer.Option(help="Print events as JSON lines, and stop when nobody reads them.")] = False,
) -> None:
    """Claim and run a sweep's ready stages until none is left. Start as many as you like, wherever the store is."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, ask)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA
    os.environ["OMP_NUM_THREADS"] = str(threads)
    printer = Events(stop) if events else None
    tell = printer.tell if printer else _words
    try:
        place = Store(store)
        frontier = Frontier(read_plan(place.sweep(name) / Path(plan).name), place, Observer(lease))
        supervisor = Supervisor(frontier, Setup(device, threads, checkpoint_every, lease), tell, stop.is_set)
        with contextlib.closing(supervisor):
            Worker(frontier, supervisor, stop, tell).run()
    except UserError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    except (Trouble, OSError) as error:
        tell(event="trouble", message=str(error))
        typer.echo(f"this worker takes no more stages: {error}", err=True)
        raise typer.Exit(3) from None
    finally:
        if printer:
            printer.drain()


if __name__ == "__main__":
    app()
