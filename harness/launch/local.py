"""The local launcher: workers on this machine, one to a GPU or a few cores, watched until they are done."""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.allocation import worker_environment
from harness.memory import gpu_memory, machine_memory

QUICK = 5.0
"""A worker that ends by a signal this soon after its start is not started again."""

Hear = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True)
class Machine:
    """How many workers this machine serves, and on what."""

    workers: int
    threads: int
    device: str
    gpus: tuple[str, ...] = ()
    memory: int = 0
    """Bytes of the machine's memory that are a worker's share; 0 where unknown."""
    gpu_memory: int = 0
    """The same of its GPU's memory."""

    @property
    def argv(self) -> list[str]:
        """Return what every worker is told."""
        shares = {"--memory": self.memory, "--gpu-memory": self.gpu_memory}
        memory = [part for name, share in shares.items() if share for part in (name, f"{share / 2**30:.3f}")]
        return ["--device", self.device, "--threads", str(self.threads), *memory]


def this_machine(workers: int | None, threads: int | None, device: str | None) -> Machine:
    """Return a worker for every GPU, or for every core; whatever is given wins."""
    gpus = _gpus() if device is None or device.startswith("cuda") else ()
    device = device or ("cuda" if gpus else "cpu")
    if workers is None:
        workers = (
            len(gpus) if gpus and device == "cuda" else 1 if device != "cpu" else max(1, cores() // (threads or 1))
        )
    gpus = gpus if device == "cuda" else ()
    own = min(map(gpu_memory, gpus)) // math.ceil(workers / len(gpus)) if gpus else 0
    return Machine(workers, threads or max(1, cores() // workers), device, gpus, machine_memory() // workers, own)


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Slot:
    """One worker's place on this machine: what it is told beside the rest, and the GPUs that it sees."""

    argv: tuple[str, ...] = ()
    visible: str = ""


def slots(machine: Machine, worlds: Iterable[int]) -> list[Slot]:
    """Return the workers that serve a machine best: one for each size of process group, single ones beside them.

    Where there are fewer GPUs than a group asks for, single workers train it in one process, which means the same.
    """
    gpus = list(machine.gpus)
    found, alone = [], False
    for world in sorted({world for world in worlds if world > 1}, reverse=True):
        if (gpus and world > len(gpus)) or machine.device not in ("cpu", "cuda"):
            alone = True
        else:
            found.append(Slot(("--world", str(world)), ",".join(gpus[-world:])))
    singles = max(1, machine.workers - sum(int(slot.argv[1]) for slot in found))
    own = ("--as-one",) if alone else ()
    return [*(Slot(own, gpus[n % len(gpus)] if gpus else "") for n in range(singles)), *found]


def _gpus() -> tuple[str, ...]:
    """Return the GPUs that jobs of this process may see, asked of the driver so that torch need not be loaded."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part for part in visible.split(",") if part.strip())
    try:
        import pynvml

        pynvml.nvmlInit()
        return tuple(map(str, range(pynvml.nvmlDeviceGetCount())))
    except Exception:  # whatever keeps the driver from answering, there is no GPU to be had
        return ()


@dataclass
class _Running:
    slot: int
    process: subprocess.Popen[bytes]
    started: float
    rest: bytes = b""
    pre_empted: bool = False


@dataclass
class Workers:
    """Worker processes, each in a session of its own so that Ctrl-C reaches them only through `stop`."""

    argv: Sequence[str]
    slots: Sequence[Slot]
    hear: Hear
    pre_empt: bool = False
    """Stop one worker in the middle of its first training and start another, as a busy cluster would."""
    stopping: int = 0
    trouble: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    """The exit codes of workers that ended by themselves."""
    _running: list[_Running] = field(default_factory=list)

    def run(self) -> None:
        """Start all workers and follow them until the last one has ended; one that is killed is replaced."""
        with selectors.DefaultSelector() as selector:
            for slot in range(len(self.slots)):
                if not self.stopping:
                    self._start(slot, selector)
            try:
                while self._running:
                    for chosen, _ in selector.select(timeout=0.5):
                        self._read(chosen.data, selector)
            finally:
                for worker in self._running:  # only after an error of our own: leave nothing behind
                    worker.process.terminate()

    def stop(self) -> None:
        """Ask all workers to save and leave; asked again, kill them and their trainers."""
        self.stopping += 1
        for worker in self._running:
            with contextlib.suppress(ProcessLookupError):
                if self.stopping == 1:
                    worker.process.terminate()
                else:
                    os.killpg(worker.process.pid, signal.SIGKILL)

    def _start(self, slot: int, selector: selectors.BaseSelector) -> None:
        environment = worker_environment()
        if self.slots[slot].visible:
            environment["CUDA_VISIBLE_DEVICES"] = self.slots[slot].visible
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.worker", *self.argv, *self.slots[slot].argv, "--events"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
        assert process.stdout is not None  # it was asked for # noqa: S101
        worker = _Running(slot, process, time.monotonic())
        self._running.append(worker)
        selector.register(process.stdout, selectors.EVENT_READ, worker)
        if self.stopping:  # asked while this one was being started
            process.terminate()

    def _pre_empt(self, worker: _Running, event: dict[str, Any]) -> None:
        """Stop a worker that starts a training, until one was stopped in the middle of it."""
        if not self.pre_empt or self.stopping:
            return
        if event.get("event") == "start" and event.get("kind") == "train":
            worker.pre_empted = True
            worker.process.terminate()
        elif worker.pre_empted and event.get("event") == "end" and event.get("outcome") == "stopped":
            self.pre_empt = False

    def _read(self, worker: _Running, selector: selectors.BaseSelector) -> None:
        assert worker.process.stdout is not None  # it was asked for # noqa: S101
        data = os.read(worker.process.stdout.fileno(), 65536)
        lines = (worker.rest + data).split(b"\n")
        worker.rest = lines.pop()
        for line in lines:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                self._pre_empt(worker, event)
                self.hear(worker.slot, event)
        if data:
            return
        selector.unregister(worker.process.stdout)
        worker.process.stdout.close()
        code = worker.process.wait()
        self.codes.append(code)
        self._running.remove(worker)
        self.hear(worker.slot, {"event": "exit", "code": code})
        if code == 0 and worker.pre_empted and not self.stopping:
            self._start(worker.slot, selector)
        elif code < 0 and not self.stopping:
            if time.monotonic() - worker.started > QUICK:
                self._start(worker.slot, selector)
            else:
                self.trouble.append(
                    f"worker {worker.slot} was ended by {signal.Signals(-code).name} right after its start"
                )
        elif code not in (0, 3):
            self.trouble.append(f"worker {worker.slot} ended with code {code}")
