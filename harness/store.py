"""The store: a folder of stages where a file's existence is the state, and every file is written whole or not."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness.machine import machine

KINDS = ("data", "mask", "rescale", "train")
DEBUGGING = "DEBUG"
"""The file that marks a store as one for debugging, which may be removed at any time."""


def canonical(value: Any) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """Return the key of a value: 32 hex digits of the SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _draft(path: Path, data: bytes, mode: int = 0o666) -> Path:
    """Write a complete, synced file beside the target; within `mode` the umask decides who may read it."""
    draft = path.parent / f".draft-{_writers()}-{os.getpid()}-{uuid.uuid4().hex}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return draft


@cache
def _writers() -> str:
    """Return a mark of the processes that can see whether one another live: of one machine, boot and process space."""
    return hashlib.sha256(repr(machine()).encode()).hexdigest()[:12]


def write_whole(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file so that no reader ever sees a part of it: write, flush, sync, rename.

    Over NFS a reply can be lost and the repeated call find its draft renamed already, hence the look at the content.
    """
    draft = _draft(path, data, mode)
    try:
        os.replace(draft, path)
    except FileNotFoundError:
        if not path.is_file() or path.read_bytes() != data:
            raise
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def publish(path: Path, data: bytes) -> bool:
    """Create a file whole, unless it exists; return whether this call created it.

    Uses link(2). Over NFS a reply can be lost and the repeated call find its own work, hence the look at the inode.
    """
    draft = _draft(path, data)
    try:
        mine = place(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)
    return mine


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_dead_drafts(folder: Path) -> None:
    """Remove the drafts in a folder whose writers, seen from here, are gone."""
    for draft in folder.glob(f".draft-{_writers()}-*"):
        try:
            os.kill(int(draft.name.split("-")[-2]), 0)
        except (ProcessLookupError, ValueError, OverflowError):
            draft.unlink(missing_ok=True)
        except PermissionError:
            continue


def place(source: Path, target: Path) -> bool:
    """Give a finished file a second name, unless that name is taken; return whether this call did."""
    try:
        os.link(source, target)
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            return source.samefile(target)
        return False
    return True


def is_number(value: object) -> bool:
    """Return whether a value that was read is a finite number, small enough to be computed with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON mapping, or None where the file is gone or holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None  # any other OSError is told: a file that cannot be read is not one that is not there
    return value if isinstance(value, dict) else None


def forget_index(store: Store) -> None:
    """Remove the index of what is finished: some of it is no more, or became another."""
    for index in (store.root / "cache" / "index").glob("*.json"):
        index.unlink(missing_ok=True)


@dataclass(frozen=True)
class Artifact:
    """A file of a stage, named by its content."""

    sha256: str
    bytes: int

    @property
    def file(self) -> str:
        """Return the file's name inside the stage's folder."""
        return f"{self.sha256}.safetensors"


@dataclass(frozen=True)
class Result:
    """What a stage published: its artifacts, the parents' artifacts it read, metrics, stamp and provenance."""

    edition: int
    artifact: Artifact
    parents: Mapping[str, str]
    """Parent stage key -> SHA-256 of the artifact that was read."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    stamp: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def dump(self) -> bytes:
        """Return the result as a file's bytes, with a checksum of its own."""
        body = {
            "artifact": {"sha256": self.artifact.sha256, "bytes": self.artifact.bytes},
            "parents": dict(self.parents),
            "metrics": dict(self.metrics),
            "stamp": dict(self.stamp),
            "provenance": dict(self.provenance),
        }
        return json.dumps({"checksum": digest(body), "result": body}, indent=1, allow_nan=False).encode()

    @classmethod
    def load(cls, path: Path, edition: int) -> Result | None:
        """Read a result; None where it is gone, torn, or fails its checksum."""
        value = read_json(path) or {}
        try:
            body = value["result"]
            if value["checksum"] != digest(body):
                return None
            parts = [body[name] for name in ("parents", "metrics", "stamp", "provenance")]
            artifact = Artifact(str(body["artifact"]["sha256"]), int(body["artifact"]["bytes"]))
        except (KeyError, TypeError, ValueError, RecursionError):  # NaN has no digest, and depth has an end
            return None
        return cls(edition, artifact, *parts) if all(isinstance(part, dict) for part in parts) else None


_NUMBERED = re.compile(r"(claim|result)-(\d{4,})(\.json)?")


@dataclass(frozen=True)
class Folder:
    """A stage's folder as listed at one moment."""

    path: Path
    names: frozenset[str]

    @classmethod
    def listed(cls, path: Path) -> Folder:
        """List a folder; an empty listing where it does not exist."""
        try:
            names = frozenset(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            names = frozenset()
        return cls(path, names)

    def _numbers(self, kind: str) -> list[int]:
        return sorted(int(m[2]) for m in map(_NUMBERED.fullmatch, self.names) if m and m[1] == kind)

    @property
    def generation(self) -> int:
        """Return the newest claim's number, 0 where there is none."""
        return max(self._numbers("claim"), default=0)

    @property
    def edition(self) -> int:
        """Return the newest result's number, 0 where there is none."""
        return max(self._numbers("result"), default=0)

    def result(self) -> Result | None:
        """Return the newest result that is intact."""
        for edition in reversed(self._numbers("result")):
            if result := Result.load(self.path / f"result-{edition:04d}.json", edition):
                return result
        return None

    def results(self) -> list[Result]:
        """Return all results that are intact, oldest first."""
        editions = self._numbers("result")
        found = (Result.load(self.path / f"result-{edition:04d}.json", edition) for edition in editions)
        return [result for result in found if result is not None]

    def has(self, artifact: Artifact) -> bool:
        """Return whether an artifact's file is there in its full size."""
        if artifact.file not in self.names:
            return False
        try:
            return (self.path / artifact.file).stat().st_size == artifact.bytes
        except FileNotFoundError:
            return False

    def claim_path(self, generation: int) -> Path:
        """Return the path of a claim."""
        return self.path / f"claim-{generation:04d}"

    def attempt(self, generation: int) -> Path:
        """Return the folder of a generation's attempt."""
        return self.path / f"attempt-{generation:04d}"

    def end(self, generation: int) -> dict[str, Any] | None:
        """Return how a generation ended, where it said so; what is not of its kind is left out."""
        said = read_json(self.attempt(generation) / "end.json")
        if said is None:
            return None
        numbers = {name for name in ("seconds", "memory", "epoch", "step") if name in said}
        return {name: v for name, v in said.items() if name not in numbers or (is_number(v) and v >= 0)}


class Store:
    """A store's root and the paths in it."""

    def __init__(self, root: Path) -> None:
        try:
            self.root = root.resolve()
        except RuntimeError:  # what Python before 3.13 says of links in a circle
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(root)) from None

    @property
    def for_debugging(self) -> bool:
        """Return whether it is a store of `harness debug`, whose results nobody keeps."""
        return (self.root / DEBUGGING).exists()

    def path(self, kind: str, key: str) -> Path:
        """Return the folder of a stage."""
        return self.root / "stages" / kind / key[:2] / key

    def imported(self, sha256: str) -> Path:
        """Return where the copy of a file from outside lies."""
        return self.root / "imports" / sha256

    def folder(self, kind: str, key: str) -> Folder:
        """List a stage's folder; an empty listing where it does not exist."""
        return Folder.listed(self.path(kind, key))

    def sweep(self, name: str) -> Path:
        """Return the folder of a sweep: its file as run, its plan, its report."""
        return self.root / "sweeps" / name
