"""What the fake Weights & Biases server remembers: runs, artifacts, saved views."""

from __future__ import annotations

import base64
import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.track.graphql import Node, Refused

UNSTABLE = ("_timestamp", "_runtime", "_wandb")
COLUMNS = {
    "name": "id",
    "displayName": "display_name",
    "jobType": "job_type",
    "createdAt": "created_at",
    "heartbeatAt": "heartbeat_at",
}


def opaque(*parts: object) -> str:
    """Return an id as the real server forms them."""
    return base64.b64encode(":".join(map(str, parts)).encode()).decode()


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class RemoteRun:
    """A run as the server has it; `lines`, `events` and `output` are what was streamed, by offset."""

    entity: str
    project: str
    id: str
    display_name: str = ""
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    description: str | None = None
    sweep: str | None = None
    state: str = "running"
    tags: list[str] = field(default_factory=list)
    settings: Node = field(default_factory=dict)
    summary: Node = field(default_factory=dict)
    lines: dict[int, str] = field(default_factory=dict)
    events: dict[int, str] = field(default_factory=dict)
    output: dict[int, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    created_at: str = field(default_factory=now)
    heartbeat_at: str = field(default_factory=now)
    writes: int = 0
    conflicting: list[Any] = field(default_factory=list)
    steps: dict[int, int] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.entity, self.project, self.id

    @property
    def storage_id(self) -> str:
        return opaque("Run", "v1", self.id, self.project, self.entity)

    @property
    def config(self) -> Node:
        """The configuration as `run.config` has it."""
        return {
            name: item["value"] if isinstance(item, dict) and "value" in item else item
            for name, item in self.settings.items()
            if name != "_wandb"
        }

    @property
    def history(self) -> list[Node]:
        """The rows, in the order of their offsets."""
        return [json.loads(self.lines[offset]) for offset in sorted(self.lines)]

    def place(self, offset: int, lines: Sequence[str]) -> None:
        """Put history lines where they belong, and note any that contradict what was there."""
        for at, line in enumerate(lines, offset):
            step = json.loads(line).get("_step")
            if at in self.lines and stable(self.lines[at]) != stable(line):
                self.conflicting.append({"offset": at, "was": self.lines[at], "now": line})
            if step is not None and self.steps.setdefault(step, at) != at:
                self.conflicting.append({"step": step, "offsets": [self.steps[step], at]})
            self.lines[at] = line

    def column(self, path: str) -> Any:
        """Return what a filter or an order calls `path`; None where there is nothing."""
        head, _, rest = path.partition(".")
        if head in ("config", "summary", "summary_metrics", "summaryMetrics"):
            tree = self.config if head == "config" else self.summary
            return reach(tree, rest.removesuffix(".value") if head == "config" else rest)
        return getattr(self, COLUMNS.get(path, path), None)


@dataclass
class RemoteArtifact:
    """One version of an artifact; `entries` is its manifest's contents by path."""

    entity: str
    project: str
    type: str
    name: str
    id: str
    digest: str
    algorithm: str = "MANIFEST_MD5"
    version: int | None = None
    state: str = "PENDING"
    client_id: str | None = None
    description: str | None = None
    metadata: Node = field(default_factory=dict)
    aliases: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    manifest: str = ""
    logged_by: list[tuple[str, str, str]] = field(default_factory=list)
    used_by: list[tuple[str, str, str]] = field(default_factory=list)
    created_at: str = field(default_factory=now)

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.entity, self.project, self.type, self.name


@dataclass
class RemoteView:
    """A report (type "runs") or a workspace (type "project-view"); `spec` is its JSON text."""

    id: str
    entity: str
    project: str
    type: str
    name: str
    display_name: str
    description: str
    spec: str
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)
    writes: int = 1


def stable(line: str) -> Node:
    return {name: value for name, value in json.loads(line).items() if name not in UNSTABLE}


def reach(tree: Any, path: str) -> Any:
    """Follow a dotted path whose names may have dots of their own."""
    if not path:
        return tree
    if isinstance(tree, Mapping):
        for name in tree:
            if path == name or path.startswith(f"{name}."):
                return reach(tree[name], path[len(name) + 1 :])
    return None


def matches(run: RemoteRun, rule: Any) -> bool:
    """Whether a run passes a MongoDB-style filter."""
    return all(
        all(matches(run, part) for part in want)
        if name == "$and"
        else any(matches(run, part) for part in want)
        if name == "$or"
        else not any(matches(run, part) for part in want)
        if name == "$nor"
        else compares(run.column(name), want)
        for name, want in (rule or {}).items()
    )


def compares(have: Any, want: Any) -> bool:
    """Whether a value passes one column's rule; a list passes with any of its items."""
    if not (isinstance(want, dict) and any(name.startswith("$") for name in want)):
        return have == want or (isinstance(have, list) and want in have)
    tests: dict[str, Callable[[Any], bool]] = {
        "$eq": lambda x: compares(have, x),
        "$ne": lambda x: not compares(have, x),
        "$in": lambda x: any(compares(have, item) for item in x),
        "$nin": lambda x: not any(compares(have, item) for item in x),
        "$gt": lambda x: have is not None and have > x,
        "$gte": lambda x: have is not None and have >= x,
        "$lt": lambda x: have is not None and have < x,
        "$lte": lambda x: have is not None and have <= x,
        "$exists": lambda x: (have is not None) == bool(x),
        "$not": lambda x: not compares(have, x),
        "$regex": lambda x: have is not None and re.search(x, str(have)) is not None,
    }
    if unknown := want.keys() - tests.keys():
        raise Refused(f"unknown filter operators {sorted(unknown)}")
    return all(tests[name](value) for name, value in want.items())


def ordered(runs: list[RemoteRun], order: str | None) -> list[RemoteRun]:
    """Sort as "+created_at" or "-summary_metrics.loss" says; runs without the value come last."""
    path = (order or "created_at").lstrip("+-")
    filled = [run for run in runs if run.column(path) is not None]
    filled.sort(key=lambda run: run.column(path), reverse=(order or "").startswith("-"))
    return filled + [run for run in runs if run.column(path) is None]
