"""Tuned settings: what a search found best, as a file, and the cells of another sweep that such a file is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import Fault, FileError, short, usable_path
from harness.reading import Document, Path_, read_document

Read = Callable[[str], Callable[[Any], Any]]


class Best(BaseModel):
    """The best of a study's trials: for which cells, which settings, and what it took to find them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: dict[str, str | int | float | bool] = Field(min_length=1)
    set: dict[str, Any] = Field(default_factory=dict)
    trials: int = Field(ge=1)
    """All that were started for these cells, the failed and the stopped ones too."""
    stopped: int = Field(0, ge=0)
    failed: int = Field(0, ge=0)
    value: float
    trial: int = Field(ge=1)


class TunedFile(BaseModel):
    """A file that a search wrote."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    search: str
    metric: str
    mode: str
    searcher: str
    scheduler: str
    seed: int
    space: dict[str, str]
    tuned: list[Best] = Field(min_length=1)


@dataclass(frozen=True)
class Tuned:
    """Settings that cells are given because a search found them best."""

    at: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, Any], ...]
    trials: int
    metric: str
    search: str

    def fits(self, label: Callable[[str], Any]) -> bool:
        """Return whether these settings are for a cell, whose axes `label` tells."""
        return all(str(label(axis)) == wanted for axis, wanted in self.at)


def read_tuned(given: str | Sequence[str], document: Document, folder: Path, reader: Read) -> list[Tuned]:
    """Read the files that a sweep file names under `tuned:`, relative to it. Raises FileError."""
    found = []
    for index, name in enumerate([given] if isinstance(given, str) else given):
        mark = document.mark(("tuned",) if isinstance(given, str) else ("tuned", index))
        try:
            path = usable_path(name, folder)
        except ValueError as error:
            raise FileError([Fault(mark, f"tuned: {error}")]) from None
        if not path.is_file():
            raise FileError([Fault(mark, f"tuned: {short(name)} is no file; a search writes one")])
        found += _entries(read_document(path), reader)
    return found


def _entries(document: Document, reader: Read) -> list[Tuned]:
    try:
        file = TunedFile.model_validate(document.values)
    except ValidationError as error:
        raise FileError([_fault(document, e["loc"], e["msg"]) for e in error.errors()]) from None
    entries, faults = [], []
    for index, best in enumerate(file.tuned):
        settings = []
        for axis, value in best.set.items():
            try:
                settings.append((axis, reader(axis)(value)))
            except ValueError as error:
                faults.append(_fault(document, ("tuned", index, "set", axis), str(error)))
        for axis in best.at:
            try:
                reader(axis)
            except ValueError as error:
                faults.append(_fault(document, ("tuned", index, "at", axis), str(error)))
        at = tuple((axis, str(value)) for axis, value in best.at.items())
        entries.append(Tuned(at, tuple(settings), best.trials, file.metric, file.search))
    if faults:
        raise FileError(faults)
    return entries


def _fault(document: Document, path: Path_, message: str) -> Fault:
    return Fault(document.mark(path), f"{'.'.join(map(str, path))}: {message}")


def for_cell(tuned: Sequence[Tuned], label: Callable[[str], Any], cell: Mapping[str, Any]) -> Tuned | None:
    """Return the tuned settings of a cell. Raises ValueError where two fit, or one sets an axis of the cell."""
    fitting = [each for each in tuned if each.fits(label)]
    if len(fitting) > 1:
        shown = ", ".join(f"{axis}={value}" for axis, value in fitting[1].at)
        raise ValueError(f"two entries are for the same cell, the second where {shown}; make one more particular")
    for axis, _ in fitting[0].settings if fitting else ():
        if axis in cell:
            raise ValueError(f"{axis} is tuned and an axis of the sweep too; leave it out of one of them")
    return fitting[0] if fitting else None
