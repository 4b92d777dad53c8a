"""The launcher of this machine for those who do not wait: workers that outlive the command, known by their sign-in."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from harness.allocation import worker_environment
from harness.claims import Owner
from harness.launch import Job, Size, until
from harness.launch.local import Machine
from harness.memory import clearly_more
from harness.presence import Present, present
from harness.store import Store
from harness.words import count


@dataclass
class Detached:
    """Starts workers on this machine, each in a session of its own; their words go to a log beside the plan."""

    machine: Machine
    store: Store
    name: str
    argv: Sequence[str]
    """What every worker is told beside its device and threads."""

    @property
    def most(self) -> int:
        """Return how many workers the machine serves."""
        return self.machine.workers

    def submit(self, size: Size, number: int) -> list[str]:
        """Start workers, each on the GPU that fewest use."""
        used = Counter(str(worker.about.get("visible")) for worker in self._here())
        folder = self.store.sweep(self.name) / "workers"
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "harness.worker", self.name, "--store", str(self.store.root), "--as-one"]
        command += ["--at-most", str(self.machine.workers), *self.argv, *self.machine.argv]
        log = folder / f"log-{os.uname().nodename}"
        for _ in range(number):
            environment = worker_environment()
            if self.machine.gpus:
                gpu = environment["CUDA_VISIBLE_DEVICES"] = min(self.machine.gpus, key=lambda gpu: used[gpu])
                used[gpu] += 1
            with log.open("ab") as file:
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                    env=environment,
                )
        return [f"{count(number, 'worker')} here, whose words go to {log}"]

    def _here(self) -> list[Present]:
        return [worker for worker in present(self.store, self.name) if worker.here and not worker.owner.job]

    def poll(self) -> list[Job]:
        """Return this sweep's workers that have signed in here."""
        pids = [worker.owner.processes[0].pid for worker in self._here()]
        return [Job(str(pid), Size(), "running", inner=f"process {pid}") for pid in pids]

    def exclude(self, jobs: Sequence[Job]) -> list[str]:
        """Exclude nothing: there is but this machine."""
        return []

    def in_vain(self, size: Size) -> str:
        """Return nothing: what keeps a worker from starting here stands in its log."""
        return ""

    def never(self, job: Job) -> str:
        """Return nothing: no worker waits for its start."""
        return ""

    def waits(self, job: Job) -> str:
        """Return nothing, for the same reason."""
        return ""

    def cancel(self, jobs: Sequence[Job]) -> str:
        """Ask workers to save and leave."""
        for job in jobs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.number), signal.SIGTERM)
        return ""

    def step_for(self, amount: float, resource: str) -> int | None:
        """Return the only step, where a worker's share of the memory, or its time, is clearly more than was needed."""
        has = {"ram": self.machine.memory, "gpu": self.machine.gpu_memory, "time": until(self.argv)}
        return 0 if clearly_more(has[resource], amount) else None

    def size_for(self, world: int, step: int) -> Size:
        """Return the only size: here one process trains what asks for several, which means the same."""
        return Size()

    @property
    def idle(self) -> None:
        """Return None: these workers wait."""

    def size_of(self, owner: Owner, jobs: Sequence[Job]) -> Size | None:
        """Return the only size for a worker of this machine."""
        return Size() if owner.is_here else None

    def begin(self) -> None:
        """Keep nothing: the plan says how this machine is used."""

    def later(self) -> str:
        """Say nothing: these workers stay until all is done."""
        return ""
