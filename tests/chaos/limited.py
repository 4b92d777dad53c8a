"""Bad files one after another in a process with little memory and time.

`python -m tests.chaos.limited TARGET FOLDER PATTERN`: TARGET is `module:function` of a path; what it returns for each
file is printed, what it raises too.
"""

from __future__ import annotations

import importlib
import json
import resource
import signal
import subprocess
import sys
import traceback
from pathlib import Path

from tests.conftest import environment

MORE_MEMORY = 2**30
"""Bytes that the process may take beyond what it has once its libraries are loaded."""
MOST_SECONDS = 60
"""Of processor time for one file."""
FAULT = "fault: "


class Stuck(BaseException):
    """A file took too long."""


def outcomes(target: str, folder: Path, pattern: str = "*") -> dict[str, str]:
    """Return what a function makes of every file of a folder, by name."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.limited", target, str(folder), pattern],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    left = sorted(path.name for path in folder.glob(pattern) if path.name not in found)
    assert done.returncode == 0, f"ended with {done.returncode} at {left[:1]}: {done.stderr[-3000:]}"
    return found


def _stuck(number: int, frame: object) -> None:
    raise Stuck(f"over {MOST_SECONDS} s of processor time")


def main(target: str, folder: str, pattern: str) -> None:
    """Call the target for every file."""
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    signal.signal(signal.SIGPROF, _stuck)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for path in sorted(Path(folder).glob(pattern)):
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        try:
            said = str(function(path))
        except (Exception, Stuck):
            said = FAULT + traceback.format_exc()[-1500:]
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps([path.name, said]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
