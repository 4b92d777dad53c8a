"""NVIDIA's Multi-Process Service (MPS), with which workers use one GPU at the same time and not in turns."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from harness.launch.local import Machine
from harness.memory import gpu_uuid

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS, VISIBLE = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CUDA_VISIBLE_DEVICES"
TRIAL = (sys.executable, "-c", "import torch; torch.ones(1, device='cuda').add_(1).cpu()")
PATIENCE = 120.0
"""Seconds for the service to start or end, and for a first process to use it."""


@contextlib.contextmanager
def shared(machine: Machine, say: Callable[[str], None], trial: Sequence[str] = TRIAL) -> Iterator[Machine]:
    """Run the service for what is started within; yield the machine, whose GPUs it knows by their identifiers.

    Where it is not installed, or does not work, it says so and nothing changes. One that somebody else has started
    (CUDA_MPS_PIPE_DIRECTORY is set) is used as it is. It ends with this process, however that ends.
    """
    if not machine.gpus or PIPES in os.environ or not shutil.which(CONTROL):
        yield machine
        return
    known = [gpu_uuid(gpu) for gpu in machine.gpus]
    named = replace(machine, gpus=tuple(known)) if all(known) else machine
    with (
        tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as after,
    ):
        own = {PIPES: f"{folder}/pipes", LOGS: f"{folder}/logs", VISIBLE: ",".join(named.gpus)}
        trouble = _started(own, after) or _tried({**own, VISIBLE: named.gpus[0]}, trial)
        if trouble:
            after.close()
            say(f"workers take turns on the GPU: its Multi-Process Service does not work here: {trouble}")
            yield machine
            return
        with _told({name: own[name] for name in (PIPES, LOGS)}):
            yield named


def _started(own: Mapping[str, str], after: contextlib.ExitStack) -> str:
    """Start the service, to be ended after all; return what went wrong."""
    for name in (PIPES, LOGS):
        os.makedirs(own[name])
    environment = {**os.environ, **own}
    if said := _failed([CONTROL, "-d"], environment):
        return said
    # It is told to end by a shell that waits for this process's end of a pipe, which even SIGKILL closes.
    ends = subprocess.Popen(
        ["/bin/sh", "-c", f"cat > /dev/null; echo quit | {CONTROL}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )

    def end() -> None:
        assert ends.stdin is not None  # it was asked for # noqa: S101
        ends.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            ends.wait(PATIENCE)

    after.callback(end)
    return ""


def _tried(own: Mapping[str, str], trial: Sequence[str]) -> str:
    """Let a first process use a GPU; return what went wrong."""
    return _failed(trial, {**os.environ, **own})


def _failed(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a command; return the last that it said where it failed."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stderr or done.stdout).strip().splitlines()
    return (said[-1] if said else f"exit code {done.returncode}") if done.returncode else ""


@contextlib.contextmanager
def _told(more: Mapping[str, str]) -> Iterator[None]:
    """Have variables in the environment of what is started within."""
    os.environ.update(more)
    try:
        yield
    finally:
        for name in more:
            os.environ.pop(name, None)
