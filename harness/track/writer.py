"""The writer of pages: from a stage's lives to what their runs say, from the store alone and always the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.states import EARLY, FAILED, State
from harness.store import Artifact, Folder, Result, Store, digest
from harness.track.about import About
from harness.track.lives import Life, lives_of, rows_of_life
from harness.track.page import ALIAS, Page, Reference, plain, run_id

VERSION = 1
SUPERSEDED = "superseded"
TYPES = {"mask": "mask", "rescale": "scales", "train": "ticket"}
"""Kind of stage -> the type of its artifact."""


@dataclass
class Writer:
    """Makes the pages of stages; remembers which run an artifact came from."""

    store: Store
    project: Callable[[About], str]
    artifacts: str
    """reference, upload or none."""
    turns: Mapping[str, int] = field(default_factory=dict)
    """Run id without a turn -> how often it was begun anew."""
    _runs: dict[str, dict[str, str]] = field(default_factory=dict)

    def pages(self, about: About, state: State | None, known: Sequence[str] = ()) -> list[Page]:
        """Return the pages of a stage that is in a state, or done where that is None.

        `known`: the runs that it was given before; one that is no more of its lives is told as superseded.
        """
        folder = self.store.folder(about.stage.kind, about.stage.key)
        lives = lives_of(folder)
        self._runs[about.stage.key] = {
            life.result.artifact.sha256: self._id(about.stage.key, life) for life in lives if life.result
        }
        pages = [self._page(about, folder, life, state) for life in lives if self._shown(about, life, state)]
        there = {page.id for page in pages}
        return [*(self._lost(about, run) for run in known if run not in there), *pages]

    def _id(self, key: str, life: Life) -> str:
        plain_id = run_id(key, life.first)
        return run_id(key, life.first, self.turns.get(plain_id, 0))

    def _shown(self, about: About, life: Life, state: State | None) -> bool:
        if life.result or life.end:
            return True
        return life.current and about.stage.kind == "train" and state is not None

    def _page(self, about: About, folder: Folder, life: Life, state: State | None) -> Page:
        mood, tags = _mood(life, state), list(about.tags)
        if not life.current:
            tags.append(SUPERSEDED)
        elif state is not None and state.name == EARLY:
            tags.append(EARLY)
        summary = _results(about, life.result) if life.result else {}
        notes = list(about.commands)
        if mood == "failed":
            failure = _failure(life, state if life.current else None)
            log = folder.attempt(life.last) / "log"
            notes += [f"failed ({failure['cause']}): {failure['message']}", *([f"log: {log}"] if log.exists() else [])]
            summary |= {"failure": failure}
        links = self._links(about, life.result)
        again = "" if life.first == 1 and life.current else f" (from attempt {life.first})"
        return Page(
            self._id(about.stage.key, life),
            self.project(about),
            f"{about.name}{again}",
            about.group,
            about.stage.kind,
            sorted(tags),
            "\n".join(notes),
            about.config | self._whose(life, links),
            [_row(row) for row in rows_of_life(folder, life)] if about.stage.kind == "train" else [],
            _sound(summary),
            mood,
            self._artifact(about, folder, life.result) if life.result else None,
            self._used(about, life.result) if life.result else [],
        )

    @staticmethod
    def _whose(life: Life, links: Mapping[str, Any]) -> dict[str, Any]:
        kept = "current" if life.current else SUPERSEDED
        return {"life": kept, "generation": life.first, **({"uses": links} if links else {})}

    def _lost(self, about: About, run: str) -> Page:
        """Return what is said of a run whose attempts count no more, and whose rows are left as they are."""
        tags, config = sorted([*about.tags, SUPERSEDED]), {**about.config, "life": SUPERSEDED}
        name, notes = f"{about.name} (given up)", "\n".join(about.commands)
        words = (name, about.group, about.stage.kind, tags, notes, config)
        return Page(run, self.project(about), *words, [], {}, "stopped", gone=True)

    def _links(self, about: About, result: Result | None) -> dict[str, Any]:
        """Return the runs of the stages that this one is made from, with the artifacts that were read."""
        links = {}
        for role, key in about.parents.items():
            sha256 = str(result.parents.get(key, "")) if result else ""
            runs = self._runs_of(role, key, about)
            run = runs.get(sha256) or next(reversed(runs.values()), "")
            links[role] = {"key": key, "run": run, **({"sha256": sha256} if sha256 else {})}
        return links

    def _runs_of(self, role: str, key: str, about: About) -> dict[str, str]:
        if key not in self._runs:
            kind = _kind(role)
            lives = lives_of(self.store.folder(kind, key))
            self._runs[key] = {life.result.artifact.sha256: self._id(key, life) for life in lives if life.result}
        return self._runs[key]

    def _artifact(self, about: About, folder: Folder, result: Result) -> Mapping[str, Any] | None:
        if self.artifacts == "none" or (about.stage.kind == "train" and not about.read):
            return None
        path = folder.path / result.artifact.file
        if not folder.has(Artifact(result.artifact.sha256, result.artifact.bytes)):
            return None
        kind, artifact = about.stage.kind, result.artifact
        name, upload = artifact_name(kind, about.stage.key), self.artifacts == "upload"
        words = (str(path), artifact.sha256, artifact.bytes, about.stage.key, upload)
        return asdict(Reference(name, TYPES[kind], *words))

    def _used(self, about: About, result: Result) -> list[str]:
        return [
            f"{artifact_name(_kind(role), key)}:{result.parents[key][:ALIAS]}"
            for role, key in about.parents.items()
            if self.artifacts != "none" and key in result.parents and self._there(role, key, result.parents[key])
        ]

    def _there(self, role: str, key: str, sha256: str) -> bool:
        """Return whether a parent's artifact is still in the store, so that its run could tell of it."""
        return (self.store.path(_kind(role), key) / f"{sha256}.safetensors").exists()


def _kind(role: str) -> str:
    """Return what kind of stage a parent is by the role it has."""
    return role if role in ("mask", "rescale") else "train"


def artifact_name(kind: str, key: str) -> str:
    """Return the name of a stage's artifact."""
    return f"{TYPES[kind]}-{key[:ALIAS]}"


def _mood(life: Life, state: State | None) -> str:
    if life.result:
        return "finished"
    if not life.current:
        return "failed" if life.end else "stopped"
    if state is None or state.name == EARLY:
        return "finished"
    if state.name in FAILED or (life.end or {}).get("outcome") in FAILED:
        return "failed"
    return "running" if state.name == "running" else "stopped"


def _failure(life: Life, state: State | None) -> dict[str, str]:
    end = life.end or {}
    cause = (state.cause if state else "") or str(end.get("cause", end.get("outcome", "unknown")))
    return {"cause": cause, "message": (state.detail if state else "") or str(end.get("message", ""))}


def _results(about: About, result: Result) -> dict[str, Any]:
    """Return all that a table may show of a result, what it was made on and with, and where it lies."""
    metrics = {plain(name): _scalar(value) for name, value in result.metrics.items() if not isinstance(value, dict)}
    reported = result.metrics.get(about.facts.protocol.get("report", "test@last"))
    return {
        **metrics,
        **({"accuracy": reported} if reported is not None else {}),
        "edition": result.edition,
        "artifact": result.artifact.sha256,
        "stamp": dict(result.stamp),
        "provenance": dict(result.provenance),
    }


def _scalar(value: Any) -> Any:
    return len(value) if isinstance(value, list) else value


def _row(row: Mapping[str, Any]) -> dict[str, float]:
    return {plain(name): value * 1 for name, value in row.items() if isinstance(value, int | float)}


def _sound(value: Any) -> Any:
    """Return a value that JSON has, and that wandb keeps: without what is no number, and without what is empty."""
    if isinstance(value, Mapping):
        inner = {str(name): _sound(part) for name, part in value.items()}
        return {name: part for name, part in inner.items() if part is not None and part != {}}
    if isinstance(value, list | tuple):
        return [_sound(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def signature(about: About, writer: Writer, of: Any) -> str:
    """Return a hash that changes whenever a stage's pages may: its words, its project, its state or result."""
    said = [
        VERSION,
        writer.project(about),
        writer.artifacts,
        about.config,
        about.tags,
        about.name,
        about.group,
        about.commands,
        about.read,
        of,
    ]
    return digest(said)[:16]
