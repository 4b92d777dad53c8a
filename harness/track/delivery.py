"""Delivery: pages handed to a clerk, who is replaced when worn or stuck, and looked for on the server afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.track.desk import PATIENCE, Desk, Stalled
from harness.track.page import Page

AT_ONCE = 32
"""Pages that a clerk is given before the first is answered."""
SHIFT = 250
"""Runs after which a clerk is replaced: it keeps a little of every one."""
LOOKS = 3
"""Times that the server is asked for what it has taken but may not show yet."""


@dataclass
class Delivery:
    """The way from pages to one entity of a server, or into offline folders."""

    folder: Path
    entity: str
    online: bool
    closed: Callable[[], object] = lambda: None
    """Called when a clerk has gone, and with it all runs that were open."""
    patience: float = PATIENCE
    desk: Desk | None = None
    _sent: int = 0

    def clerk(self) -> Desk:
        """Return the clerk: a new one where there is none, or it has served its time."""
        if self.desk is not None and self._sent > SHIFT and not self.desk.awaited:
            self.close()
        if self.desk is None:
            mode = "online" if self.online else "offline"
            self.desk = Desk(mode, self.folder, None if self.online else self.folder / "offline")
            self._sent = 0
            if not self.desk.room:
                raise Stalled(f"too little space in {self.desk.scratch.parent}, where wandb keeps what is not sent yet")
        return self.desk

    def close(self) -> None:
        """End the clerk."""
        if self.desk is not None:
            self.desk.close()
            self.desk = None
            self.closed()

    def leave(self, run: str) -> None:
        """End a run that is open as it is."""
        if self.desk is not None:
            self.desk.ask(self.patience, do="leave", id=run)

    def send(self, pages: Sequence[Page]) -> dict[str, str]:
        """Hand over pages, and wait until all are written; return the runs that were refused, with the reason.

        Raises Stalled where the clerk answers no more, or the server does not.
        """
        waiting, sent = list(reversed(pages)), dict[int, Page]()
        refused: dict[str, str] = {}
        desk = self.clerk()
        while waiting or sent:
            while len(sent) < AT_ONCE and (page := _next(waiting, sent.values())) is not None:
                sent[desk.send(**self._order(page))] = page
                self._sent += 1
            answer = desk.receive(self.patience)
            page = sent.pop(int(answer["number"]))
            if "error" in answer:
                refused[page.id] = str(answer["error"])
                if len(refused) >= AT_ONCE:
                    break
        if refused:
            self._blame()
            refused |= {page.id: "not tried" for page in (*waiting, *sent.values())}
        return refused

    def _blame(self) -> None:
        """Raise Stalled where it is the server that fails, and not single runs.

        The clerk goes: what is left there of a refused run must not meet its next try.
        """
        self.close()
        answer = self.clerk().ask(self.patience, do="probe", mode="online", entity=self.entity) if self.online else {}
        if self.online and not answer.get("online"):
            raise Stalled(str(answer.get("why") or answer.get("error")))

    def _order(self, page: Page) -> dict[str, Any]:
        entity = self.entity if self.online else None
        return {"do": "put", "page": page.body, **page.told, "entity": entity}

    def came(self, pages: Sequence[Page], patience: float = 0.0) -> set[str]:
        """Return those of some runs of which the server shows everything; it is asked again while that may help."""
        if not self.online:
            return {page.id for page in pages} if patience else set()
        came: set[str] = set()
        for project in sorted({page.project for page in pages}):
            members = [page for page in pages if page.project == project]
            for _ in range(LOOKS if patience else 1):
                asked = [page.id for page in members if page.id not in came]
                found = self.look(project, asked)
                came |= {page.id for page in members if whole(page, found.get(page.id))}
                if not patience or all(page.id in came for page in members):
                    break
                threading.Event().wait(patience)
        return came

    def look(self, project: str, ids: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        """Return what the server has of some runs."""
        answer = self.clerk().ask(self.patience, do="look", where=f"{self.entity}/{project}", ids=list(ids))
        if "error" in answer:
            raise Stalled(str(answer["error"]))
        return dict(answer["found"])


def _next(waiting: list[Page], sent: Iterable[Page]) -> Page | None:
    """Take the last of some pages, unless it names an artifact that a page before it is still bringing."""
    coming = {page.artifact["name"] for page in sent if page.artifact is not None}
    if not waiting or any(use.partition(":")[0] in coming for use in waiting[-1].uses):
        return None
    return waiting.pop()


def whole(page: Page, found: Mapping[str, Any] | None) -> bool:
    """Return whether the server shows all of a run: every row, its end, its tags, the digest that was sent last."""
    if found is None or set(found["digests"]) != {page.digest} or found["state"] == "running":
        return False
    if list(found["tags"]) != list(page.tags):
        return False
    return page.gone or found["rows"] == len(page.rows)
