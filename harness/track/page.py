"""A page: everything that one run of the mirror says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from typing import Any

from harness.store import digest

DIGEST = "page"
"""The key of a run's config and summary that holds its page's digest: they take different ways to the server, and once
it is in both, all that was sent before has come.
"""
ALIAS = 16
"""Hex digits of an artifact's alias: the beginning of its SHA-256."""


@dataclass(frozen=True)
class Reference:
    """An artifact of a stage where the store has it."""

    name: str
    type: str
    path: str
    sha256: str
    bytes: int
    key: str
    upload: bool
    """Whether a copy goes to the server, or only this."""


@dataclass(frozen=True)
class Page:
    """One run: step of a row = its place, from 0."""

    id: str
    project: str
    name: str
    group: str
    job_type: str
    tags: Sequence[str]
    notes: str
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, float]]
    summary: Mapping[str, Any]
    state: str
    """running, stopped, finished or failed."""
    artifact: Mapping[str, Any] | None = None
    uses: Sequence[str] = field(default_factory=list)
    """Artifacts that it was made from, as `name:alias`."""
    gone: bool = False
    """Whether the store has its attempts no more: the rows that it was shown stay as they are."""

    @cached_property
    def body(self) -> dict[str, Any]:
        """Return its fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def digest(self) -> str:
        """Return a hash of all of it."""
        return digest(self.body)[:16]

    @property
    def final(self) -> bool:
        """Return whether it is that of a run that ended."""
        return self.state in ("finished", "failed")

    def prefix(self, rows: int) -> str:
        """Return a hash of its first rows."""
        return digest(self.rows[:rows])[:16]

    @property
    def told(self) -> dict[str, dict[str, Any]]:
        """Return config and summary as they are sent last, the page's digest in both."""
        sign = {DIGEST: self.digest}
        return {"config": {**self.config, **sign}, "summary": {**self.summary, **sign}}


@cache
def plain(name: str) -> str:
    """Return a metric's name in the letters that W&B can filter and sort by: `test@last` becomes `test_last`."""
    return re.sub(r"\W", "_", name)


def run_id(key: str, generation: int, turn: int = 0) -> str:
    """Return a run's id; `turn` counts how often it had to be begun anew because its remote rows were spoilt."""
    return f"{key}-{generation}" + (f"-{turn}" if turn else "")


def without_turn(run: str) -> str:
    """Return a run's id as it was first."""
    return "-".join(run.split("-")[:2])
