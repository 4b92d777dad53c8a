"""`harness status --why`: what a cell is made of, where each part stands, and what changed where one must run again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.asked import find_stages
from harness.bless import bless
from harness.claims import Observer
from harness.errors import UserError, printable, short
from harness.failures import log_of, look_at
from harness.frontier import Frontier, Survey
from harness.plan import Plan, Stage
from harness.planfile import SavedPlan, earlier_plans, find_plan, read_plan, sweep_names
from harness.store import Store
from harness.terminal import tell
from harness.words import count

MOST_PLANS = 20
"""Earlier plans that are searched for what a stage was before."""
OF_THE_CODE = re.compile(r"(^|\.)(version|package|versions\.\w+|source|path|sha256|content)$")
"""Fields that say which code or which files made an artifact, not which experiment it belongs to."""


@dataclass(frozen=True)
class Change:
    """One field in which a stage differs from an earlier one."""

    kind: str
    stage: str
    field: str
    before: Any
    now: Any

    @property
    def of_the_code(self) -> bool:
        """Return whether the field tells of code or files, so that an older result may be accepted all the same."""
        return bool(OF_THE_CODE.search(self.field))

    @property
    def text(self) -> str:
        """Return the change as a person reads it."""
        last = self.field.rpartition(".")[2]
        what = {
            "package": "the package that the method comes from is another",
            "content": "the files of the data set changed",
            "source": "the source file of a method of your own was edited",
            "sha256": "the file of masks changed",
            "version": "the code of this method changed" if "." in self.field else "the harness's code for it changed",
        }.get(last, "")
        shown = f"{self.field}: {_shown(self.before)} -> {_shown(self.now)}"
        return f"{self.stage}: {what} ({shown})" if what else f"{self.stage}: {shown}"


def _shown(value: Any) -> str:
    return "not set" if value is None else short(value, 40)


def flat(spec: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a spec's fields by dotted name; lists of parts by the names of their parts."""
    for name, value in spec.items():
        here = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{here}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for item in value:
                yield from flat(item, f"{here}.{item.get('name', item.get('path', ''))}.")
        else:
            yield here, value


def changes(before: Stage, now: Stage, old: Plan, new: Plan, seen: set[str] | None = None) -> list[Change]:
    """Return in what a stage differs from an earlier one, in itself and in all it is made from; each cause once."""
    seen = set() if seen is None else seen
    if now.key in seen or before.key == now.key:
        return []
    seen.add(now.key)
    had, has = dict(flat(before.spec)), dict(flat(now.spec))
    own = [
        Change(now.kind, now.label, name, had.get(name), has.get(name))
        for name in dict.fromkeys([*had, *has])
        if had.get(name) != has.get(name)
    ]
    above: list[Change] = []
    for role in dict.fromkeys([*before.parents, *now.parents]):
        if role not in before.parents or role not in now.parents:
            own.append(Change(now.kind, now.label, f"its {role}", before.parents.get(role), now.parents.get(role)))
            continue
        above += changes(old.stages[before.parents[role]], new.stages[now.parents[role]], old, new, seen)
    return _once(above + own)


def _once(found: Iterable[Change]) -> list[Change]:
    """Return the first of all changes that are one for several stages of a kind, as the rounds of a chain."""
    first: dict[tuple[str, str, str, str], Change] = {}
    for change in found:
        first.setdefault((change.kind, change.field, repr(change.before), repr(change.now)), change)
    return list(first.values())


class Past:
    """Earlier plans of the store, searched for what a stage was before."""

    def __init__(self, saved: SavedPlan, store: Store) -> None:
        self.saved, self.store = saved, store
        self.plans: list[Plan] = []
        others = [find_plan(store, name) for name in sweep_names(store) if name != saved.plan.name]
        paths = [*earlier_plans(store, saved.plan.name), *others]
        for path in paths[:MOST_PLANS]:
            try:
                self.plans.append(read_plan(path).plan)
            except UserError:  # of another version of the harness
                continue
        self.by_label: list[dict[tuple[str, str], list[Stage]]] = []
        for plan in self.plans:
            found: dict[tuple[str, str], list[Stage]] = {}
            for stage in plan.stages.values():
                found.setdefault((stage.kind, stage.label), []).append(stage)
            self.by_label.append(found)

    def of(self, stage: Stage) -> tuple[Stage, list[Change]] | None:
        """Return the finished stage most like this one that went by the same name, and what has changed since."""
        best: tuple[Stage, list[Change]] | None = None
        for plan, labels in zip(self.plans, self.by_label, strict=True):
            for old in labels.get((stage.kind, stage.label), ()):
                if old.key == stage.key or not self.store.folder(old.kind, old.key).result():
                    continue
                found = changes(old, stage, plan, self.saved.plan)
                if best is None or len(found) < len(best[1]):
                    best = (old, found)
        return best


def explain(saved: SavedPlan, store: Store, why: str, accept: bool) -> bool:
    """Print what a cell is made of and why parts of it must run, after accepting older results where that is asked.

    Of several cells, that is done at once. Return whether all was accepted that was finished under another key.
    """
    keys = find_stages(saved, why, "--why", several=accept)
    label = saved.plan.stages[keys[0]].label if len(keys) == 1 else count(len(keys), "cell")
    needed = set().union(*map(saved.plan.ancestors, keys))
    part = Plan(saved.plan.name, {k: stage for k, stage in saved.plan.stages.items() if k in needed})
    part.leaves = keys
    past = Past(saved, store)
    lines, good = [f"{label}: {len(part.stages)} stages"], True
    frontier = Frontier(part, store, Observer())
    if accept:
        before = {k: past.of(part.stages[k]) for k in frontier.survey().todo}
        older = {
            k: (old, [c.text for c in found], [c.text for c in found if not c.of_the_code])
            for k, b in before.items()
            if b is not None
            for old, found in [b]
        }
        said, good = bless(frontier, older)
        lines += said
        frontier = Frontier(part, store, Observer())
    survey = frontier.survey()
    for stage in part.stages.values():
        lines += _lines(stage, frontier, survey, past)
    tell("\n".join(lines), 100_000)
    return good


def _lines(stage: Stage, frontier: Frontier, survey: Survey, past: Past) -> Iterator[str]:
    state = survey.todo.get(stage.key)
    result = frontier.any_result(stage.key)
    name = "done" if state is None else state.name
    yield f"  {name:8s} {stage.kind:8s} {stage.key[:8]}  {stage.label}"
    if result is not None and "blessed" in result.provenance:
        said = result.provenance["blessed"]
        yield f"           accepted from {said['from'][:8]} by {said['by']}: {'; '.join(said['differences'])}"
    if state is None:
        return
    if state.detail:
        yield f"           {state.detail}"
        if log := log_of(frontier.store.folder(stage.kind, stage.key), state):
            yield f"           log: {log}"
        told = look_at(stage, state, frontier.store, frontier.plan.name) if state.over else []
        yield from (f"           {printable(line)}" for line in told)
    if result is not None:
        yield f"           has a result, but {_spoilt(stage, frontier)}"
    elif (before := past.of(stage)) is not None:
        old, found = before
        yield f"           was {old.key[:8]}, which is finished; since then:"
        yield from (f"             {change.text}" for change in found)
    elif state.name == "todo":
        yield "           was never made, under this or an earlier plan of this store"


def _spoilt(stage: Stage, frontier: Frontier) -> str:
    """Return why a stage's result cannot be used."""
    result = frontier.any_result(stage.key)
    for role, key in stage.parents.items():
        present = frontier.any_result(key)
        read = result.parents.get(key) if result else None
        if present is not None and read != present.artifact.sha256:
            return f"its {role} was another when it was made ({str(read)[:8]}, now {present.artifact.sha256[:8]})"
    return "its artifact, which another stage needs, is gone"
