"""Files that carry their own checksum: the plan, and what is remembered beside the results and can be made again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.store import write_whole

BEFORE, BETWEEN = b'{"checksum":"', b'","body":'


def seal(body: Mapping[str, Any]) -> bytes:
    """Return a mapping as a file's bytes: JSON, with the checksum of all that follows it first."""
    text = json.dumps(body, separators=(",", ":")).encode()
    return BEFORE + hashlib.sha256(text).hexdigest().encode() + BETWEEN + text + b"}"


def unseal(data: bytes) -> dict[str, Any]:
    """Return what was sealed. Raises ValueError where any of it was changed or is missing."""
    start = len(BEFORE)
    told, text = data[start : start + 64], data[start + 64 + len(BETWEEN) : -1]
    if hashlib.sha256(text).hexdigest().encode() != told:
        raise ValueError("its checksum differs")
    body: dict[str, Any] = json.loads(text)
    return body


def read_note(path: Path) -> dict[str, Any] | None:
    """Return what `seal` wrote and can be made again; None where it is gone, damaged, or cannot be read."""
    try:
        return unseal(path.read_bytes())
    except (OSError, ValueError):
        return None


def keep_note(path: Path, body: Mapping[str, Any]) -> None:
    """Write down what can be made again; where the store cannot be written, it is made again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, seal(body))
