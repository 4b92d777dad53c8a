"""Progress for a person: a bar and a line a worker on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from harness.errors import printable
from harness.words import count, span

PLAIN_EVERY = 10.0
"""Seconds between two overall lines where output is no terminal."""


def console() -> Console:
    """Return the console for progress and messages, which go to stderr."""
    return Console(stderr=True, highlight=False)


class Display:
    """Shows stages done, failures, and what each worker does: cell, epoch, loss, images a second, time left."""

    def __init__(self, done: int, total: int, workers: int, what: str = "stages") -> None:
        self.done, self.total, self.failed, self.what = done, total, 0, what
        self.out = console()
        self.rich = self.out.is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.lines: dict[int, str] = dict.fromkeys(range(workers), "starting")
        self.labels: dict[int, str] = {}
        self.notes: set[str] = set()
        self.last_plain = time.monotonic()
        self.bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.out,
        )
        self.task = self.bar.add_task("stages", total=total, completed=done, failed="")
        self.live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show progress while the block runs."""
        if not self.rich:
            workers = f", {count(len(self.lines), 'worker')}" if self.lines else ""
            self.out.print(f"{self.done} of {self.total} {self.what} done{workers}", soft_wrap=True)
            yield
            return
        with Live(self._render(), console=self.out, refresh_per_second=4, transient=True) as self.live:
            yield
        self.live = None

    def say(self, text: str) -> None:
        """Print a line above the progress."""
        self.out.print(escape(printable(text)), soft_wrap=True)

    def stages(self, done: int) -> None:
        """Take in how many stages are done."""
        if done != self.done and not self.rich:
            self.out.print(f"{done} of {self.total} {self.what} done", soft_wrap=True)
        self.done = done
        self.bar.update(self.task, completed=done)

    def line(self, slot: int, text: str) -> None:
        """Show a line below the bar."""
        self.lines[slot] = text
        if self.live is not None:
            self.live.update(self._render())

    def hear(self, slot: int, event: dict[str, Any]) -> None:
        """Take in an event of a worker."""
        kind = event.get("event")
        if kind == "start":
            self.labels[slot] = str(event["label"])
            self.lines[slot] = self.labels[slot]
        elif kind == "step":
            self.lines[slot] = self._step(slot, event)
        elif kind == "end":
            self._end(slot, event)
        elif kind == "trouble":
            self.say(f"worker {slot}: {event['message']}")
        elif kind == "note" and event["message"] not in self.notes:
            self.notes.add(event["message"])
            self.say(event["message"])
        elif kind == "exit":
            self.lines[slot] = "done" if event["code"] == 0 else f"ended with code {event['code']}"
        if self.live is not None:
            self.live.update(self._render())

    def _step(self, slot: int, event: dict[str, Any]) -> str:
        loss = "" if event.get("loss") is None else f"  loss {event['loss']:.3f}"
        speed = "" if event.get("speed") is None else f"  {event['speed']:.0f} images/s"
        at = f"{event.get('unit', 'epoch')} {event['epoch']}/{event['epochs']}"
        return f"{self.labels.get(slot, '')}  {at}{loss}{speed}  {span(event['left'])} left"

    def _end(self, slot: int, event: dict[str, Any]) -> None:
        self.lines[slot] = "saved, leaving" if event["outcome"] == "stopped" else "waiting for a stage"
        if event["outcome"] == "published":
            self.done += 1
        elif event["outcome"] in ("failed", "diverged"):
            self.failed += 1
            self.say(f"{event['outcome']}: {event['label']}: {event['message']}")
        elif event["outcome"] == "died":
            self.say(f"trying again: {event['label']}: {event['message']}")
        self.bar.update(self.task, completed=self.done, failed=f"[red]{self.failed} failed" if self.failed else "")
        now = time.monotonic()
        if not self.rich and (now - self.last_plain > PLAIN_EVERY or self.done == self.total):
            self.last_plain = now
            failed = f", {self.failed} failed" if self.failed else ""
            self.out.print(f"{self.done} of {self.total} {self.what} done{failed}", soft_wrap=True)

    def _render(self) -> Group:
        width = max(20, self.out.width - 1)
        lines = [Text(f"{slot}: {line}"[:width], style="dim", no_wrap=True) for slot, line in self.lines.items()]
        return Group(self.bar, *lines)


def ask(question: str) -> bool:
    """Ask for yes or no on a terminal."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
