"""What `harness doctor` looks at: device, torch build, the store's file system and clock, the scheduler's commands."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.allocation import job, seconds_left, shell
from harness.launch.local import this_machine
from harness.store import place, sync
from harness.words import size, span

SKEW = 5.0
"""Seconds that a machine's clock may differ from the store's without a word."""
SLOW = 0.2
"""Seconds of a small synced write above which a file system is called slow."""
LITTLE = 10 * 2**30
TORCH = """
import json, torch
names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
nccl = torch.distributed.is_nccl_available()
print(json.dumps([torch.__version__, torch.version.cuda, len(names), names, nccl]))
"""


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    said: str
    grade: str = "ok"
    """ok, note or bad."""


def look(store: Path, scratch: str = "", device: str | None = None) -> Iterator[Finding]:
    """Look at this machine and at the store as it is seen from here."""
    yield _here()
    yield from _torch(device)
    yield from _folder("store", store)
    if scratch:
        yield from _folder("scratch", Path(os.path.expandvars(scratch)))
    yield from _scheduler()


def _here() -> Finding:
    left = seconds_left()
    within = f", job {job()}" + (f" with {span(left)} left" if left is not None else "") if job() else ""
    machine = this_machine(1, None, None)
    cores = f"{machine.threads} cores, {size(machine.memory)} of memory"
    return Finding("machine", f"{socket.gethostname()}{within}: {cores}, python {sys.version.split()[0]}")


def _torch(device: str | None) -> Iterator[Finding]:
    """Look at torch in a process of its own: a broken build takes more down than itself."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        yield Finding("torch", f"cannot be loaded: {last}", "bad")
        return
    version, cuda, number, names, nccl = json.loads(done.stdout)
    yield Finding("torch", f"{version}, CUDA {cuda or 'none'}, loaded in {time.monotonic() - began:.1f} s")
    wanted = (device or "").startswith("cuda")
    if number:
        driver = _driver()
        yield Finding(
            "GPUs", f"{number}: {', '.join(sorted(set(names)))}; {driver}; NCCL {'there' if nccl else 'missing'}"
        )
    elif wanted or shutil.which("nvidia-smi"):
        yield Finding("GPUs", "torch sees none; is the job given one, and does the driver suit this CUDA?", "bad")
    else:
        yield Finding("GPUs", "none; trainings run on the CPU", "note")


def _driver() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        return f"driver {pynvml.nvmlSystemGetDriverVersion()}"
    except Exception:  # whatever keeps it from answering
        return "driver unknown"


def _folder(name: str, folder: Path) -> Iterator[Finding]:
    """Look at a folder's file system: what the claims of workers rest on, speed, room, and its clock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        one, two = (folder / f".doctor-{uuid.uuid4().hex}" for _ in range(2))
        began = time.monotonic()
        one.write_bytes(b"x")
        sync(one)
        took, clock = time.monotonic() - began, one.stat().st_mtime - time.time()
    except OSError as error:
        yield Finding(name, f"{folder}: cannot be written: {error.strerror}", "bad")
        return
    try:
        linked = place(one, two)
        with one.open("ab") as file:
            file.write(b"y")
        whole = linked and two.stat().st_size == 2
    except OSError:
        whole = False
    finally:
        one.unlink(missing_ok=True)
        two.unlink(missing_ok=True)
    if not whole:
        yield Finding(name, f"{folder}: this file system has no second names (link), which claims rest on", "bad")
        return
    room = shutil.disk_usage(folder).free
    said = f"{folder} ({_kind(folder)}): {size(room)} free, a synced write in {took * 1000:.0f} ms"
    yield Finding(name, said, "note" if room < LITTLE or took > SLOW else "ok")
    if abs(clock) > SKEW:
        yield Finding(
            "clock", f"{abs(clock):.0f} s off the store's; nothing is decided by it, but times shown will be", "note"
        )
    else:
        yield Finding("clock", f"within {max(abs(clock), 0.1):.1f} s of the store's")


def _kind(folder: Path) -> str:
    """Return the type of the file system that a folder lies on."""
    try:
        rows = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "file system unknown"
    here = folder.resolve()
    found = [(len(row[1]), row[2]) for row in rows if here.is_relative_to(row[1].replace("\\040", " "))]
    return max(found)[1] if found else "file system unknown"


def _scheduler() -> Iterator[Finding]:
    if not shutil.which("sbatch"):
        yield Finding("Slurm", "not here; workers run on this machine, or with --via ray", "note")
        return
    for command, what in ((["squeue", "--me"], "the queue"), (["sacct", "--noheader"], "accounting")):
        try:
            shell(command)
            yield Finding("Slurm", f"{what} answers ({command[0]})")
        except (OSError, subprocess.SubprocessError) as error:
            told = str(getattr(error, "stderr", "") or error).strip().splitlines()
            grade = "note" if command[0] == "sacct" else "bad"
            yield Finding("Slurm", f"{what} does not answer ({command[0]}): {told[-1] if told else 'no word'}", grade)
