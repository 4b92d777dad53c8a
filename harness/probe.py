"""Whether a recipe fits a network of another library: tried once in a process of its own, and remembered."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.names import Choice, library_version
from harness.sealed import keep_note, read_note
from harness.store import digest

PROBES_VERSION = 1


def misfit(arch: Choice, parts: Sequence[Choice], cache: Path) -> str:
    """Return why a recipe's parts cannot be attached to `LIBRARY:NAME`, or nothing.

    The answer is kept in `cache`; the first call for a pair takes seconds, because torch is loaded.
    """
    library = arch.name.partition(":")[0]
    question = {
        "version": [PROBES_VERSION, library_version(library), library_version("torch")],
        "arch": [arch.name, dict(arch.given)],
        "parts": [[part.name, dict(part.given)] for part in parts],
    }
    note = cache / "probes" / digest(question)
    if known := read_note(note):
        return str(known["said"])
    command = [sys.executable, "-m", "harness.train.fit", json.dumps(question)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:  # a broken installation; the trainer will say it in the place where it matters
        return ""
    keep_note(note, {"said": done.stdout})
    return done.stdout
