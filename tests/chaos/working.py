"""Real sweeps to do harm to: commands in the background, who works on which stage, and what came of the results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.claims import Owner, Process
from harness.store import Folder, file_sha256
from tests.conftest import environment, kill_tree, results

ROOT = Path(__file__).resolve().parents[2]


class Crew:
    """Commands in a folder, what they say kept beside them; whatever is left of them is killed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for command in self.commands:
            kill_tree(command.pid)
            command.wait()

    def start(
        self, *arguments: str, within: Sequence[str] = (), more: Mapping[str, str] | None = None, **how: Any
    ) -> subprocess.Popen[bytes]:
        """Start `python -m ARGUMENTS`, inside another command, with more in its environment, as somebody else."""
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        with self._words(len(self.commands)).open("wb") as words:
            command = subprocess.Popen(
                [*within, sys.executable, "-m", *arguments],
                cwd=self.folder,
                env={**environment(), "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(more or {})},
                **how,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                start_new_session=True,
            )
        self.commands.append(command)
        return command

    def _words(self, number: int) -> Path:
        return self.folder / f"words-{number:03d}"

    def said(self, command: subprocess.Popen[bytes]) -> str:
        """Return what a command has said so far."""
        return self._words(self.commands.index(command)).read_text()


@dataclass(frozen=True)
class Held:
    """A stage that somebody works on."""

    folder: Folder
    generation: int
    supervisor: Process
    trainer: Process

    @property
    def checkpoint(self) -> str:
        """Return the name of this attempt's newest checkpoint, which rises; nothing where there is none."""
        return max((path.name for path in self.folder.attempt(self.generation).glob("checkpoint-*")), default="")


def held(store: Path) -> list[Held]:
    """Return the stages that are claimed, not ended, and whose worker and trainer are there."""
    found = []
    for path in store.glob("stages/*/*/*"):
        folder = Folder(path, frozenset(os.listdir(path)))
        if not (newest := folder.generation) or folder.end(newest):
            continue
        owner = Owner.read(folder.claim_path(newest))
        if owner and len(owner.processes) == 2 and not any(process.gone() for process in owner.processes):
            found.append(Held(folder, newest, *owner.processes))
    return found


def owners(store: Path) -> dict[str, list[Owner]]:
    """Return the owners of all claims of every stage, by key, oldest first."""
    found: dict[str, list[Owner]] = {}
    for path in sorted(store.glob("stages/*/*/*/claim-*")):
        if owner := Owner.read(path):
            found.setdefault(path.parent.name, []).append(owner)
    return found


def outcomes(store: Path, key: str) -> list[str]:
    """Return how a stage's attempts ended, oldest first; `vanished` where one said nothing."""
    (path,) = store.glob(f"stages/*/*/{key}")
    folder = Folder(path, frozenset(os.listdir(path)))
    ends = [folder.end(generation) for generation in range(1, folder.generation + 1)]
    return [str(end["outcome"]) if end else "vanished" for end in ends]


def astray(store: Path, calm: Path, asked: Collection[str] = ()) -> tuple[int, int]:
    """Return how many of an undisturbed run's results a store lacks, and how many it has that are not as they were.

    Those are the ones with other content, with a file that is not what its name says, published twice, or asked for
    by nobody. `asked`: the keys that matter, else all.
    """
    wanted = {key: editions for key, editions in results(calm).items() if not asked or key in asked}
    found = results(store)
    wrong = 0
    for key, editions in found.items():
        sha256 = editions[-1]["artifact"]["sha256"]
        same = key in wanted and wanted[key][-1]["artifact"]["sha256"] == sha256 and len(editions) == 1
        (path,) = store.glob(f"stages/*/*/{key}/{sha256}.safetensors")
        wrong += not (same and file_sha256(path) == sha256)
    return len(wanted.keys() - found.keys()), wrong
