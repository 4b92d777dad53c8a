"""Checkpoints: where a training stands to the step, written whole, named by their checksum, kept twice."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
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


def save_checkpoint(
    folder: Path, steps_done: int, position: Position, tensors: Mapping[str, Tensor], parents: Mapping[str, str]
) -> None:
    """Write a checkpoint into an attempt's folder and remove the ones before the newest two.

    `parents` holds the hashes of the artifacts that this training reads; it may only be resumed with the same ones.
    """
    metadata = {"position": json.dumps(asdict(position)), "parents": json.dumps(dict(parents), sort_keys=True)}
    data = save({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, metadata)
    name = f"checkpoint-{steps_done:09d}-{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
    write_whole(folder / name, data)
    for old in _newest(folder)[KEPT:]:
        old.unlink(missing_ok=True)


def load_checkpoint(
    folders: Sequence[Path], parents: Mapping[str, str], say: Any = print
) -> tuple[Position, dict[str, Tensor]] | None:
    """Return the furthest intact checkpoint of some attempts that was made from the same parents, or None.

    A damaged one is named through `say`, and the one before it is taken.
    """
    for path in _newest(*folders):
        match = _NAME.fullmatch(path.name)
        assert match is not None  # _newest lists only such names # noqa: S101
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
