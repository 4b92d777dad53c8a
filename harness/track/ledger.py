"""What has been published and seen to have come: a file of lines that may be lost, and who may write it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from harness.claims import LEASE, Lease
from harness.errors import UserError
from harness.store import read_json, write_whole


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


def acquire(
    folder: Path,
    waits: Callable[[], bool],
    say: Callable[[str], None] = lambda said: None,
    length: float = LEASE,
    pause: float = 0.5,
) -> Lease:
    """Return the lease of who writes a target's runs; of one that is held elsewhere only its heartbeat tells.

    Waits for a living holder as long as `waits` says, and for a lost one always. Raises UserError where somebody else
    certainly lives and it says not to wait.
    """
    lease, said = Lease(folder, length), ""
    while not lease.acquire():
        holder, who = lease.holder, f"wandb: {lease.holder_name}"
        alive = lease.beating or (holder is not None and holder.is_here)
        does = "publishes this store to this project"
        if alive and not waits():
            raise UserError(f"{who} {does} already; one at a time, try again later")
        now = f"{who} {f'{does}, and takes this sweep along' if alive else 'may be gone; waiting for its lease to end'}"
        if now != said:
            said = now
            say(now)
        threading.Event().wait(pause)
    return lease


def read_turns(folder: Path) -> dict[str, int]:
    """Return which runs had to be begun anew, and how often."""
    body: Mapping[str, Any] = read_json(folder / "turns.json") or {}
    return {str(run): int(turn) for run, turn in body.items()}


def write_turns(folder: Path, turns: Mapping[str, int]) -> None:
    """Keep which runs were begun anew."""
    write_whole(folder / "turns.json", json.dumps(dict(turns), indent=1).encode())
