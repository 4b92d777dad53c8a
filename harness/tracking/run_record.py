"""What one W&B run says of a stage: config, history, summary, tags; made from the store alone, and always the same."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from harness.attempts import AttemptChain, attempt_chains, settled_rows
from harness.facts import Facts
from harness.plan import Stage
from harness.planfile import SavedPlan
from harness.report.frame import Line
from harness.report.rerun import COMMANDS, only
from harness.states import EARLY, FAILED, State
from harness.store import Folder, Result, Store, digest

DIGEST = "digest"
"""The key of a run's config and summary that holds its record's digest. They reach the server by different requests:
once it is in both, all that was sent before has come.
"""
SUPERSEDED = "superseded"
LONGEST_TAG, LONGEST_NAME = 64, 128
"""Characters that W&B accepts of a tag, and of a run's or a group's name."""
GRID_AXES = ("dataset", "arch", "mask", "sparsity", "recipe")
SHARED_AXES = ("dataset", "arch", "mask", "ticket_seed")
"""Axes that a shared stage has in common with the cells that use it."""
SEEDS = ("seed", "ticket_seed", "world")
SEED = re.compile(r" (ticket )?seed \d+$")


@dataclass(frozen=True)
class RunRecord:
    """All that is sent of one run. The step of a row of `rows` is its place, from 0."""

    id: str
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
    final: bool
    """Whether nothing more comes: it ended, or another run took its place."""

    @property
    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @cached_property
    def digest(self) -> str:
        """Return a hash of all of it but the notes, which change with the tool and the machine."""
        return digest({**self._fields, "notes": ""})[:16]

    def prefix(self, rows: int) -> str:
        """Return a hash of its first rows."""
        return digest(self.rows[:rows])[:16]

    @property
    def payload(self) -> dict[str, Any]:
        """Return its fields as they are sent; of one that is final, its digest in config and summary."""
        mark = {DIGEST: self.digest} if self.final else {}
        return {**self._fields, "config": {**self.config, **mark}, "summary": {**self.summary, **mark}}


@cache
def metric_name(name: str) -> str:
    """Return a metric's name in letters that W&B can filter and sort by: `test@last` becomes `test_last`."""
    return re.sub(r"\W", "_", name)


def rerun_id(run: str, rerun: int) -> str:
    """Return the id of a run's rerun: rows on the server that are others than the store's cannot be taken back."""
    return f"{run}-{rerun}" if rerun else run


def split_run_id(run: str) -> tuple[str, int]:
    """Return a run's id as it was first, and which rerun of that it is."""
    first, _, rerun = run.rpartition("-")
    return (first, int(rerun)) if "-" in first and rerun.isdecimal() else (run, 0)


@dataclass(frozen=True)
class StageInfo:
    """A stage as the sweeps that want it describe it."""

    stage: Stage
    role: str
    """cell, dense, training (a lottery round, or weights that others start from), mask or rescale."""
    name: str
    group: str
    labels: Mapping[str, str]
    facts: Facts
    commands: tuple[str, ...]
    sweeps: tuple[str, ...] = ()
    parents: Mapping[str, str] = field(default_factory=dict)
    """Role -> key of those parents that have a run of their own."""

    @property
    def tags(self) -> list[str]:
        """Return the sweeps and the axes, by which a project is filtered."""
        axes = [self.labels[axis] for axis in GRID_AXES if axis in self.labels]
        return sorted({shortened(tag, LONGEST_TAG) for tag in (*self.sweeps, self.role, *axes) if tag})

    @property
    def config(self) -> dict[str, Any]:
        """Return the axes and everything that the stage's key is made of."""
        protocol = dict(self.facts.protocol or self.stage.spec.get("protocol", {}))
        return {
            **self.labels,
            **{axis: int(label) for axis, label in self.labels.items() if axis in SEEDS},
            **({"sparsity_share": self.facts.share} if "sparsity" in self.labels else {}),
            **({"parts": list(self.facts.parts)} if "recipe" in self.labels else {}),
            "role": self.role,
            "kind": self.stage.kind,
            "key": self.stage.key,
            "protocol": protocol,
            "spec": {name: value for name, value in self.stage.spec.items() if name != "protocol"},
            "sweeps": list(self.sweeps),
        }


def shortened(text: str, most: int = LONGEST_NAME) -> str:
    """Return a text of at most `most` characters: a longer one loses its middle to a digest of the whole."""
    if len(text) <= most:
        return text
    mark = f"…{digest(text)[:6]}…"
    head = (most - len(mark)) // 2
    return f"{text[:head]}{mark}{text[len(text) - (most - len(mark) - head) :]}"


def stage_infos(plans: Sequence[SavedPlan]) -> dict[str, StageInfo]:
    """Return every stage of some plans that has a run of its own, parents first; the first plan's words win."""
    found: dict[str, StageInfo] = {}
    for saved in plans:
        for key, info in _infos_of_plan(saved).items():
            had = found.get(key, info)
            first = info if had.role == "training" and info.role in ("cell", "dense") else had
            sweeps = tuple(dict.fromkeys([*had.sweeps, saved.plan.name]))
            found[key] = replace(first, sweeps=sweeps)
    return found


def _infos_of_plan(saved: SavedPlan) -> dict[str, StageInfo]:
    plan, file = saved.plan, saved.declared.file or f"{saved.plan.name}.yaml"
    cells: dict[str, Line] = {}
    users: dict[str, Line] = {}
    for cell in saved.cells:
        cells.setdefault(cell.key, Line(dict(zip(saved.axes, cell.labels, strict=True)), cell.facts, cell.key))
    for key, line in cells.items():
        for above in plan.ancestors(key):
            users.setdefault(above, line)
    found = {}
    for key, stage in plan.stages.items():
        if stage.kind == "data":
            continue
        words = {"sweep": plan.name, "file": file, "key": key, "store": ""}
        info = _cell_info(stage, cells[key], words) if key in cells else _shared_info(stage, users.get(key), words)
        parents = {role: parent for role, parent in stage.parents.items() if plan.stages[parent].kind != "data"}
        found[key] = replace(info, parents=parents)
    return found


def _cell_info(stage: Stage, line: Line, words: Mapping[str, str]) -> StageInfo:
    labels = {axis: label for axis, label in line.labels.items() if axis != "sparsity" or not line.dense}
    plain = {axis: label for axis, label in labels.items() if axis not in SEEDS}
    shown = [label for axis, label in plain.items() if axis in GRID_AXES]
    shown += [f"{axis}={label}" for axis, label in plain.items() if axis not in GRID_AXES and label]
    same = digest({"axes": plain, "protocol": dict(line.facts.protocol), "dev": line.facts.dev})
    commands = tuple(command.format(only=only(line), **words) for command in COMMANDS)
    name = shortened(f"{' '.join(shown)} seed {line.axis('seed')}", LONGEST_NAME)
    role = "dense" if line.dense else "cell"
    return StageInfo(stage, role, name, _group(" ".join(shown), same), labels, line.facts, commands)


def _shared_info(stage: Stage, user: Line | None, words: Mapping[str, str]) -> StageInfo:
    labels = {axis: user.axis(axis) for axis in SHARED_AXES} if user else {}
    same = digest({name: value for name, value in stage.spec.items() if name not in ("seed", "ticket_seed")})
    role = "training" if stage.kind == "train" else stage.kind
    group = _group(SEED.sub("", stage.label), same)
    commands = (COMMANDS[-1].format(**words),)
    return StageInfo(stage, role, shortened(stage.label, LONGEST_NAME), group, labels, Facts(), commands)


def _group(words: str, same: str) -> str:
    """Return a group's name: readable, and its own for whatever differs in anything but the seeds."""
    return f"{shortened(words, LONGEST_NAME - 8)} #{same[:6]}"


def run_records(
    store: Store, info: StageInfo, state: State | None, reports_page: str, newest: Callable[[str], str]
) -> list[RunRecord]:
    """Return the records of a stage that is in a state, or done where that is None.

    Args:
        reports_page: the address of the project's reports.
        newest: gives the id of a run's newest rerun.
    """
    folder = store.folder(info.stage.kind, info.stage.key)
    made = (_record(info, folder, chain, state if chain.current else None) for chain in attempt_chains(folder))
    notes = f"\ntables and curves: {reports_page}"
    shown = (r for r in made if r.final or (r.job_type == "train" and r.config["status"] != SUPERSEDED))
    return [replace(record, id=newest(record.id), notes=record.notes + notes) for record in shown]


def _record(info: StageInfo, folder: Folder, chain: AttemptChain, state: State | None) -> RunRecord:
    """Return the record of a chain of attempts; `state`: the stage's, if the chain is what it now is."""
    result, end, read = chain.result, chain.end or {}, chain.result.parents if chain.result else {}
    given_up = state is not None and state.name in FAILED
    failed = result is None and (given_up or end.get("outcome") in FAILED or (bool(end) and not chain.current))
    early = result is None and state is not None and state.name == EARLY
    ended = "finished" if result or early else "failed" if failed else ""
    rows = settled_rows(folder, chain, bool(ended)) if info.stage.kind == "train" else []
    summary, notes = _summary(info, result) if result else {}, list(info.commands)
    if failed:
        known = {"cause": state.cause, "message": state.detail} if state is not None and given_up else end
        cause = str(known.get("cause") or end.get("outcome") or "unknown")
        summary["failure"] = {"cause": cause, "message": str(known.get("message", ""))}
        notes.append(f"failed ({cause}): {summary['failure']['message']}")
        notes += [f"log: {log}"] if (log := folder.attempt(chain.last) / "log").exists() else []
    config = {
        **info.config,
        "status": "current" if chain.current else SUPERSEDED,
        "attempt": chain.first,
        "uses": {role: {"key": key, "sha256": read.get(key)} for role, key in info.parents.items()},
        "environment": dict(result.stamp) if result else {},
    }
    return RunRecord(
        f"{info.stage.key}-{chain.first}",
        info.name if chain.first == 1 and chain.current else shortened(f"{info.name} (from attempt {chain.first})"),
        info.group,
        info.stage.kind,
        sorted({*info.tags, *([] if chain.current else [SUPERSEDED]), *([EARLY] if early else [])}),
        "\n".join(notes),
        _without_empty(config),
        list(map(_row, rows)),
        _without_empty(summary),
        ended or ("running" if state is not None and state.name == "running" else "stopped"),
        bool(ended) or (not chain.current and bool(rows)),
    )


def _summary(info: StageInfo, result: Result) -> dict[str, Any]:
    """Return all numbers of a result that a table can show, and what made it."""
    numbers = {metric_name(name): value for name, value in result.metrics.items() if not isinstance(value, dict)}
    reported = result.metrics.get(info.facts.protocol.get("report", "test@last"))
    return {
        **{name: len(value) if isinstance(value, list) else value for name, value in numbers.items()},
        **({"accuracy": reported} if reported is not None else {}),
        "edition": result.edition,
        "artifact": result.artifact.sha256,
        "provenance": dict(result.provenance),
    }


def _row(row: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: value * 1 for name, value in row.items() if isinstance(value, int | float)}
    return {metric_name(name): value for name, value in numbers.items() if math.isfinite(value)}


def _without_empty(value: Any) -> Any:
    """Return a value without what wandb drops: None, and mappings without anything."""
    if not isinstance(value, Mapping):
        return value
    inner = {name: _without_empty(part) for name, part in value.items()}
    return {name: part for name, part in inner.items() if part is not None and part != {}}
