"""What is left to do: which stages must run, which may start now, and whether waiting can help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from harness.claims import Observer
from harness.memory import clearly_more
from harness.plan import Plan, Stage
from harness.states import LACKING, State, state_of
from harness.store import Result, Store

NOTHING: Mapping[str, Any] = {}


@dataclass
class Survey:
    """The state of every stage that the cells need, read from the store once."""

    results: dict[str, Result] = field(default_factory=dict)
    """Usable results by stage key: intact, of the parents' present content, with their artifact where one is needed."""
    todo: dict[str, State] = field(default_factory=dict)
    """The stages that must run, with their states; parents stand before their children."""

    def count(self) -> Counter[str]:
        """Return how many stages are in each state."""
        return Counter({"done": len(self.results)}) + Counter(state.name for state in self.todo.values())


class Frontier:
    """The stages left to do. Pulled from the cells: what no unfinished cell needs is not looked at."""

    def __init__(self, plan: Plan, store: Store, observer: Observer, brief: bool = False) -> None:
        self.plan, self.store, self.observer, self.brief = plan, store, observer, brief
        """`brief`: remember of a result its artifact alone: whole ones made a worker grow by a fifth in 3,000."""
        self.has: Mapping[str, float] = {}
        """What who asks could give a stage, bytes of `ram` and `gpu` and seconds of `time`: one that failed with
        clearly less is theirs."""
        self.changed = False
        """True from a call of `forget` to the next survey."""
        self._known: dict[str, tuple[Result, bool]] = {}
        """Results found, and whether their artifact was seen."""

    def forget(self) -> None:
        """Look at everything again: a stage was rebuilt with other content, or a file found broken."""
        self._known.clear()
        self.changed = True

    def result(self, key: str, with_artifact: bool) -> Result | None:
        """Return a stage's usable result.

        It must be intact and name the artifacts its parents have now; a parent that has no result at all any more
        does not spoil its children's.
        """
        known = self._known.get(key)
        if known and (known[1] or not with_artifact):
            return known[0]
        stage = self.plan.stages[key]
        folder = self.store.folder(stage.kind, key)
        result = folder.result()
        if result is None or (with_artifact and not folder.has(result.artifact)):
            return None
        for parent in stage.parents.values():
            present = self.any_result(parent)
            if present is not None and present.artifact.sha256 != result.parents.get(parent):
                return None
        kept = Result(result.edition, result.artifact, *[NOTHING] * 4) if self.brief else result
        self._known[key] = (kept, with_artifact)
        return result

    def any_result(self, key: str) -> Result | None:
        """Return a stage's newest intact result, whatever its parents have become."""
        return self._known[key][0] if key in self._known else self.fresh_result(key)

    def fresh_result(self, key: str) -> Result | None:
        """Return a stage's newest intact result as the store has it now."""
        return self.store.folder(self.plan.stages[key].kind, key).result()

    def survey(self) -> Survey:
        """Walk from the cells' last stages up through what must still run."""
        survey, self.changed = Survey(), False
        waiting = [(key, False) for key in self.plan.leaves]
        needed: dict[str, bool] = {}
        while waiting:
            key, with_artifact = waiting.pop()
            if key in needed and (needed[key] or not with_artifact):
                continue
            needed[key] = with_artifact or needed.get(key, False)
            result = self.result(key, needed[key])
            if result is not None:
                survey.results[key] = result
                continue
            survey.results.pop(key, None)
            survey.todo[key] = State("todo", 0)
            waiting.extend((parent, True) for parent in self.plan.stages[key].parents.values())
        order = [key for key in self.plan.stages if key in survey.todo]
        survey.todo = {key: self.state(self.plan.stages[key]) for key in order}
        return survey

    def state(self, stage: Stage) -> State:
        """Return the state of a stage that has no usable result."""
        state = state_of(self.store.folder(stage.kind, stage.key), self.observer)
        if state.cause in LACKING and clearly_more(self.has.get(state.resource, 0), state.amount):
            return replace(state, name="stopped")
        return state

    def blocked(self, survey: Survey) -> dict[str, str]:
        """Return the stages that cannot run because one above them failed, with that one's key."""
        cause: dict[str, str] = {}
        for key, state in survey.todo.items():
            if state.over:
                cause[key] = key
                continue
            above = [cause[p] for p in self.plan.stages[key].parents.values() if p in cause]
            if above:
                cause[key] = above[0]
        return cause
