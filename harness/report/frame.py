"""The measured numbers of a sweep, one line a cell, holes kept with their reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.catalog import METRICS
from harness.cell import AXES, Cell
from harness.frontier import Frontier, Survey
from harness.plan import Plan
from harness.states import FAILED
from harness.store import Result


@dataclass(frozen=True)
class Line:
    """A cell with what is known of it: its result, or why there is none."""

    cell: Cell
    key: str
    result: Result | None
    reason: str = ""
    cause: str = ""
    """What the stage that holds the cell back died of."""
    note: str = ""
    """What a reader must know of the data set's splits."""

    @property
    def value(self) -> float | None:
        """Return the cell's primary number: accuracy in percent in the column its protocol reports."""
        return None if self.result is None else self.result.metrics.get(self.cell.protocol.report)


@dataclass
class Frame:
    """All lines of a sweep, in grid order."""

    lines: Sequence[Line]
    varying: list[str] = field(default_factory=list)
    """The axes that take more than one value, seed left out."""


def read_frame(plan: Plan, frontier: Frontier, survey: Survey) -> Frame:
    """Join a plan's cells with the store's results; the plan must be one that was expanded, with its cells."""
    blocked = frontier.blocked(survey)
    found = {key: frontier.any_result(key) for key, stage in plan.stages.items() if stage.kind == "data"}
    notes = {key: str(data.metrics.get("note", "")) if data else "" for key, data in found.items()}
    lines = []
    for cell, key in plan.cells:
        result = survey.results.get(key)
        reason = "" if result else _reason(plan, key, survey, blocked)
        cause = "" if result or key not in blocked else survey.todo[blocked[key]].detail
        lines.append(Line(cell, key, result, reason, cause, notes[plan.stages[key].parents["data"]]))
    names = dict.fromkeys([*AXES[:-1], *(name for cell, _ in plan.cells for name, _ in cell.extra)])
    names.pop("seed")
    varying = [name for name in names if len({str(cell.axis(name)) for cell, _ in plan.cells}) > 1]
    if not any(cell.ticket_seed != cell.seed for cell, _ in plan.cells) and "ticket_seed" in varying:
        varying.remove("ticket_seed")
    return Frame(lines, varying)


def _reason(plan: Plan, key: str, survey: Survey, blocked: dict[str, str]) -> str:
    state = survey.todo[key].name
    if key in blocked and blocked[key] != key:
        stage = plan.stages[blocked[key]]
        what = "ticket" if stage.kind == "train" else stage.kind
        return f"{what} {survey.todo[blocked[key]].name}"
    return "missing" if state == "todo" else state


def failures(plan: Plan, frontier: Frontier, survey: Survey) -> list[tuple[str, int, str]]:
    """Return (what failed and why, cells that wait for it, path of its log) for every stage that failed."""
    blocked = frontier.blocked(survey)
    found = []
    for key, state in survey.todo.items():
        if state.name in FAILED:
            held = sum(blocked.get(leaf) == key for _, leaf in plan.cells)
            stage = plan.stages[key]
            log = frontier.store.folder(stage.kind, key).attempt(state.generation) / "log"
            found.append((f"{state.name}: {stage.label}: {state.detail}", held, str(log) if log.exists() else ""))
    return found


TOLD = ("accuracy", "test@last", "test@best-dev", "best_epoch", "dev_accuracy")
"""Metrics that a record holds in columns of their own."""


def _plain(value: Any) -> Any:
    return len(value) if isinstance(value, list) else value


def tidy(frame: Frame) -> list[dict[str, Any]]:
    """Return one flat record a cell: axes, both test columns, the reason of a hole, and the key."""
    records = []
    tuned = any(line.cell.tuned for line in frame.lines)
    for line in frame.lines:
        trials = {"tuning_trials": line.cell.tuned.trials if line.cell.tuned else 0} if tuned else {}
        axes = {name: line.cell.axis(name) for name in (*AXES[:-1], *(n for n, _ in line.cell.extra))}
        metrics = line.result.metrics if line.result else {}
        records.append(
            {
                **axes,
                **trials,
                "reported": line.cell.protocol.report,
                "test@last": metrics.get("test@last"),
                "test@best-dev": metrics.get("test@best-dev"),
                "best_epoch": metrics.get("best_epoch"),
                "dev_accuracy": metrics.get("dev_accuracy"),
                **{name: _plain(metrics.get(name)) for name in METRICS if name not in TOLD},
                "hole": line.reason,
                "cause": line.cause,
                "key": line.key,
            }
        )
    return records
