"""A checked sweep: every value read, every condition compiled, ready to be expanded into cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.declared import Claim, Table
from harness.errors import Fault, FileError, usable_path
from harness.expressions import Condition
from harness.form import SweepFile, sentence
from harness.names import Names
from harness.protocol import Protocol, make_protocol
from harness.reading import Document
from harness.search import Hunt
from harness.store import file_sha256
from harness.tuned import Tuned

MOST_CELLS = 20_000_000


Axes = dict[str, list[Any] | range]


@dataclass(frozen=True)
class Stated:
    """A claim as read: the labels that it compares, the first with the second, and its condition."""

    claim: Claim
    first: str
    second: str
    where: Condition | None = None


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file: every value read, every condition compiled."""

    file: SweepFile
    document: Document
    names: Names
    preset: str
    overrides: Mapping[str, Any]
    blocks: list[Axes]
    rules: list[tuple[Condition, dict[str, Any]]]
    excludes: list[Condition]
    search: Hunt | None = None
    tuned: Sequence[Tuned] = ()
    tables: Sequence[Table] = ()
    """The file's, with baselines as labels are written."""
    claims: Sequence[Stated] = ()
    _protocols: dict[Any, Protocol] = field(default_factory=dict)

    def foreign_files(self) -> Iterator[tuple[str, Path, str]]:
        """Yield every file of foreign numbers: as written, where it lies, and its SHA-256."""
        for written in self.file.baselines:
            path = usable_path(written, self.names.folder)
            yield written, path, file_sha256(path)

    @property
    def name(self) -> str:
        """Return the sweep's name, the folder of its plan and report."""
        return self.file.name

    def size(self) -> int:
        """Return the number of grid points before exclusion and uniting, without making them."""
        return sum(math.prod(len(values) for values in block.values()) for block in self.blocks)

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield the grid's points as axis -> value, before any rule."""
        for block in self.blocks:
            for values in itertools.product(*block.values()):
                yield dict(zip(block, values, strict=True))

    def protocol(self, preset: str, overrides: Mapping[str, Any]) -> Protocol:
        """Return a resolved protocol, the same object for the same settings.

        Raises FileError for a combination that cannot be.
        """
        key = (preset, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(overrides.items())))
        if key not in self._protocols:
            try:
                self._protocols[key] = make_protocol(preset, overrides)
            except ValidationError as error:
                faults = [Fault(self.document.mark(("protocol",)), f"protocol: {said}") for said in complaints(error)]
                raise FileError(faults) from None
        return self._protocols[key]


def complaints(error: ValidationError) -> list[str]:
    """Return what is wrong with a protocol, one sentence a field."""
    said = []
    for e in error.errors():
        field = f"{e['loc'][0]}: " if e["loc"] and e["type"] not in ("extra_forbidden", "value_error") else ""
        said.append(field + sentence(e))
    return said
