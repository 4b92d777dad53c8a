"""The Slurm job that this process runs in, if any: its name, its nodes, and when it ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

Shell = Callable[[Sequence[str]], str]
"""Runs a command and returns what it prints. Raises OSError or subprocess.SubprocessError where it fails."""


def shell(command: Sequence[str], patience: float = 60) -> str:
    """Run a command of the scheduler's, with its times as seconds since 1970."""
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience, check=True, env=environment
    )
    return done.stdout


def job(environment: Mapping[str, str] = os.environ) -> str:
    """Return this job's number and how often it was started before, empty outside a job: `4711.0`.

    A job that is requeued keeps its number.
    """
    number = environment.get("SLURM_JOB_ID", "")
    return f"{number}.{environment.get('SLURM_RESTART_COUNT', '0')}" if number else ""


def nodes(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return the tasks of this job step, one a node, and which of them this is; (1, 0) outside a step."""
    if "SLURM_STEP_ID" not in environment:
        return 1, 0
    return int(environment.get("SLURM_NTASKS", "1")), int(environment.get("SLURM_PROCID", "0"))


def seconds_left(run: Shell = shell, environment: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds until this job's time limit; None outside a job, or where nobody says.

    Newer Slurm puts the end into the environment; an older one must be asked.
    """
    number = environment.get("SLURM_JOB_ID", "")
    if not number:
        return None
    end = environment.get("SLURM_JOB_END_TIME", "")
    if not end:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            end = run(["squeue", "--noheader", "--jobs", number, "--format", "%e"]).strip()
    return max(0.0, int(end) - time.time()) if end.isdigit() else None
