"""Seeds by hash: each draw has a stream of its own, so that none depends on what was drawn before it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_for(seed: int | str, purpose: str, index: int = 0) -> int:
    """Return a 63-bit seed for one purpose and one index (an epoch, a step)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()[:8], "big") >> 1


def stream(seed: int | str, purpose: str, index: int = 0) -> torch.Generator:
    """Return a CPU generator for one purpose: the same numbers on every device and for every world size."""
    return torch.Generator().manual_seed(seed_for(seed, purpose, index))


@contextmanager
def global_draws(seed: int | str, purpose: str) -> Iterator[None]:
    """Seed torch's global CPU state for code that draws from it (layer initialisation), and put it back after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, purpose))
        yield
