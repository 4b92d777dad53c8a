"""The measured numbers of sweeps, one line a cell, holes kept with their reasons."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from harness.cell import AXES
from harness.facts import Facts
from harness.foreign import Foreign, read_foreign
from harness.index import Standing
from harness.names import DENSE
from harness.plan import Plan, Stage
from harness.planfile import SavedPlan
from harness.report.identity import UNKNOWN, Identity, identify
from harness.report.measured import Measured, read_measured
from harness.states import FAILED
from harness.store import Store

APART = ("seed", "ticket_seed", "world")
"""Axes that make no table of their own: `world` means nothing to a number, seeds are what a number is over."""


IMPERSONAL = (
    "source",
    "packages",
    "seconds",
    "seconds_of_all_attempts",
    "device_seconds",
    "first_step_after",
    "writing_seconds",
    "peak_memory",
    "device_memory",
    "resumed",
    "generation",
)
"""What provenance may tell where nobody is to be known by it."""
PASSING = ("oom", "time", "died", "stalled", "device")
"""Causes of failure that another try may well not meet."""
WIDE = 1.96
"""Standard errors on either side of chance that a guesser's accuracy keeps to in 95 % of all cases."""


@dataclass(frozen=True, eq=False)
class Line:
    """A cell with what is known of it: its result, or why there is none."""

    labels: Mapping[str, str]
    """Axis -> label."""
    facts: Facts
    key: str
    measured: Measured | None = None
    identity: Identity = UNKNOWN
    reason: str = ""
    """Of a hole: missing, running, failed, refused, diverged, stopped, or what it waits for."""
    given_up: bool = False
    """Of a hole: whether nothing will fill it by itself."""
    cause: str = ""
    """What the stage that holds the cell back died of."""
    log: str = ""
    """That stage's log, relative to the store."""
    note: str = ""
    """What a reader must know of the data set's splits."""
    test_images: int = 0
    """0 where the data set's result does not tell."""
    classes: int = 0
    sweep: str = ""
    on_accepted: bool = False
    """Whether a mask, training or data set that the result was made from was accepted from older code."""
    seconds_before: float | None = None
    """What the masks and trainings took that it is made from, however many cells share them; None where not known."""

    def axis(self, name: str) -> str:
        """Return the label of an axis; of a protocol field that is none, its value."""
        return self.labels[name] if name in self.labels else str(self.facts.protocol.get(name, ""))

    @property
    def dense(self) -> bool:
        """Return whether it is a dense network."""
        return self.facts.mask == DENSE

    @property
    def accepted(self) -> bool:
        """Return whether its result was accepted from older code."""
        return self.measured is not None and "blessed" in self.measured.provenance

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Return the measured numbers; none of a hole."""
        return self.measured.metrics if self.measured else {}

    @property
    def value(self) -> float | None:
        """Return the cell's primary number: accuracy in percent in the column its protocol reports."""
        value = self.metrics.get(self.facts.protocol.get("report", "test@last"))
        return None if value is None else float(value)

    @property
    def at_chance(self) -> bool:
        """Return whether the accuracy is no better than guessing: its 95 % interval (Wilson) is not all above."""
        if self.value is None or not self.classes or not self.test_images:
            return False
        chance = 1 / self.classes
        return self.value / 100 <= chance + WIDE * math.sqrt(chance * (1 - chance) / self.test_images)

    @cached_property
    def short(self) -> str:
        """Return the cell in one line."""
        shown = [self.axis("dataset"), self.axis("arch"), self.axis("mask")]
        shown += [] if self.dense else [self.axis("sparsity")]
        return " ".join([*shown, self.axis("recipe"), f"seed {self.axis('seed')}"])


@dataclass
class Frame:
    """All lines, in grid order, and foreign numbers beside them."""

    lines: Sequence[Line]
    foreign: Sequence[Foreign] = ()
    axes: list[str] = field(default_factory=list)
    varying: list[str] = field(default_factory=list)
    """The axes, and protocol fields, that tell lines apart, seed left out."""

    @classmethod
    def of(cls, lines: Sequence[Line], foreign: Sequence[Foreign] = ()) -> Frame:
        """Return the frame of some lines, the same cell of several sweeps once."""
        first = {(line.key, *line.labels.items()): line for line in reversed(lines)}
        kept = [line for line in lines if first[line.key, *line.labels.items()] is line]
        axes = list(dict.fromkeys([*AXES[:-1], *(axis for line in kept for axis in line.labels)]))
        varying = [axis for axis in axes if axis not in APART and len({line.axis(axis) for line in kept}) > 1]
        if any(line.axis("ticket_seed") != line.axis("seed") for line in kept):
            varying += ["ticket_seed"] if len({line.axis("ticket_seed") for line in kept}) > 1 else []
        return cls(kept, foreign, axes, [*varying, *_told_apart(kept, axes)])


def _told_apart(lines: Sequence[Line], axes: Sequence[str]) -> list[str]:
    """Return the protocol fields in which lines differ that have the same labels, being of different sweeps."""
    same: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in lines:
        same[tuple(line.axis(axis) for axis in axes)].append(line)
    fields: dict[str, None] = {}
    for members in same.values():
        for name in members[0].facts.protocol if len(members) > 1 else ():
            if len({str(line.facts.protocol.get(name)) for line in members}) > 1:
                fields[name] = None
    return [name for name in fields if name not in axes]


def read_lines(
    saved: SavedPlan, standing: Standing, store: Store, rebuild: bool = False, keep: bool = True
) -> list[Line]:
    """Join a plan's cells with what the store has of them.

    With `rebuild` no cache is believed; without `keep` none is written.
    """
    plan = saved.plan
    blocked = standing.blocked(plan)
    found = read_measured(store, plan.name, standing.done, (cell.key for cell in saved.cells), rebuild, keep)
    data = {key: _told_of_data(store, key) for key, stage in plan.stages.items() if stage.kind == "data"}
    resting, before = _resting(plan, standing), _Before(plan, standing)
    lines = []
    for cell in saved.cells:
        stage, measured = plan.stages[cell.key], found.get(cell.key)
        holder = None if measured else blocked.get(cell.key)
        lines.append(
            Line(
                dict(zip(saved.axes, cell.labels, strict=True)),
                cell.facts,
                cell.key,
                measured,
                identify(plan, stage, measured),
                "" if measured else _reason(plan, cell.key, standing, holder),
                holder is not None and standing.states[holder].cause not in PASSING,
                standing.states[holder].detail if holder else "",
                _log(plan, store, standing, holder) if holder else "",
                *data.get(stage.parents.get("data", ""), ("", 0, 0)),
                plan.name,
                cell.key in resting,
                before(stage) if measured else None,
            )
        )
    return lines


def _resting(plan: Plan, standing: Standing) -> set[str]:
    """Return the stages that were made from what was accepted from older code, at whatever remove."""
    accepted = {key for key, done in standing.done.items() if done.blessed}
    resting: set[str] = set()
    for key, stage in plan.stages.items() if accepted else ():  # parents come first
        if any(parent in accepted or parent in resting for parent in stage.parents.values()):
            resting.add(key)
    return resting


class _Before:
    """Adds up what the stages took that a training is made from, once for all that are made from the same."""

    def __init__(self, plan: Plan, standing: Standing) -> None:
        self.plan, self.standing = plan, standing
        self.known: dict[tuple[str, ...], float | None] = {}

    def __call__(self, stage: Stage) -> float | None:
        """Return the seconds of a stage's masks and earlier trainings; None where one has no result any more."""
        above = tuple(stage.parents.values())
        if above not in self.known:
            keys = [key for key in self.plan.ancestors(stage.key) - {stage.key} if self.plan.stages[key].kind != "data"]
            done = [self.standing.done.get(key) for key in keys]
            self.known[above] = None if None in done else sum(one.seconds for one in done if one is not None)
        return self.known[above]


def _told_of_data(store: Store, key: str) -> tuple[str, int, int]:
    """Return a data set's note, and how many test images and classes it has."""
    result = store.folder("data", key).result()
    told: Mapping[str, Any] = result.metrics if result else {}
    return str(told.get("note", "")), int(told.get("test_images", 0)), int(told.get("classes", 0))


def _reason(plan: Plan, key: str, standing: Standing, holder: str | None) -> str:
    state = standing.states.get(holder or key)
    if state is None or state.name == "todo":
        return "missing"
    name = "refused" if state.name == "failed" and state.cause == "input" else state.label
    if holder is None or holder == key:
        return name
    stage = plan.stages[holder]
    return f"{'ticket' if stage.kind == 'train' else stage.kind} {name}"


def _log(plan: Plan, store: Store, standing: Standing, key: str) -> str:
    stage = plan.stages[key]
    path = store.path(stage.kind, key) / f"attempt-{standing.states[key].generation:04d}" / "log"
    return str(path.relative_to(store.root)) if path.exists() else ""


def read_foreigners(store: Store, baselines: Mapping[str, str]) -> list[Foreign]:
    """Read the store's copies of foreign numbers: path as written -> SHA-256."""
    files = ((path, store.imported(sha256).read_bytes()) for path, sha256 in baselines.items())
    return [row for path, data in files for row in read_foreign(data, path)]


def without_folders(labels: Iterable[str]) -> dict[str, str]:
    """Return new names of those labels that tell a folder: `file:/home/me/a.pt` is `file:a.pt`; no two become one."""
    every = dict.fromkeys(labels)
    named: dict[str, str] = {}
    for label in every:
        if found := re.fullmatch(r"(\w+:)(?:.*/)?([^/]+?)/?(\([^/()]*\))?", label) if "/" in label else None:
            short, number = f"{found[1]}{found[2]}{found[3] or ''}", 1
            while (own := short if number == 1 else f"{short} ({number})") in named.values() or own in every:
                number += 1
            named[label] = own
    return named


def anonymous(line: Line, names: Mapping[str, str]) -> Line:
    """Return a line that tells nothing of who made it, where, and from which checkout; `names`: label -> new name."""
    labels = {axis: names.get(label, label) for axis, label in line.labels.items()}
    measured = line.measured
    if measured is not None:
        kept = {name: value for name, value in measured.provenance.items() if name in IMPERSONAL}
        measured = replace(measured, provenance=kept)
    return replace(line, labels=labels, cause="", log="", measured=measured)


def failures(saved: SavedPlan, standing: Standing, store: Store) -> list[tuple[str, str, int, str]]:
    """Return (key, what failed and why, cells that wait for it, path of its log) for every stage that failed."""
    blocked = standing.blocked(saved.plan)
    found = []
    for key, state in standing.states.items():
        if state.name in FAILED:
            held = sum(blocked.get(cell.key) == key for cell in saved.cells)
            log = _log(saved.plan, store, standing, key)
            sentence = f"{state.name}: {saved.plan.stages[key].label}: {state.detail}"
            found.append((key, sentence, held, str(store.root / log) if log else ""))
    return found
