"""What has been published and seen to have come: a file of lines that may be lost, and the lease of who writes it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.claims import BEATS_PER_LEASE, LEASE, Observer, Owner, end_attempt, take
from harness.errors import UserError
from harness.store import Folder, read_json, write_whole


@dataclass(frozen=True)
class Shown:
    """What a run has been shown: the digest of its page, empty while that is not known to have come; and its rows."""

    digest: str = ""
    rows: int = 0
    prefix: str = ""
    """A hash of those rows, so that what contradicts them is noticed."""


@dataclass(frozen=True)
class Entry:
    """What is known of one stage: the signature that was published, and its runs.

    An empty signature: its runs were begun, and are not known to be whole.
    """

    signature: str
    runs: Mapping[str, Shown]


def read_entries(path: Path) -> dict[str, Entry]:
    """Return the newest entry of every stage that a ledger's file names."""
    entries = {}
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError):  # torn by the end of its process
            key, signature, runs = json.loads(line)
            entries[key] = Entry(signature, {run: Shown(*shown) for run, shown in runs.items()})
    return entries


class Ledger:
    """Entries by stage, newest last in the file, whose first lines are those of the holder before."""

    def __init__(self, folder: Path, name: str, generation: int) -> None:
        self.entries: dict[str, Entry] = {}
        self.path = folder / f"{name}-{generation:04d}.jsonl"
        earlier = sorted(path for path in folder.glob(f"{name}-*.jsonl") if path != self.path)
        for path in earlier[-1:]:
            self.entries = read_entries(path)
        write_whole(self.path, "".join(self._line(key) for key in self.entries).encode())
        for path in earlier:
            path.unlink(missing_ok=True)

    def _line(self, key: str) -> str:
        entry = self.entries[key]
        return json.dumps([key, entry.signature, {run: astuple(shown) for run, shown in entry.runs.items()}]) + "\n"

    def runs(self, key: str) -> dict[str, Shown]:
        """Return a stage's runs as far as they are known."""
        return dict(self.entries[key].runs) if key in self.entries else {}

    def note(self, key: str, signature: str, runs: Mapping[str, Shown]) -> None:
        """Note a stage's runs."""
        entry = Entry(signature, dict(runs))
        if self.entries.get(key) != entry:
            self.entries[key] = entry
            with self.path.open("a") as file:
                file.write(self._line(key))

    def forget(self, key: str) -> None:
        """Note that a stage is to be published anew."""
        if key in self.entries:
            self.note(key, "", {run: replace(shown, digest="") for run, shown in self.runs(key).items()})


@dataclass
class Lease:
    """The right to write one target's runs, held by one process at a time and renewed by a thread."""

    folder: Path
    generation: int
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def lost(self) -> bool:
        """Return whether another process has taken over."""
        return _listed(self.folder).generation != self.generation

    def keep(self, every: float) -> None:
        """Add a heartbeat now and then, as long as nobody has taken over."""
        threading.Thread(target=self._beat, args=(every,), daemon=True).start()

    def release(self) -> None:
        """Give it back."""
        self._stop.set()
        if not self.lost:
            end_attempt(_listed(self.folder), self.generation, {"outcome": "released"})

    def _beat(self, every: float) -> None:
        path = _listed(self.folder).claim_path(self.generation)
        while not self._stop.wait(every):
            with contextlib.suppress(OSError):  # a full or hanging file system: the next beat may come through
                with open(os.open(path, os.O_WRONLY | os.O_APPEND), "ab") as file:
                    file.write(b".")
                if self.lost:
                    return


def _listed(folder: Path) -> Folder:
    return Folder(folder, frozenset(os.listdir(folder)))


@dataclass
class Queue:
    """Asks for a lease again and again."""

    folder: Path
    seconds: float = LEASE
    holder: Owner | None = None
    """Who has it."""
    alive: bool = False
    """Whether the holder certainly lives: it is of this machine, or its heartbeat was seen to move."""
    _observer: Observer | None = None
    _size: int | None = None

    def ask(self) -> Lease | None:
        """Take the lease where nobody holds it, or who held it is dead.

        A holder of this machine is known to be dead at once; of one elsewhere only a heartbeat that does not move
        tells, for as long as a lease lasts.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        listed = _listed(self.folder)
        generation = listed.generation
        self._observer = self._observer or Observer(self.seconds)
        if generation and listed.end(generation) is None:
            path = listed.claim_path(generation)
            if not self._observer.lost(path):
                self._see(path)
                return None
        if take(listed, generation, Owner.me(lease=self.seconds)) is None:
            return None
        for old in range(generation - 1, 0, -1):  # a frozen holder sees the newest number, whatever lies between
            if not listed.claim_path(old).exists():
                break
            listed.claim_path(old).unlink(missing_ok=True)
            shutil.rmtree(listed.attempt(old), ignore_errors=True)
        held = Lease(self.folder, generation + 1)
        held.keep(self.seconds / BEATS_PER_LEASE)
        return held

    def _see(self, path: Path) -> None:
        self.holder = Owner.read(path)
        try:
            size = path.stat().st_size
        except FileNotFoundError:  # another has taken over since
            return
        self.alive = (self.holder is not None and self.holder.is_here) or self._size not in (None, size)
        self._size = size

    def get(
        self, waits: Callable[[], bool], say: Callable[[str], None] = lambda said: None, pause: float = 0.5
    ) -> Lease:
        """Return the lease, waiting for a living holder as long as `waits` says, and for a lost one always.

        Raises UserError where somebody else certainly lives and it says not to wait.
        """
        said = ""
        while (held := self.ask()) is None:
            if self.alive and not waits():
                raise UserError(
                    f"wandb: {self._who} publishes this store to this project already; one at a time, try again later"
                )
            does = "publishes this store to this project, and takes this sweep along"
            now = f"wandb: {self._who} {does if self.alive else 'may be gone; waiting for its lease to end'}"
            if now != said:
                said = now
                say(now)
            threading.Event().wait(pause)
        return held

    @property
    def _who(self) -> str:
        if self.holder is None:
            return "another process"
        return f"process {self.holder.processes[0].pid} on {self.holder.host}"


def read_turns(folder: Path) -> dict[str, int]:
    """Return which runs had to be begun anew, and how often."""
    body: Mapping[str, Any] = read_json(folder / "turns.json") or {}
    return {str(run): int(turn) for run, turn in body.items()}


def write_turns(folder: Path, turns: Mapping[str, int]) -> None:
    """Keep which runs were begun anew."""
    write_whole(folder / "turns.json", json.dumps(dict(turns), indent=1).encode())
