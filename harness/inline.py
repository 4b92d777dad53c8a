"""The debug launcher's trainer: it runs orders in this very process, where a debugger and print() reach them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from typing import Any

from harness.machine import machine


class Inline:
    """Looks like a trainer to its supervisor, but an order given to it is run before `send` returns."""

    def __init__(self, device: str) -> None:
        from harness.train.process import prepare_process
        from harness.train.watch import Desk

        self.host = machine()[0]
        self.said: deque[dict[str, Any]] = deque()
        prepare_process()
        self.desk = Desk(self.said.append)
        self.said.append({"at": "ready"})

    @property
    def pids(self) -> list[int]:
        """Return this process's number."""
        return [os.getpid()]

    @property
    def alive(self) -> bool:
        """Return that it is there, as long as this process is."""
        return True

    @property
    def doors(self) -> list[Any]:
        """Return nothing to wait for: what it has to say is there at once."""
        return []

    def send(self, message: Mapping[str, Any]) -> None:
        """Run an order to its end."""
        if "stop" not in message:
            from harness.train.process import serve_here

            serve_here(message, self.desk)

    def hear(self, timeout: float) -> dict[str, Any] | None:
        """Return the next message."""
        return self.said.popleft() if self.said else None

    def dump(self) -> None:
        """Do nothing: by the time that anybody asks where it is, it is back."""

    def kill(self) -> None:
        """Do nothing: it ends with this process."""
