"""`--retry`: failed stages made claimable again."""

from __future__ import annotations

from harness.claims import Owner, take
from harness.frontier import Frontier
from harness.states import FAILED


def release(frontier: Frontier, cause: str) -> int:
    """Make failed stages claimable again whose recorded cause is the given one (or `all`); return how many.

    Done by an empty generation that ends at once, so that a failure is never forgotten and a retry is one of now.
    """
    released = 0
    for key, state in frontier.survey().todo.items():
        if state.name not in FAILED:
            continue
        stage = frontier.plan.stages[key]
        folder = frontier.store.folder(stage.kind, key)
        if cause in ("all", state.name, state.cause):
            claim = take(folder, state.generation, Owner.me())
            if claim is not None:
                claim.end("stopped", message="released for another try", released=True)
                released += 1
    return released
