"""Where a sweep's runs go: an entity and a project of W&B, the project's shards, and the mirror's own folder."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from harness.errors import UserError
from harness.planfile import NEWEST, SavedPlan, plans_in_force, read_plan, sweep_name, sweep_names
from harness.store import Store, publish, read_json
from harness.track.about import About
from tost.catalog import nearest

MOST_RUNS = 10_000
"""Runs of a project beyond which W&B's pages become slow (its own documentation)."""
AXES = ("dataset", "arch")
"""Axes that a project may be cut by: those that every stage has one value of."""


@dataclass(frozen=True)
class Target:
    """A server, an entity and a project, before it is cut into shards."""

    host: str
    """The server's address as wandb is told it; empty where nothing is sent."""
    entity: str
    project: str

    def folder(self, store: Store) -> Path:
        """Return where the mirror keeps what it remembers."""
        name = "--".join(
            [urlsplit(self.host).netloc, self.entity, self.project] if self.host else ["offline", self.project]
        )
        return store.root / "wandb" / re.sub(r"[^A-Za-z0-9._-]", "_", name)

    def url(self, project: str, rest: str = "") -> str:
        """Return the address of a page about one of its projects."""
        site = self.host.replace("//api.wandb.ai", "//wandb.ai").rstrip("/")
        return f"{site}/{quote(self.entity)}/{quote(project)}{rest}"

    def __str__(self) -> str:
        return self.url(self.project) if self.host else self.project


@dataclass(frozen=True)
class Shards:
    """How a project is cut: a project for each combination of some axes' values."""

    project: str
    axes: tuple[str, ...] = ()

    def of(self, about: About) -> str:
        """Return the project of a stage's run."""
        values = (re.sub(r"[^A-Za-z0-9._-]+", "_", about.labels.get(axis, "")) for axis in self.axes)
        return "-".join([self.project, *filter(None, values)])[:128]

    def sizes(self, abouts: Iterable[About]) -> Counter[str]:
        """Return how many runs every project would hold."""
        return Counter(self.of(about) for about in abouts)


def shards_of(folder: Path, project: str, wanted: Sequence[str] | None, abouts: Sequence[About]) -> Shards:
    """Return how a project is cut, decided once and for all when its first run is published.

    Without a wish, by as few axes as keep every project small enough. Raises UserError where none does, or where a
    wish differs from what was decided.
    """
    kept = read_json(folder / "shards.json")
    if kept is not None:
        decided = Shards(project, tuple(kept["axes"]))
        if wanted is not None and tuple(wanted) != decided.axes:
            raise UserError(
                f"wandb: shard_by: {list(wanted)}: the runs of project {project} are cut by "
                f"{list(decided.axes) or 'nothing'} since they were first published; keep that, or name another project"
            )
    else:
        choices = [tuple(wanted)] if wanted is not None else [c for n in range(3) for c in _combinations(n)]
        decided = next((s for c in choices if _largest(s := Shards(project, c), abouts) <= MOST_RUNS), None) or Shards(
            project, choices[-1]
        )
    if (most := _largest(decided, abouts)) > MOST_RUNS:
        raise UserError(_too_many(decided, most, abouts))
    if kept is None:
        folder.mkdir(parents=True, exist_ok=True)
        publish(folder / "shards.json", json.dumps({"axes": decided.axes}).encode())
    return decided


def _combinations(n: int) -> list[tuple[str, ...]]:
    return list(itertools.combinations(AXES, n))


def _largest(shards: Shards, abouts: Sequence[About]) -> int:
    return max(shards.sizes(abouts).values(), default=0)


def _too_many(shards: Shards, most: int, abouts: Sequence[About]) -> str:
    said = f"wandb: a project of {shards.project} would hold {most:,} runs; beyond {MOST_RUNS:,} W&B's pages are slow"
    for choice in (c for n in range(1, 3) for c in _combinations(n)):
        if (largest := _largest(Shards(shards.project, choice), abouts)) <= MOST_RUNS:
            return f"{said}; write shard_by: [{', '.join(choice)}] (at most {largest:,}) and another project"
    return f"{said}; spread the sweeps over several projects"


@dataclass(frozen=True)
class Wish:
    """What sweep files say of one target."""

    project: str
    entity: str | None
    shard_by: Sequence[str] | None
    artifacts: str
    mode: str
    names: tuple[str, ...]


def wishes(store: Store, names: Sequence[str] = ()) -> list[Wish]:
    """Return what the sweeps of a store say of W&B, those of one target together; of all targets, or the named sweeps'.

    Raises UserError for a named sweep that says nothing, and where two of one target contradict each other.
    """
    known = sweep_names(store)
    asked = [sweep_name(name) for name in names]
    for name in asked:
        if name not in known:
            there = f"there are {', '.join(known) or 'none'}{nearest(name, known)}"
            raise UserError(f"{name!r} is no sweep of {store.root}; {there}. The sweep command makes one")
    found: dict[tuple[str | None, str], Wish] = {}
    for name in known:
        said = _said(store, name)
        if not said or said["mode"] == "disabled":
            if name in asked:
                why = "says mode: disabled" if said else "has no `wandb:` in its file"
                raise UserError(f"{name} {why}; write wandb: {{project: NAME}} and run the sweep command again")
            continue
        place = (said.get("entity"), said["project"])
        wish = Wish(place[1], place[0], said.get("shard_by"), said["artifacts"], said["mode"], (name,))
        found[place] = _joined(found[place], wish) if place in found else wish
    return [wish for wish in found.values() if not asked or set(asked) & set(wish.names)]


def renewed(store: Store, wish: Wish) -> Wish:
    """Return what the sweeps of a wish's target say now: others may have come."""
    same = (found for found in wishes(store) if (found.entity, found.project) == (wish.entity, wish.project))
    return next(same, wish)


def _joined(had: Wish, more: Wish) -> Wish:
    """Return the wish of two sweeps of one target. Raises UserError where they cut it in two ways."""
    if None not in (had.shard_by, more.shard_by) and had.shard_by != more.shard_by:
        both = f"{had.names[0]} and {more.names[0]}"
        raise UserError(f"wandb: {both} cut project {had.project} in two ways; give them the same shard_by")
    shard_by = had.shard_by if had.shard_by is not None else more.shard_by
    most = max((had.artifacts, more.artifacts), key=("none", "reference", "upload").index)
    mode = max((had.mode, more.mode), key=("auto", "online", "offline").index)
    return Wish(had.project, had.entity, shard_by, most, mode, (*had.names, *more.names))


def _plans(store: Store, name: str, tell: Callable[[str], None] = lambda said: None) -> Iterator[SavedPlan]:
    """Yield the plans that a sweep stands for: those of parts, which are newer, before that of the whole."""
    for path in sorted(plans_in_force(store, name), key=lambda path: path.name == NEWEST):
        try:
            yield read_plan(path)
        except UserError as error:
            tell(f"wandb: not mirrored: {error}")


def _said(store: Store, name: str) -> Mapping[str, Any]:
    return next((saved.wandb for saved in _plans(store, name) if saved.wandb), {})


def plans_of(store: Store, wish: Wish, tell: Callable[[str], None] = lambda said: None) -> list[SavedPlan]:
    """Return the plans of the sweeps of a target; one that cannot be read is told of, and left out."""
    return [saved for name in wish.names for saved in _plans(store, name, tell)]
