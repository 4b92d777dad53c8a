"""Workers on trivial stages whose file system is far away: far.c stands before it, and each has a host of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness.trainer import Trainer
from tests.harness import trivial

SOURCE = Path(__file__).with_name("far.c")
JOURNAL = "FAR_JOURNAL"

unshare = shutil.which("unshare")
can_unshare = (
    unshare is not None
    and subprocess.run([unshare, "--uts", "--pid", "--fork", "true"], capture_output=True, check=False).returncode == 0
)
SPACES = [str(unshare), "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""A host of its own name and process numbers."""
compiler = shutil.which("cc") or shutil.which("gcc")


def compiled(folder: Path) -> Path:
    """Compile far.c."""
    library = folder / "far.so"
    command = [str(compiler), "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def far_environment(library: Path, store: Path, host: str, **faults: object) -> dict[str, str]:
    """Return the environment of a process of a host from which the store is far; notes are kept beside the library."""
    (library.parent / "own").mkdir(exist_ok=True)
    told = {"STORE": store, "HOST": host, "OWN": library.parent / "own", "LOG": library.parent / "log", **faults}
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "NO_COLOR": "1",
        "COLUMNS": "160",
        **{f"FAR_{name}": str(value) for name, value in told.items()},
    }


def injected(library: Path) -> Counter[str]:
    """Return how many faults of each letter were injected."""
    log = library.parent / "log"
    return Counter(log.read_text()) if log.exists() else Counter()


def serve(pipe: Connection, device: str) -> None:
    """Be a trivial trainer that writes down every order it is given, in a file of no far file system."""
    true = trivial.outcome

    def outcome(order: dict[str, Any], *more: Any) -> dict[str, Any]:
        with open(os.environ[JOURNAL], "a") as file:
            file.write(json.dumps([os.environ["FAR_HOST"], os.getpid(), order["attempt"]]) + "\n")
        return true(order, *more)

    trivial.outcome = outcome
    trivial.serve(pipe, device)


if __name__ == "__main__":
    trivial.trainer = lambda device: Trainer(device, serve, "tests.chaos.far")
    sys.exit(trivial.main(*sys.argv[1:]))
