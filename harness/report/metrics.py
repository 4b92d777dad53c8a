"""What a table can show: the measured numbers of a training, how they are called and printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.catalog import METRICS
from harness.report.frame import Line

SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def percent(value: float) -> str:
    """Return a number in percent as tables print it."""
    return f"{value:.2f}"


def count(value: float) -> str:
    """Return a count with a unit prefix."""
    for size, prefix in SCALES:
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Metric:
    """A number of a result: where it comes from, how it is printed, and whether it is compared with the baseline's."""

    name: str
    read: Callable[[Line], float | None]
    show: Callable[[float], str]
    compared: bool = False


def metric(name: str) -> Metric:
    """Return one of the catalog's metrics by name."""
    if name == "accuracy":
        return Metric(name, lambda line: line.value, percent, compared=True)
    share = METRICS[name]

    def read(line: Line) -> float | None:
        value: Any = line.metrics.get(name)
        if isinstance(value, list):
            return len(value)
        return None if value is None else value * (100 if share == "share" else 1)

    return Metric(name, read, count if share == "count" else percent, compared=share == "accuracy")
