"""The signals that ask workers and their trainers to save and leave."""

from __future__ import annotations

import signal

HEEDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""A scheduler sends them to every process of a job, some time before it ends them."""
