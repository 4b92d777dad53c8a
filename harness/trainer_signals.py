"""The signals that trainers know: those that ask to save and leave, and the one that asks where they are."""

from __future__ import annotations

import signal

HEEDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""A scheduler sends them to every process of a job, some time before it ends them."""

DUMP = signal.SIGVTALRM
"""Writes the Python stacks of all of a trainer's threads into its log, and ends it: no core file, and nothing else uses
it. The handler is C, so that it works where the trainer spins in a kernel and no Python runs."""
