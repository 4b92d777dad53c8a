"""Which workers there are: a file for each, with its owner and a heartbeat, removed when it leaves."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.claims import Owner, beat
from harness.store import Store, write_whole


@dataclass(frozen=True)
class Present:
    """A worker that has signed in and not out."""

    path: Path
    owner: Owner
    about: dict[str, Any]
    beats: int

    @property
    def here(self) -> bool:
        """Return whether it runs on this machine."""
        return self.owner.is_here

    @property
    def gone(self) -> bool:
        """Return whether it is certainly dead."""
        return self.owner.certainly_gone()

    @property
    def age(self) -> float:
        """Return the seconds since its last heartbeat as file times tell them: for a person's eye, for no decision."""
        import time

        try:
            return max(0.0, time.time() - self.path.stat().st_mtime)
        except OSError:
            return 0.0


class Presence:
    """A worker's own file: signed in at the start, a dot appended at every heartbeat, signed out at the end."""

    def __init__(self, store: Store, sweep: str, owner: Owner, **about: Any) -> None:
        folder = store.sweep(sweep) / "workers"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{owner.host.replace('/', '_')}-{owner.processes[0].pid}-{uuid.uuid4().hex[:8]}"
        write_whole(self.path, json.dumps({"owner": asdict(owner), **about}).encode() + b"\n")

    def beat(self) -> None:
        """Add one heartbeat; a file that somebody removed stays away."""
        beat(self.path)

    def leave(self) -> None:
        """Sign out."""
        self.path.unlink(missing_ok=True)


def present(store: Store, sweep: str) -> Iterator[Present]:
    """Yield the workers that have signed in; the files of those that died on this machine are removed."""
    folder = store.sweep(sweep) / "workers"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith((".", "log-")):
            continue
        try:
            first, _, beats = path.read_bytes().partition(b"\n")
            about = json.loads(first)
            found = Present(path, Owner.load(about.pop("owner")), about, len(beats))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        if found.gone:
            path.unlink(missing_ok=True)
        else:
            yield found


def crowded(store: Store, sweep: str, most: int, mine: Path, lost: Callable[[Path], bool] = lambda path: False) -> bool:
    """Return whether `most` workers of this machine signed in before the one whose file is `mine`."""
    here = [found for found in present(store, sweep) if found.here and not lost(found.path)]
    before = sorted(here, key=lambda found: (found.owner.processes[0].start, found.path.name))
    return mine not in [found.path for found in before[:most]]
