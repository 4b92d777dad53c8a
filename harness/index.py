"""What stands where in a sweep, from few file operations: an index, which may be lost, remembers what is finished."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.claims import Observer, Owner
from harness.plan import Plan, Stage
from harness.sealed import keep_note, read_note
from harness.states import State, state_of
from harness.store import Artifact, Folder, Result, Store

INDEX_VERSION = 3
A_LOOK = 4
"""File operations for a folder that is looked into: its listing, the newest result or end, the claim twice."""


@dataclass(frozen=True)
class Done:
    """What the index holds of a finished stage."""

    edition: int
    sha256: str
    parents: tuple[str, ...]
    """The parents' artifacts that were read, in the order of the plan's roles."""
    seconds: float
    finished: str
    device: str
    bytes: int
    blessed: bool = False
    job: str = ""
    """The scheduler's number of the job that made it, empty where none of this store's did."""
    memory: int = 0
    """The peak of its process's memory, in bytes."""
    gpu_memory: int = 0
    """The same of its GPU's."""
    cpus: float = 0.0
    """The CPUs that the process kept busy, as a mean over its last attempt; 0 where unknown."""

    @classmethod
    def of(cls, stage: Stage, result: Result) -> Done:
        """Return what is kept of a result."""
        said, device = result.provenance, str(result.stamp.get("device", ""))
        worked = float(said.get("cpu_seconds", said.get("device_seconds", 0.0) if device == "cpu" else 0.0))
        return cls(
            result.edition,
            result.artifact.sha256,
            tuple(result.parents.get(key, "") for key in stage.parents.values()),
            float(said.get("seconds_of_all_attempts", said.get("seconds", 0.0))),
            str(said.get("finished", "")),
            device,
            result.artifact.bytes,
            "blessed" in said,
            "" if "blessed" in said or "merged_from" in said else str(said.get("job", "")),
            int(said.get("peak_memory", 0)),
            int(said.get("device_memory", 0)),
            round(worked / max(float(said.get("seconds", 0.0)), 0.001), 3),
        )


@dataclass
class Standing:
    """Every stage of a plan: finished, or its state; and how many file operations it took to know."""

    done: dict[str, Done] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    """The stages that are not finished and that an unfinished cell needs, parents before children."""
    owners: dict[str, tuple[Owner, int, float]] = field(default_factory=dict)
    """Running stage -> its owner, the heartbeats so far, and the time of its claim file's last change."""
    operations: int = 0

    def counts(self, plan: Plan) -> dict[str, Counter[str]]:
        """Return by kind how many stages are in each state."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for key, stage in plan.stages.items():
            if key in self.states:
                found[stage.kind][self.states[key].name] += 1
            elif key in self.done:
                found[stage.kind]["done"] += 1
        return found

    def blocked(self, plan: Plan) -> dict[str, str]:
        """Return the stages that failed or wait for one that did, with that one's key."""
        cause: dict[str, str] = {}
        for key, state in self.states.items():
            if state.over:
                cause[key] = key
            elif above := [cause[p] for p in plan.stages[key].parents.values() if p in cause]:
                cause[key] = above[0]
        return cause


def _path(store: Store, name: str) -> Path:
    return store.root / "cache" / "index" / f"{name}.json"


def stand(plan: Plan, store: Store, observer: Observer, rebuild: bool = False, keep: bool = True) -> Standing:
    """Look at a plan's stages in the store.

    A folder of every kind and first two digits is listed (at most 1,024 listings), what the index knows as finished is
    believed, and only the other folders that exist are looked into, with at most `A_LOOK` operations each and one more
    for every further attempt; a finished parent of an unfinished stage costs one more, for its artifact. With `rebuild`
    nothing is believed; without `keep` the index is left as it is.
    """
    standing = Standing(operations=2)
    known = {} if rebuild else _read(_path(store, plan.name))
    shelves: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, stage in plan.stages.items():
        if key in known:
            standing.done[key] = known[key]
        else:
            shelves[stage.kind, key[:2]].append(key)
    looked: dict[str, Folder] = {}
    for (kind, digits), keys in shelves.items():
        standing.operations += 1
        there = _names(store.root / "stages" / kind / digits)
        for key in keys:
            if key in there:
                looked[key] = store.folder(kind, key)
                if result := looked[key].result():
                    standing.done[key] = Done.of(plan.stages[key], result)
                standing.operations += 2 if result else A_LOOK + max(0, looked[key].generation - 1)
    if keep and any(known.get(key) != found for key, found in standing.done.items()):
        standing.operations += 1
        _write(_path(store, plan.name), {**known, **standing.done})  # a part of a sweep forgets nothing of the rest
    for key in _needed(plan, store, standing):
        folder = looked.get(key)
        if folder is None and key in standing.done:
            standing.operations += A_LOOK
            folder = store.folder(plan.stages[key].kind, key)
        standing.states[key] = state_of(folder, observer) if folder is not None else State("todo", 0)
        if folder is not None and standing.states[key].name == "running":
            standing.owners.update(_owner(key, folder))
    standing.done = {key: done for key, done in standing.done.items() if key not in standing.states}
    return standing


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _needed(plan: Plan, store: Store, standing: Standing) -> Iterator[str]:
    """Yield what must still run, parents first.

    That is what a cell lacks, what was made from a parent's other content, and what has a result but no artifact any
    more that another needs.
    """
    wanted, read = set(plan.leaves), set[str]()
    found = []
    for key in reversed(plan.stages):
        if key not in wanted:
            continue
        done, stage = standing.done.get(key), plan.stages[key]
        parents = stage.parents.values()
        if done is not None and all(
            sha256 == standing.done[parent].sha256
            for parent, sha256 in zip(parents, done.parents, strict=True)
            if parent in standing.done
        ):
            if key not in read:
                continue
            standing.operations += 1
            if (store.path(stage.kind, key) / Artifact(done.sha256, done.bytes).file).exists():
                continue
        found.append(key)
        wanted.update(parents)
        read.update(parents)
    yield from reversed(found)


def _owner(key: str, folder: Folder) -> Iterator[tuple[str, tuple[Owner, int, float]]]:
    path = folder.claim_path(folder.generation)
    with contextlib.suppress(OSError):
        status, owner = path.stat(), Owner.read(path)
        if owner is not None:
            first = len(path.read_bytes().partition(b"\n")[0]) + 1
            yield key, (owner, status.st_size - first, status.st_mtime)


def _read(path: Path) -> dict[str, Done]:
    body = read_note(path) or {}
    if body.get("version") != INDEX_VERSION:
        return {}
    return {
        key: Done(edition, sha256, tuple(parents), *rest)
        for key, (edition, sha256, parents, *rest) in body["done"].items()
    }


def _write(path: Path, done: dict[str, Done]) -> None:
    rows: dict[str, Any] = {key: list(vars(each).values()) for key, each in done.items()}
    keep_note(path, {"version": INDEX_VERSION, "done": rows})
