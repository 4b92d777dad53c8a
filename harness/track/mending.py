"""Local against remote: every run, row and summary of the store compared with the server's, and put right."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.track.delivery import whole
from harness.track.desk import Stalled
from harness.track.pages import Page
from harness.track.publisher import LOOK, Progress, Publisher

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
        return [
            f"{len(runs):,} {words}: {', '.join(runs[:3])}{' ...' if len(runs) > 3 else ''}"
            for words, runs in said.items()
            if runs
        ]


def compare(work: Publisher, seen: Callable[[Progress], None] = lambda progress: None) -> Difference:
    """Compare what the store says of every run that ended with what the server has; mark what differs for sending.

    Raises Stalled where the server does not answer.
    """
    found, progress = Difference(), Progress()
    pages: list[tuple[str, Page]] = []
    theirs: dict[str, None] = {}
    for about, state, _, writer in work.begun(progress, rebuild=True):
        pages += [(about.stage.key, page) for page in work.pages(writer, about, state) if page.state != "running"]
    for project in sorted({page.project for _, page in pages}):
        mine = [(key, page) for key, page in pages if page.project == project]
        for first in range(0, len(mine), LOOK):
            some = mine[first : first + LOOK]
            remote = work.delivery.look(project, [page.id for _, page in some])
            for key, page in some:
                _judge(work, found, key, page, remote.get(page.id))
            progress.whole = found.same
            progress.seen = first + len(some)
            seen(progress)
        theirs |= dict.fromkeys(_listed(work, project))
    known = {page.id for _, page in pages}
    found.strangers = [run for run in theirs if OURS.fullmatch(run) and run not in known and run not in found.spoilt]
    return found


def _judge(work: Publisher, found: Difference, key: str, page: Page, remote: Mapping[str, Any] | None) -> None:
    if remote is None:
        found.missing.append(page.id)
    else:
        rows = _rows(work, page) if remote["rows"] and not page.gone else []
        mine = [dict(row) for row in page.rows]
        if not page.gone and rows != mine[: len(rows)]:
            found.spoilt.append(page.id)
            work.turn([page.id])
        elif not whole(page, remote):
            found.short.append(page.id)
        else:
            found.same += 1
            return
    work.ledger.forget(key)


def _rows(work: Publisher, page: Page) -> Sequence[Any]:
    where = f"{work.target.entity}/{page.project}"
    answer = work.delivery.clerk().ask(work.delivery.patience, do="rows", where=where, id=page.id)
    if "error" in answer:
        raise Stalled(str(answer["error"]))
    return list(answer["rows"])


def _listed(work: Publisher, project: str) -> list[str]:
    where = f"{work.target.entity}/{project}"
    answer = work.delivery.clerk().ask(work.delivery.patience, do="list", where=where)
    if "error" in answer:
        raise Stalled(str(answer["error"]))
    return list(answer["ids"])
