"""What a trainer is asked for, and what it answers: an order for one stage, its outcome, a damaged parent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.store import file_sha256

_verified: set[tuple[str, str, int, int, int]] = set()
"""Path, hash, inode, size and time of files whose hash was seen: one that was changed since is hashed again."""


class Corrupt(Exception):
    """A parent's artifact is not what its result says it is."""

    def __init__(self, role: str) -> None:
        super().__init__(f"the {role} artifact is damaged: its bytes are not the ones its result names")
        self.role = role


@dataclass(frozen=True)
class Order:
    """A stage to run, as the supervisor sends it to the trainer."""

    key: str
    kind: str
    spec: Mapping[str, Any]
    store: str
    attempt: str
    earlier: tuple[str, ...]
    """Folders of earlier attempts, where checkpoints may lie."""
    parents: Mapping[str, tuple[str, str]]
    """Role -> (path, SHA-256) of the parent's artifact."""
    place: str = ""
    device: str = "cpu"
    threads: int = 1
    checkpoint_every: float = 300.0
    scratch: str = ""
    """A folder on this machine's own disk for this stage's checkpoints, empty where there is none."""
    fast: bool = False
    """Whether numbers may differ in their last bits from run to run, to be faster."""
    execution: str = "eager"
    """How a training runs its network (execution.py)."""
    rank: int = 0
    world: int = 1
    """How many processes run this order together, each with a rank of its own."""

    def parent(self, role: str) -> Path:
        """Return the path of a parent's artifact, its checksum verified. Raises Corrupt."""
        path, sha256 = self.parents[role]
        try:
            status = Path(path).stat()
            mark = (path, sha256, status.st_ino, status.st_size, status.st_mtime_ns)
            if mark not in _verified and file_sha256(Path(path)) != sha256:
                raise Corrupt(role)
        except OSError:
            raise Corrupt(role) from None
        _verified.add(mark)
        return Path(path)

    @property
    def read(self) -> dict[str, str]:
        """Return role -> SHA-256 of what this stage reads."""
        return {role: sha256 for role, (_, sha256) in self.parents.items()}


@dataclass
class Outcome:
    """What a stage made: the artifact's draft in the attempt's folder, and metrics."""

    draft: Path
    metrics: dict[str, Any]
