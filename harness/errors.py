"""Errors meant for the user: no traceback, a message that says what was given, what is allowed and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_SHOWN = 20


class UserError(Exception):
    """A mistake the user can mend; commands print its text and exit with code 2."""


class SchedulerUnavailable(Exception):
    """The scheduler does not answer: no mistake of the user's. Commands print its text and exit with code 3."""


@dataclass(frozen=True)
class Mark:
    """A place in a file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a sweep file, and where."""

    mark: Mark | None
    message: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.message}" if self.mark else self.message


class FileError(UserError):
    """All that is wrong with a sweep file, one line a fault."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = list(dict.fromkeys(faults))
        lines = [printable(str(fault)) for fault in self.faults[:MOST_SHOWN]]
        if len(self.faults) > MOST_SHOWN:
            lines.append(f"... and {len(self.faults) - MOST_SHOWN} more")
        super().__init__("\n".join(lines))


def short(value: object, limit: int = 60) -> str:
    """Return a value as a message quotes it: its repr, cut where it is long."""
    if value is None:
        return "null"
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def usable_path(text: str, folder: Path) -> Path:
    """Return a path, relative to a folder, made absolute. Raises ValueError for one that no file can have."""
    try:
        path = (folder / Path(text).expanduser()).resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{short(text)} is no usable path: {getattr(error, 'strerror', None) or error}") from None
    return path


def printable(text: str, limit: int = 400) -> str:
    """Return text safe for a terminal: control characters escaped, very long lines cut."""
    text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return "\n".join(line if len(line) <= limit else line[: limit - 4] + " ..." for line in text.split("\n"))
