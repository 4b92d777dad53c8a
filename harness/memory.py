"""Memory: what a worker has, what its trainer took, and whether the kernel ended it for taking too much."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MORE = 1.05
"""How many times the memory, or time, that was not enough another worker must have to be worth a try."""


def clearly_more(has: float, lacked: float) -> bool:
    """Return whether an amount of memory or time is worth a try where another was not enough; 0: not known."""
    return has > lacked * MORE > 0


def _cgroups() -> list[Path]:
    """Return this process's control group and those it lies in, innermost first."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    places = [ROOT / line.split(":", 2)[2].lstrip("/") for line in lines if line.startswith("0::")]
    return [folder for place in places for folder in (place, *place.parents) if folder.is_relative_to(ROOT)]


def machine_memory() -> int:
    """Return the bytes of memory that processes here may use together, 0 where nothing says it."""
    limits = []
    with contextlib.suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder in _cgroups():
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            limits.append(int((folder / "memory.max").read_text()))
    return min(limits, default=0)


def gpu_memory(device: str) -> int:
    """Return the bytes of a GPU's memory by the number or identifier in CUDA_VISIBLE_DEVICES, 0 where unknown."""
    try:
        import pynvml

        pynvml.nvmlInit()
        by_number = device.isdigit()
        find = pynvml.nvmlDeviceGetHandleByIndex if by_number else pynvml.nvmlDeviceGetHandleByUUID
        return int(pynvml.nvmlDeviceGetMemoryInfo(find(int(device) if by_number else device)).total)
    except Exception:  # whatever keeps the driver from answering, it is not known
        return 0


def oom_kills() -> int:
    """Return how many processes the kernel has ended for want of memory, here or in this machine, as it counts them."""
    counted = 0
    for file in [Path("/proc/vmstat"), *(folder / "memory.events" for folder in _cgroups()[:1])]:
        with contextlib.suppress(OSError, ValueError):
            counted += sum(
                int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill ")
            )
    return counted


def forget_peak() -> None:
    """Start the measurement of this process's peak memory anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Return the most bytes of memory this process has had since `forget_peak`, 0 where unknown."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError, StopIteration):
        return 0
