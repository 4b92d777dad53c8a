"""What every section shares: what it is given, spreads of what it measured, the machine, tables."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
"""One line of a section's table: what was measured, how, and the figures."""


@dataclass(frozen=True)
class Given:
    """What a section runs with."""

    device: str = "cpu"
    threads: int = 1
    seconds: float = 3.0
    """How long one measurement goes on, where it goes by time."""
    repeats: int = 3
    small: bool = False
    """Whether to try the section out: everything is run, on little, and the figures mean nothing."""


class Section(Protocol):
    """A module of this folder that `python -m bench` runs."""

    def measure(self, given: Given) -> Iterator[Row]:
        """Yield rows as they are measured."""


def spread(values: Sequence[float]) -> Row:
    """Return the median, the least and the most of some measurements, and how many they are."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "n": len(values)}


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    """Return the seconds of some calls; one before them is not counted."""
    work()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken


def machine(device: str) -> Row:
    """Return what the figures were measured on."""
    import torch

    from harness.provenance import commit, driver, source_digest

    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1) if cuda else _memory(),
        "driver": driver() if cuda else None,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "source": source_digest(),
        "commit": commit()[0],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    said = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    named = {name.strip(): value.strip() for name, value in said.items()}
    matrix = ", AMX" if "amx_bf16" in named.get("flags", "") else ""
    return named.get("model name", platform.machine()) + matrix


def _memory() -> float:
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def environment(threads: int = 0) -> dict[str, str]:
    """Return the environment of what a section runs: this checkout is the one that is measured."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    told = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "120"}
    return {**told, "OMP_NUM_THREADS": str(threads)} if threads else told


def command(*arguments: str, cwd: Path, **given: Any) -> subprocess.CompletedProcess[str]:
    """Run a module of this checkout to its end and return what it said. Raises CalledProcessError."""
    said = {"cwd": cwd, "env": environment(), "check": True, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, "-m", *arguments], **{**said, **given})


def table(rows: Iterable[Row]) -> str:
    """Return rows as Markdown: a column for every key, a spread as its median and range."""
    shown = [{key: _shown(value) for key, value in row.items()} for row in rows]
    keys = list(dict.fromkeys(key for row in shown for key in row))
    lines = [keys, ["---:" if all(_number(row.get(key, "")) for row in shown) else "---" for key in keys]]
    lines += [[row.get(key, "") for key in keys] for row in shown]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: object) -> str:
    if isinstance(value, Mapping) and "median" in value:
        low, high = _shown(float(value["least"])), _shown(float(value["most"]))
        middle = _shown(float(value["median"]))
        return middle if value["n"] == 1 else f"{middle} ({low}-{high})"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


def _number(text: str) -> bool:
    return not text or text[0].isdigit()
