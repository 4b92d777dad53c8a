"""The supervisor's side of a trainer: start it, send orders, hear messages, see it die. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

from harness.claims import Process, start_time
from harness.machine import machine
from harness.trainer_signals import DUMP, HEEDED

PRELOAD = "harness.train.preload"
STARTING = 300.0
"""Seconds that loading torch may take, on a cold network file system."""
DUMPING = 5.0
"""Seconds that writing its stacks may take."""


def serve(pipe: Connection, device: str, check: int = 0) -> None:
    """Enter the trainer process; `check`: the threads to try convolutions with first, none where they are known."""
    from harness.train.process import serve as run

    run(pipe, device, check)


def lead(pipe: Connection, device: str, world: int, nodes: int) -> None:
    """Enter the process that launches ranks; the server that they are forked off loads torch while this one does."""
    multiprocessing.set_forkserver_preload([PRELOAD])
    forkserver.ensure_running()
    from harness.train.ranks import lead as run

    run(pipe, device, world, nodes)


class Trainer:
    """A forkserver child that has torch loaded: starting another after a fault takes milliseconds.

    `leads`: one that starts processes itself, which a fork server's child does by a server of its own: it is spawned.
    """

    def __init__(
        self,
        device: str,
        serve: Callable[[Connection, str], None] = serve,
        preload: str = PRELOAD,
        leads: bool = False,
    ) -> None:
        multiprocessing.set_forkserver_preload([preload])
        self.pipe, theirs = multiprocessing.Pipe()
        context: Any = multiprocessing.get_context("spawn" if leads else "forkserver")
        self.ranks: list[Process] = []
        """The processes that it has launched here."""
        self.process = context.Process(target=serve, args=(theirs, device), daemon=not leads)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)  # inherited: none may hit the server as it starts
        try:
            self.process.start()
        except EOFError:
            raise OSError("the trainers' fork server was ended while it loaded torch") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self.host = machine()[0]
        self.life = Process(self.pid, start_time(self.pid) or 0)
        self.dumping = 0.0
        theirs.close()

    @property
    def pid(self) -> int:
        """Return the process's number."""
        return self.process.pid or 0

    @property
    def pids(self) -> list[int]:
        """Return the numbers of the processes that run an order: of one trainer, its own."""
        return [self.pid]

    @property
    def doors(self) -> list[Any]:
        """Return what becomes readable when the trainer has something to say, or is gone."""
        return [self.pipe, self.process.sentinel]

    @property
    def alive(self) -> bool:
        """Return whether the process is there."""
        return not self.life.gone()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send an order, or {"stop": true}; to a dead trainer it is lost, which hear() then tells."""
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(json.dumps(message).encode())

    def hear(self, timeout: float) -> dict[str, Any] | None:
        """Return the next message, None after a timeout, or {"at": "died", ...} where the process is gone."""
        wait(self.doors, max(timeout, 0))
        try:
            if self.pipe.poll():
                message: dict[str, Any] = json.loads(self.pipe.recv_bytes())
                if message["at"] != "ranks":
                    return message
                self.ranks = [Process(pid, start_time(pid) or 0) for pid in message["pids"]]
        except (EOFError, OSError):
            self.process.join(5)
        return {"at": "died", **self.last_words()} if self._gone() else None

    def _gone(self) -> bool:
        """Return whether the process is no more; the end of the fork server alone looks the same to multiprocessing."""
        return not self.process.is_alive() and self.life.gone()

    def last_words(self) -> dict[str, str]:
        """Say how the process ended, and by which signal."""
        code = self.process.exitcode or 0
        if code >= 0:
            return {"message": f"the trainer ended by itself with code {code}"}
        name = signal.Signals(-code).name
        return {"message": f"the trainer was ended by {name}", "signal": name}

    def dump(self) -> None:
        """Have the process write its stacks into its log, and end it."""
        self.dumping = DUMPING
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, DUMP)

    def kill(self) -> None:
        """End the process at once, or when its stacks are written, and wait for it."""
        self.process.join(self.dumping)
        for process in (self.life, *self.ranks):
            if not process.gone():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        self.process.join()
        self.pipe.close()


def leader(device: str, world: int, nodes: int = 1) -> Trainer:
    """Start a trainer that runs each training by several processes, on this node or spread evenly over several."""
    return Trainer(device, partial(lead, world=world, nodes=nodes), leads=True)
