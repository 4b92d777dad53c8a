"""A publisher beside the sweep command: a process of its own that no training waits for, and that outlives both."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import typer

from harness.claims import Observer
from harness.errors import UserError, printable
from harness.form import Wandb
from harness.index import stand
from harness.store import Store
from harness.terminal import command, cron_line
from harness.track.about import about_stages
from harness.track.ledger import read_entries, read_turns
from harness.track.target import Shards, Target, plans_of, shards_of, wishes
from harness.track.writer import Writer
from harness.words import count

QUIET = 30.0
"""Seconds without a word of its last pass after which the command does not wait for it any longer."""
RESTARTS = (2.0, 15.0, 60.0)
"""Seconds before a publisher that was killed is started again: the first, the second and the last time."""


class Beside:
    """The publisher's process, started again where it is killed. Its last pass is due once its input ends."""

    def __init__(self, store: Store, name: str, say: Callable[[str], None]) -> None:
        """Start a publisher for a sweep that has been planned. Raises OSError."""
        self.store, self.name, self.say = store, name, say
        self.killed = False
        """Whether the last publisher was ended by a signal, and so could not say what it had sent."""
        self._due, self._over, self._guard = threading.Event(), threading.Event(), threading.Lock()
        self._start()
        threading.Thread(target=self._keep, daemon=True).start()

    def _start(self) -> None:
        argv = ["wandb", "publish", self.name, "--store", str(self.store.root), "--follow", "--beside"]
        with self._guard:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "harness.cli", *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # Ctrl-C is the command's
            )
            self._heard = time.monotonic()
            if self._due.is_set():
                self._end_input()

    def _end_input(self) -> None:
        assert self.process.stdin is not None  # it was asked for # noqa: S101
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def _keep(self) -> None:
        """Pass on what the publisher says; start another where it is killed, a few times."""
        for pause in (*RESTARTS, None):
            self._listen()
            self.killed = self.process.wait() < 0
            if not self.killed:
                break
            said = f"wandb: the publisher was ended by {signal.Signals(-self.process.returncode).name}"
            if pause is None:
                self.say(f"{said} {len(RESTARTS) + 1} times and is not started again; trainings go on")
                break
            self.say(f"{said}; it is started again")
            self._due.wait(pause)
            try:
                self._start()
            except OSError as error:
                self.say(f"wandb: no publisher could be started ({error.strerror})")
                break
        self._over.set()

    def _listen(self) -> None:
        assert self.process.stdout is not None  # it was asked for # noqa: S101
        with contextlib.suppress(ValueError, OSError), self.process.stdout:
            for line in self.process.stdout:
                self._heard = time.monotonic()
                if line.strip():
                    self.say(line.strip())

    def end(self) -> None:
        """Let it do its last pass, wait for that while it says that it gets on, and say what else would be lost."""
        with self._guard:
            self._due.set()
            self._heard = time.monotonic()
            self._end_input()
        publish = command("wandb", "publish", self.name, store=self.store.root)
        while not self._over.wait(0.2):
            if time.monotonic() - self._heard > QUIET:
                self.say(f"wandb: {_sent(self.store, self.name)} by now; the publisher is left to itself")
                self.say(f"wandb: later, `{publish}` sends what is missing")
                return
        if self.killed:
            self.say(f"wandb: {_sent(self.store, self.name)}; `{publish}` sends the rest")


def _sent(store: Store, name: str) -> str:
    """Say how many runs of the store a server is known to have, or a folder offline; no server is asked."""
    try:
        (wish,) = wishes(store, [name])
        plans = plans_of(store, wish)
        abouts = about_stages(plans)
        ending = Target("", "", wish.project).folder(store).name.removeprefix("offline")
        found = [path for what in ("sent", "kept") for path in store.root.glob(f"wandb/*{ending}/{what}-*.jsonl")]
        ledger = max(found, key=lambda path: path.stat().st_mtime, default=None)
        shards, turns, shown = Shards(wish.project), {}, {}
        if ledger is not None:
            shards = shards_of(ledger.parent, wish.project, wish.shard_by, list(abouts.values()))
            turns = read_turns(ledger.parent)
            shown = {run: said for entry in read_entries(ledger).values() for run, said in entry.runs.items()}
        writer = Writer(store, shards.of, wish.artifacts, turns)
        states = {k: s for saved in plans for k, s in stand(saved.plan, store, Observer(), keep=False).states.items()}
        pages = [page for key, about in abouts.items() for page in writer.pages(about, states.get(key))]
    except (UserError, OSError) as error:
        return f"how many runs were sent cannot be told ({error})"
    whole = sum(page.id in shown and shown[page.id].digest == page.digest for page in pages)
    kept = "kept" if ledger is not None and ledger.name.startswith("kept") else "sent"
    return f"{whole} of {count(len(pages), 'run')} {kept}"


def say_how(wanted: Wandb | None, store: Store, name: str) -> None:
    """Say what mirrors a sweep whose workers outlive the command, where the sweep file wants that."""
    if wanted is not None and wanted.mode != "disabled":
        follow = command("wandb", "publish", name, "--follow", store=store.root)
        by_cron = cron_line("wandb", "publish", name, store=store.root)
        typer.echo(f"wandb: `{follow}` mirrors it, or this line of a crontab:\n{by_cron}", err=True)


@contextlib.contextmanager
def mirrored(wanted: Wandb | None, store: Store, name: str, live: bool) -> Iterator[None]:
    """Keep a publisher beside the block, where the sweep file wants one; not `live`, say how it is done instead."""
    if wanted is None or wanted.mode == "disabled":
        yield
        return
    if not live:
        say_how(wanted, store, name)
        yield
        return
    try:
        beside = Beside(store, name, lambda sentence: typer.echo(printable(sentence), err=True))
    except OSError as error:
        by_hand = command("wandb", "publish", name, store=store.root)
        typer.echo(f"wandb: no publisher could be started ({error.strerror}); `{by_hand}`", err=True)
        yield
        return
    try:
        yield
    finally:
        beside.end()
