"""What supervisors and trainers both go by: signals that ask to save and leave, and how long silence may last."""

from __future__ import annotations

import signal

HEEDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""A scheduler sends them to every process of a job, some time before it ends them."""

STALL = 3600.0
"""Seconds without any word from a trainer after which it counts as hung."""
