"""Seeds by hash: each draw has a stream of its own, so that none depends on what was drawn before it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_for(seed: int | str, purpose: str, index: int = 0) -> int:
    """Return a 63-bit seed for one purpose and one index (an epoch, a step)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()[:8], "big") >> 1


def stream(seed: int | str, purpose: str, index: int = 0) -> torch.Generator:
    """Return a CPU generator for one purpose: the same numbers on every device and for every world size."""
    return torch.Generator().manual_seed(seed_for(seed, purpose, index))


@contextmanager
def global_draws(seed: int | str, purpose: str) -> Iterator[None]:
    """Seed the global states of torch, NumPy and Python for code that draws from them, and put them back after.

    Layers draw their initial weights so, and a score of a user's may: it is then the same on every run all the same.
    """
    start, of_python, of_numpy = seed_for(seed, purpose), random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start)
        random.seed(start)
        np.random.seed(start % 2**32)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
