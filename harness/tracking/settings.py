"""Which sweeps of a store are mirrored to which W&B project: the `wandb:` blocks of their files, and WANDB_MODE."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, urlsplit

from harness.errors import UserError
from harness.planfile import NEWEST, SavedPlan, plans_in_force, read_plan, sweep_name, sweep_names
from harness.store import Store
from tost.catalog import nearest

MOST_RUNS = 10_000
"""Runs of a project beyond which W&B's pages become slow (its own documentation)."""
MANY_RUNS = 8_000
"""Runs of a plan from which the user is told of that."""
DISABLED, OFFLINE = "disabled", "offline"


@dataclass(frozen=True)
class Project:
    """A project on a W&B server."""

    base_url: str
    """The server's address as wandb is given it."""
    entity: str
    name: str

    @property
    def path(self) -> str:
        """Return entity and project as W&B's API names them."""
        return f"{self.entity}/{self.name}"

    def folder(self, store: Store) -> Path:
        """Return the mirror's folder in a store: its lease, its log, the addresses of reports."""
        name = "--".join([urlsplit(self.base_url).netloc, self.entity, self.name])
        return store.root / "wandb" / re.sub(r"[^A-Za-z0-9._-]", "_", name)

    def __str__(self) -> str:
        site = self.base_url.replace("//api.wandb.ai", "//wandb.ai").rstrip("/")
        return f"{site}/{quote(self.entity)}/{quote(self.name)}"


@dataclass(frozen=True)
class Settings:
    """The `wandb:` block of a sweep; the sweeps of a store that name the same project are mirrored together."""

    project: str
    entity: str | None
    """None: the default entity of whoever's key is used."""
    mode: str

    def sweeps(self, store: Store) -> list[str]:
        """Return the names of a store's sweeps that name this project, as they are now."""
        same = (self.project, self.entity)
        found = ((name, read_settings(store, name)) for name in sweep_names(store))
        return [name for name, one in found if one and one.mode != DISABLED and (one.project, one.entity) == same]

    def plans(self, store: Store, log: Callable[[str], None]) -> list[SavedPlan]:
        """Return the plans of its sweeps; one that cannot be read is logged and left out."""
        return [saved for name in self.sweeps(store) for saved in _plans(store, name, log)]


def read_settings(store: Store, sweep: str, log: Callable[[str], None] = lambda message: None) -> Settings | None:
    """Return what a sweep's newest plan says of W&B; None where it says nothing. Unreadable plans are logged."""
    block = next((saved.wandb for saved in _plans(store, sweep, log) if saved.wandb), None)
    return Settings(str(block["project"]), block.get("entity"), str(block["mode"])) if block else None


def settings_of(store: Store, given: Sequence[str]) -> list[Settings]:
    """Return the settings of some sweeps, named or given by file, or of all; those of one project once.

    Raises UserError for a sweep that the store does not have, or that is not mirrored, and where there is none.
    """
    found: dict[tuple[str, str | None], Settings] = {}
    known = sweep_names(store)
    for name in map(sweep_name, given) if given else known:
        if name not in known:
            there = f"there are {', '.join(known) or 'none'}{nearest(name, known)}"
            raise UserError(f"{name!r} is no sweep of {store.root}; {there}. The sweep command makes one")
        unreadable: list[str] = []
        settings = read_settings(store, name, unreadable.append)
        if settings and settings.mode != DISABLED:
            found.setdefault((settings.project, settings.entity), settings)
        elif unreadable:
            raise UserError(unreadable[0])
        elif given:
            why = "says mode: disabled" if settings else "has no `wandb:` in its file"
            raise UserError(f"{name} {why}; write wandb: {{project: NAME}} and run the sweep command again")
    if not found:
        raise UserError(f"no sweep of {store.root} is to be mirrored; write wandb: {{project: NAME}} in a sweep file")
    return list(found.values())


def switched_off() -> str:
    """Return why the environment lets nothing be sent; empty where it does not say so."""
    mode = os.environ.get("WANDB_MODE", "")
    return f"WANDB_MODE={mode} is set" if mode in (DISABLED, OFFLINE, "dryrun") else ""


def size_warning(project: str, runs: int) -> str:
    """Return what to tell the user of runs that would crowd a project; empty where they do not."""
    if runs < MANY_RUNS:
        return ""
    slow = f"W&B's pages become slow beyond {MOST_RUNS:,}"
    return f"{runs:,} runs in the W&B project {project}; {slow}: split the file into two, with a project each."


def _plans(store: Store, name: str, log: Callable[[str], None] = lambda message: None) -> Iterator[SavedPlan]:
    """Yield the plans of a sweep: those of its parts, which are newer, before that of the whole."""
    for path in sorted(plans_in_force(store, name), key=lambda path: path.name == NEWEST):
        try:
            yield _read_once(path, path.stat().st_mtime_ns)
        except UserError as error:
            log(f"wandb: not mirrored: {error}")


@lru_cache(maxsize=16)
def _read_once(path: Path, modified: int) -> SavedPlan:
    """Return a plan, read anew where its file was replaced."""
    return read_plan(path)
