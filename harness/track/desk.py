"""The publisher's side of a clerk: orders out, answers in, and an end to a clerk that answers no more."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.claims import Process, start_time
from harness.machine import machine
from harness.store import read_json, write_whole

PATIENCE = 120.0
"""Seconds without any answer, while some are awaited, after which a clerk is given up."""
FREE = 500_000_000
"""Bytes that must be free where wandb keeps what it has not sent yet: on a full disk it drops rows without a word."""
SIGNS = "clerk.json"
SCRATCH = "harness-wandb-"


class Stalled(Exception):
    """The clerk has ended, or answers no more."""


class Desk:
    """One clerk process. Whoever opens it closes it."""

    def __init__(self, mode: str, folder: Path | None = None, keep: Path | None = None) -> None:
        """Start a clerk. `folder`: the target's, where its processes are noted; `keep`: where offline folders go."""
        self.folder, self.signed = folder, False
        self.scratch = Path(tempfile.mkdtemp(prefix=SCRATCH))
        where = keep or self.scratch
        where.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DATA_DIR": str(self.scratch),
            "WANDB_CACHE_DIR": str(self.scratch),
            "WANDB_DIR": str(where),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.track.clerk", mode, str(where)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            start_new_session=True,
        )
        self.answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.awaited: set[int] = set()
        self.number = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None  # it was asked for # noqa: S101
        with contextlib.suppress(ValueError, OSError):
            for line in self.process.stdout:
                self.answers.put(json.loads(line))
        self.answers.put(None)

    @property
    def room(self) -> bool:
        """Return whether there is space for what the clerk has not sent yet."""
        return shutil.disk_usage(self.scratch).free > FREE

    def send(self, **order: Any) -> int:
        """Give an order; return the number that its answer will have. Raises Stalled where the clerk is gone."""
        assert self.process.stdin is not None  # it was asked for # noqa: S101
        self.number += 1
        try:
            self.process.stdin.write(json.dumps({"number": self.number, **order}) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Stalled("its process ended") from error
        self.awaited.add(self.number)
        return self.number

    def receive(self, patience: float = PATIENCE) -> dict[str, Any]:
        """Return the next answer. Raises Stalled where none comes."""
        deadline = time.monotonic() + patience
        while True:
            try:
                said = self.answers.get(timeout=min(1.0, max(0.01, deadline - time.monotonic())))
            except queue.Empty:
                if self.process.poll() is not None:  # its wandb-core may hold the pipe open
                    raise Stalled("its process ended") from None
                if time.monotonic() > deadline:
                    raise Stalled(f"no answer in {patience:.0f} s") from None
                continue
            if said is None:
                raise Stalled("its process ended")
            self.awaited.discard(int(said["number"]))
            if not self.signed:  # by its first answer wandb has started its own process
                self.sign()
            return said

    def ask(self, patience: float = PATIENCE, **order: Any) -> dict[str, Any]:
        """Give an order while nothing else is awaited; return its answer."""
        self.send(**order)
        return self.receive(patience)

    def sign(self) -> None:
        """Note the clerk's processes, so that whoever publishes next can end what a killed publisher left."""
        self.signed = True
        if self.folder is not None:
            said = {"boot": _boot(), "processes": processes(self.process.pid), "scratch": str(self.scratch)}
            write_whole(self.folder / SIGNS, json.dumps(said).encode())

    def close(self) -> None:
        """End the clerk, and what it has started."""
        end_processes(processes(self.process.pid))
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def end_left_over(folder: Path) -> None:
    """End the clerk, and its wandb-core, of a publisher that was killed on this machine."""
    said: Mapping[str, Any] = read_json(folder / SIGNS) or {}
    if said.get("boot") == _boot():
        end_processes([(int(pid), int(start)) for pid, start in said.get("processes", [])])
        scratch = Path(str(said.get("scratch", "")))
        if scratch.name.startswith(SCRATCH):
            shutil.rmtree(scratch, ignore_errors=True)


def end_processes(processes: list[tuple[int, int]]) -> None:
    """Kill processes, each only if it is still the one that was meant."""
    for pid, start in processes:
        if not Process(pid, start).gone():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _boot() -> str:
    return " ".join(machine())


def processes(pid: int) -> list[tuple[int, int]]:
    """Return a process and all below it, with their start times (Linux; elsewhere itself alone)."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            below.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        here = waiting.pop()
        found.append((here, start_time(here) or 0))
        waiting += below.get(here, [])
    return found
