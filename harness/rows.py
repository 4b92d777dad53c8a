"""The rows of a training, one an epoch, as its attempts left them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from harness.store import Folder


def rows_of(folder: Folder) -> list[dict[str, Any]]:
    """Return a training's rows, an epoch each, of the newest attempt that has any."""
    for generation in range(folder.generation, 0, -1):
        if rows := list(rows_of_attempt(folder, generation)):
            return rows
    return []


def rows_of_attempt(folder: Folder, generation: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one attempt, which are those of the checkpoint it went on from and its own."""
    try:
        text = (folder.attempt(generation) / "metrics.jsonl").read_text(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # torn by the end of its process: what follows is another attempt's
            return
        if not isinstance(row, dict):
            return
        yield row
