"""A publisher beside the sweep command: a process of its own that no training waits for, and that outlives both."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import typer

from harness.errors import printable
from harness.form import Wandb
from harness.store import Store
from harness.terminal import command

QUIET = 30.0
"""Seconds without a word of its last pass after which the command does not wait for it any longer."""


@dataclass
class Beside:
    """The publisher's process. It does its last pass once its input ends, with the command or before."""

    process: subprocess.Popen[str]
    store: Store
    say: Callable[[str], None]
    _heard: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, store: Store, name: str, say: Callable[[str], None]) -> Beside:
        """Start a publisher for a sweep that has been planned."""
        argv = ["wandb", "publish", name, "--store", str(store.root), "--follow", "--beside"]
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.cli", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is the command's
        )
        beside = cls(process, store, say)
        threading.Thread(target=beside._listen, daemon=True).start()
        return beside

    def _listen(self) -> None:
        assert self.process.stdout is not None  # it was asked for # noqa: S101
        with contextlib.suppress(ValueError, OSError):
            for line in self.process.stdout:
                self._heard = time.monotonic()
                if line.strip():
                    self.say(line.strip())

    def end(self, name: str) -> None:
        """Let it do its last pass, and wait for that while it says that it gets on."""
        assert self.process.stdin is not None  # it was asked for # noqa: S101
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self._heard = time.monotonic()
        while self.process.poll() is None:
            if time.monotonic() - self._heard > QUIET:
                later = command("wandb", "publish", name, store=self.store.root)
                self.say(f"wandb: goes on by itself; later, `{later}` sends what is missing")
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2)


@contextlib.contextmanager
def mirrored(wanted: Wandb | None, store: Store, name: str, live: bool) -> Iterator[None]:
    """Keep a publisher beside the block, where the sweep file wants one; not `live`, say how it is done instead."""
    if wanted is None or wanted.mode == "disabled":
        yield
        return
    if not live:
        follow = command("wandb", "publish", name, "--follow", store=store.root)
        typer.echo(f"wandb: `{follow}` mirrors it, from here or once from cron", err=True)
        yield
        return
    try:
        beside = Beside.start(store, name, lambda sentence: typer.echo(printable(sentence), err=True))
    except OSError as error:
        by_hand = command("wandb", "publish", name, store=store.root)
        typer.echo(f"wandb: no publisher could be started ({error.strerror}); `{by_hand}`", err=True)
        yield
        return
    try:
        yield
    finally:
        beside.end(name)
