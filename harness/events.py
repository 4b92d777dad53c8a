"""What a worker says of itself: JSON lines for the command that started it, plain words for a person or a log."""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import threading
import time
from typing import Any


class Events:
    """Prints events as JSON lines, and never waits: a reader that is stopped (Ctrl-Z) must not stop the heartbeats."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.waiting: queue.Queue[str] = queue.Queue(1000)
        threading.Thread(target=self._write, daemon=True).start()

    def tell(self, **event: Any) -> None:
        """Queue an event; progress is dropped where the reader is behind."""
        if event["event"] != "step" or self.waiting.qsize() < 100:
            with contextlib.suppress(queue.Full):
                self.waiting.put_nowait(json.dumps(event) + "\n")

    def drain(self) -> None:
        """Give what is queued a moment to be read."""
        deadline = time.monotonic() + 2
        while self.waiting.unfinished_tasks and time.monotonic() < deadline and not self.stop.wait(0.01):
            pass

    def _write(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                sys.stdout.write(self.waiting.get())
                sys.stdout.flush()
                self.waiting.task_done()
        self.stop.set()  # nobody reads any more: the command that started this worker is gone


def in_words(**event: Any) -> None:
    """Print starts and ends for a person or a log file, and remarks on stderr."""
    if event["event"] == "start":
        print(f"start  {event['label']}", flush=True)  # noqa: T201 - this is the worker's output
    elif event["event"] == "end":
        print(f"{event['outcome']:6s} {event['label']} {event['message']}", flush=True)  # noqa: T201
    elif event["event"] in ("trouble", "note"):
        print(event["message"], file=sys.stderr, flush=True)  # noqa: T201
