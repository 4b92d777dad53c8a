"""Checkpoints: where a training stands to the step, written whole, named by their checksum, kept twice."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from harness.store import write_whole

KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{9})-([0-9a-f]{32})\.safetensors")


@dataclass
class Position:
    """A point of training: so many whole epochs and so many steps of the next, and what was measured until there."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    resumed: int = 0
    """How often the training has gone on from a checkpoint."""
    worlds: list[int] = field(default_factory=list)
    """By how many processes, where that differed between its attempts."""


def pack(
    steps_done: int, position: Position, tensors: Mapping[str, Tensor], parents: Mapping[str, str]
) -> tuple[str, bytes]:
    """Return a checkpoint as a file's name and bytes.

    `parents` holds the hashes of the artifacts that this training reads; it may only be resumed with the same ones.
    """
    metadata = {"position": json.dumps(asdict(position)), "parents": json.dumps(dict(parents), sort_keys=True)}
    data = save({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, metadata)
    return f"checkpoint-{steps_done:09d}-{hashlib.sha256(data).hexdigest()[:32]}.safetensors", data


def write_checkpoint(folder: Path, name: str, data: bytes) -> None:
    """Write a checkpoint and remove the ones before the newest two."""
    write_whole(folder / name, data)
    for old in _newest(folder)[KEPT:]:
        old.unlink(missing_ok=True)


class Checkpoints:
    """Writes a training's checkpoints: at once into the attempt's folder, or first to this machine's own disk.

    In the second case a thread copies the newest one to the attempt's folder, while the training goes on.
    """

    def __init__(self, attempt: Path, scratch: str, say: Callable[[str], None] = print) -> None:
        self.attempt, self.scratch, self.say = attempt, Path(scratch) if scratch else None, say
        self._copy: Thread | None = None
        self._latest: tuple[str, bytes] | None = None
        self._error: OSError | None = None

    def write(self, name: str, data: bytes) -> None:
        """Write a checkpoint. Raises OSError where the attempt's folder cannot be written, now or at the last copy."""
        if self._error:
            raise self._error
        if self.scratch is None or not self._on_scratch(self.scratch, name, data):
            write_checkpoint(self.attempt, name, data)
            return
        self._latest = (name, data)
        if self._copy is None or not self._copy.is_alive():
            self._start()

    def settle(self) -> None:
        """Wait until the newest checkpoint lies in the attempt's folder. Raises OSError where it cannot."""
        while self._copy is not None:
            self._copy.join()
            self._copy = None
            if self._latest and not self._error:  # came while the one before it was being copied
                self._start()
        if self._error:
            raise self._error

    def _start(self) -> None:
        self._copy = Thread(target=self._work, daemon=True)
        self._copy.start()

    def _on_scratch(self, scratch: Path, name: str, data: bytes) -> bool:
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            write_checkpoint(scratch, name, data)
        except OSError as error:
            self.say(f"{scratch}: cannot be written ({error.strerror}); the checkpoint goes straight to the store")
            return False
        return True

    def _work(self) -> None:
        while (latest := self._latest) is not None and self._error is None:
            self._latest = None
            try:
                write_checkpoint(self.attempt, *latest)
            except OSError as error:
                self._error = error


def load_checkpoint(
    folders: Sequence[Path], parents: Mapping[str, str], say: Any = print, most: int | None = None
) -> tuple[Position, dict[str, Tensor]] | None:
    """Return the furthest intact checkpoint of some attempts that was made from the same parents, or None.

    A damaged one is named through `say`, and the one before it is taken. `most`: steps done, beyond which none counts.
    """
    for path in _newest(*folders):
        match = _NAME.fullmatch(path.name)
        assert match is not None  # _newest lists only such names # noqa: S101
        if most is not None and int(match[1]) > most:
            continue
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest()[:32] != match[2]:
                say(f"{path}: damaged (its checksum differs); going back to the checkpoint before it")
                continue
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                if json.loads(metadata["parents"]) != dict(parents):
                    say(f"{path}: made from other parents; not used")
                    continue
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
            return Position(**json.loads(metadata["position"])), tensors
        except (OSError, SafetensorError, ValueError) as error:
            say(f"{path}: cannot be read ({error}); going back to the checkpoint before it")
    return None


def _newest(*folders: Path) -> list[Path]:
    found = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name, reverse=True)
