"""The rows of a training, one an epoch, as its attempts left them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from harness.store import Folder

CHECK = "crc32"
"""The checksum of a row; those that earlier versions wrote have none."""


def rows_of(folder: Folder) -> list[dict[str, Any]]:
    """Return a training's rows, an epoch each, of the newest attempt that has any."""
    for generation in range(folder.generation, 0, -1):
        if rows := list(rows_of_attempt(folder, generation)):
            return rows
    return []


def rows_of_attempt(folder: Folder, generation: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one attempt, which are those of the checkpoint it went on from and its own."""
    try:
        data = (folder.attempt(generation) / "metrics.jsonl").read_bytes()
    except OSError:
        return
    for line in data.splitlines():
        try:
            row = dict(json.loads(line))
        except (ValueError, TypeError, RecursionError):  # torn by the end of its process, or damaged
            return
        if row.pop(CHECK, None) not in (None, _check(row)):
            return  # a row is an epoch by its place: none after a damaged one is in its own
        yield row


def line_of(row: Mapping[str, Any]) -> str:
    """Return a row as a line of metrics.jsonl, its checksum last."""
    return json.dumps({**row, CHECK: _check(row)}) + "\n"


def _check(row: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(row, sort_keys=True).encode()):08x}"
