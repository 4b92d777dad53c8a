"""Local against remote: every run, row and summary of the store compared with the server's, and put right."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.track.delivery import whole
from harness.track.desk import Stalled
from harness.track.page import Page
from harness.track.publisher import LOOK, Progress, Publisher, chunks
from harness.words import count

OURS = re.compile(r"[0-9a-f]{32}-\d+(-\d+)?")
"""What run ids of this tool look like."""


@dataclass
class Difference:
    """What was found, run by run."""

    same: int = 0
    missing: list[str] = field(default_factory=list)
    """Not on the server at all."""
    short: list[str] = field(default_factory=list)
    """With rows missing at the end, or with another summary, tags or state."""
    spoilt: list[str] = field(default_factory=list)
    """With other rows than the store's, or with gaps: begun anew, since rows cannot be taken back."""
    stages: list[str] = field(default_factory=list)
    """The keys of the stages of all these."""
    strangers: list[str] = field(default_factory=list)
    """Runs of other stores, or of stages that no sweep has any more: left alone."""

    @property
    def wrong(self) -> int:
        """Return how many runs differ."""
        return len(self.missing) + len(self.short) + len(self.spoilt)

    def lines(self) -> list[str]:
        """Return what was found, in words."""
        said = {
            "missing on the server": self.missing,
            "incomplete there": self.short,
            "with other rows there": self.spoilt,
            "of no stage of this store, left alone": self.strangers,
        }
        head = f"wandb: {count(self.same, 'run')} the same, {self.wrong} not"
        return [head, *(f"  {len(runs):,} {words}: {_few(runs)}" for words, runs in said.items() if runs)]


def _few(runs: Sequence[str]) -> str:
    return ", ".join(runs[:3]) + (" ..." if len(runs) > 3 else "")


def compare(work: Publisher, seen: Callable[[Progress], None] = lambda progress: None) -> Difference:
    """Compare what the store says of every run that ended with what the server has.

    Raises Stalled where the server does not answer.
    """
    found, progress = Difference(), Progress()
    known: set[str] = set()
    projects: set[str] = set()
    for some in chunks(work.begun(progress, rebuild=True), LOOK):
        pages: dict[str, list[tuple[str, Page]]] = {}
        for about, state, _, writer in some:
            for page in work.pages(writer, about, state):
                known.add(page.id)
                if page.state != "running":
                    pages.setdefault(page.project, []).append((about.stage.key, page))
        projects |= pages.keys()
        for project, mine in pages.items():
            remote = work.delivery.look(project, [page.id for _, page in mine])
            for key, page in mine:
                _judge(work, found, key, page, remote.get(page.id))
        progress.whole = found.same
        seen(progress)
    theirs = (run for project in sorted(projects) for run in _listed(work, project))
    found.strangers = [run for run in theirs if OURS.fullmatch(run) and run not in known]
    return found


def mark(work: Publisher, found: Difference) -> None:
    """Note that what differs is to be sent, under new ids where rows are spoilt."""
    work.turn(found.spoilt)
    for key in found.stages:
        work.ledger.forget(key)


def _judge(work: Publisher, found: Difference, key: str, page: Page, remote: Mapping[str, Any] | None) -> None:
    if remote is None:
        found.missing.append(page.id)
    else:
        rows = _rows(work, page) if remote["rows"] and not page.gone else []
        if list(rows) != [dict(row) for row in page.rows[: len(rows)]] or len(rows) > len(page.rows):
            found.spoilt.append(page.id)
        elif not whole(page, remote):
            found.short.append(page.id)
        else:
            found.same += 1
            return
    found.stages.append(key)


def _rows(work: Publisher, page: Page) -> Sequence[Any]:
    return list(_asked(work, do="rows", where=f"{work.target.entity}/{page.project}", id=page.id)["rows"])


def _listed(work: Publisher, project: str) -> list[str]:
    return list(_asked(work, do="list", where=f"{work.target.entity}/{project}")["ids"])


def _asked(work: Publisher, **order: Any) -> dict[str, Any]:
    answer = work.delivery.clerk().ask(work.delivery.patience, **order)
    if "error" in answer:
        raise Stalled(str(answer["error"]))
    return answer
