"""One page to browse offline: tables whose numbers lead to their cells, figures, and everything known of every cell."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.catalog import METRICS
from harness.report.frame import Frame, Line
from harness.report.grids import Grid
from harness.report.identity import NONE
from harness.report.rerun import COMMANDS, only
from harness.store import Store, canonical

RESOURCES = Path(__file__).parent / "page"
TAIL = 4096
"""Bytes of a log's end that are shown."""
SHOWN_CURVES = ("train_loss", "train_accuracy", "dev_accuracy")
NO_VALUE = 65535
"""In place of a step of a curve: nothing was measured."""
OWN = (
    "seconds",
    "seconds_of_all_attempts",
    "device_seconds",
    "first_step_after",
    "writing_seconds",
    "peak_memory",
    "device_memory",
    "resumed",
    "resumed_at_step",
    "attempts_untold",
    "generation",
    "finished",
    "host",
    "job",
)
"""What provenance says of one result alone."""


class Shared:
    """Values that many cells have, each written once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.known: dict[bytes, int] = {}

    def number(self, value: Any) -> int:
        """Return the number of a value."""
        name = canonical(value)
        if name not in self.known:
            self.known[name] = len(self.values)
            self.values.append(value)
        return self.known[name]


class Curves:
    """Learning curves of all cells as one array of 16-bit steps."""

    def __init__(self) -> None:
        self.steps = array("H")

    def add(self, values: Sequence[float | None]) -> dict[str, float]:
        """Append a curve; return where it lies and what its smallest and largest value are."""
        there = [value for value in values if value is not None]
        low, high = min(there, default=0.0), max(there, default=0.0)
        at, before = len(self.steps), 0
        for value in values:
            if value is None:
                self.steps.append(NO_VALUE)
                continue
            step = round((value - low) / (high - low) * (NO_VALUE - 1)) if high > low else 0
            self.steps.append((step - before) % NO_VALUE)
            before = step
        return {"at": at, "n": len(values), "low": low, "high": high}


def page(
    name: str,
    summary: str,
    grids: Sequence[Grid],
    frame: Frame,
    figures: Sequence[tuple[str, bytes]],
    store: Store,
    files: Mapping[str, str],
    option: str = "",
) -> str:
    """Return the page, which asks for nothing that is not in it.

    `figures`: title and SVG; `files`: sweep -> its file, quoted for a shell; `option`: what names the store.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    style, script = ((RESOURCES / f).read_text() for f in ("page.css", "page.js"))
    curves = Curves()
    body = {**_body(grids, frame, curves, store), "files": dict(files), "store": option}
    template = Environment(autoescape=True, trim_blocks=False).from_string((RESOURCES / "page.html").read_text())
    return template.render(
        name=name,
        summary=summary,
        grids=grids,
        figures=[{"title": title, "svg": base64.b64encode(svg).decode()} for title, svg in figures],
        style=Markup(style),  # noqa: S704 - the project's own file
        script=Markup(script),  # noqa: S704 - the project's own file
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_packed(json.dumps(body, separators=(",", ":"), allow_nan=False).encode()),
        curves=_packed(_little(curves.steps)),
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def _little(steps: array[int]) -> bytes:
    """Return 16-bit numbers as browsers read them, the lower byte first."""
    import sys

    if sys.byteorder == "big":
        steps.byteswap()
    return steps.tobytes()


def _body(grids: Sequence[Grid], frame: Frame, curves: Curves, store: Store) -> dict[str, Any]:
    shared, logs = Shared(), Shared()
    places = {id(line): n for n, line in enumerate(frame.lines)}
    names = [name for name in METRICS if any(line.metrics.get(name) is not None for line in frame.lines)]
    return {
        "tables": [
            {
                "name": grid.name,
                "columns": [", ".join(filter(None, column)) for column in grid.column_keys],
                "entries": [[_members(grid, row, c, places) for c in grid.column_keys] for row in grid.row_keys],
            }
            for grid in grids
        ],
        "axes": {axis: _axis([line.axis(axis) for line in frame.lines]) for axis in frame.axes},
        "value": [line.value for line in frame.lines],
        "metrics": {name: [_scalar(line.metrics.get(name)) for line in frame.lines] for name in names},
        "cells": [_cell(line, shared, logs, curves, store) for line in frame.lines],
        "shared": shared.values,
        "logs": logs.values,
        "commands": COMMANDS,
    }


def _members(grid: Grid, row: tuple[str, ...], column: tuple[str, ...], places: Mapping[int, int]) -> list[int]:
    """Return the cells behind a number, those of the differences' other side after its own."""
    entry = grid.entry(row, column)
    lines = [*entry.lines, *(pair.base for pair in entry.pairs)]
    return list(dict.fromkeys(places[id(line)] for line in lines if id(line) in places))


def _axis(labels: Sequence[str]) -> dict[str, Any]:
    values = list(dict.fromkeys(labels))
    at = {label: n for n, label in enumerate(values)}
    return {"values": values, "at": [at[label] for label in labels]}


def _scalar(value: Any) -> Any:
    return len(value) if isinstance(value, list) else value


def _cell(line: Line, shared: Shared, logs: Shared, curves: Curves, store: Store) -> dict[str, Any]:
    measured = line.measured
    said = dict(measured.provenance) if measured else {}
    own = {name: said.pop(name) for name in OWN if name in said}
    ghosts = [n for n, alive in enumerate(measured.curves.get("ghosts", ()), 1) if alive] if measured else []
    identity = {n: getattr(line.identity, n) for n in ("content", "mask", "theta0", "scales", "order")}
    return {
        "key": line.key,
        "name": line.short,
        "sweep": line.sweep,
        "reason": line.reason,
        "cause": line.cause,
        "log": logs.number(_tail(store, line.log)) if line.log else None,
        "only": only(line),
        "identity": {name: value for name, value in identity.items() if value and value != NONE},
        "protocol": shared.number({**line.facts.protocol, "dev": line.facts.dev}),
        "stamp": shared.number(measured.stamp) if measured else None,
        "provenance": shared.number(said) if measured else None,
        "own": own,
        "curves": {
            name: curves.add(values)
            for name, values in (measured.curves.items() if measured else ())
            if name in SHOWN_CURVES
        },
        "ghosts": max(ghosts, default=0),
    }


def _tail(store: Store, log: str) -> str:
    try:
        with (store.root / log).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
