"""Learning-rate schedules: the factor on the base rate as arithmetic on the epoch."""

from __future__ import annotations

import math

from harness.protocol import Protocol


def multistep(epoch: float, protocol: Protocol) -> float:
    """Return gamma to the number of milestones passed, after a linear warm-up; `epoch` counts in fractions."""
    passed = sum(epoch >= milestone for milestone in protocol.milestones)
    return _warmup(epoch, protocol) * float(protocol.gamma**passed)


def cosine(epoch: float, protocol: Protocol) -> float:
    """Return the cosine from 1 at the warm-up's end to 0 at the end of training (Loshchilov & Hutter, 2017)."""
    share = max(epoch - protocol.warmup, 0) / (protocol.epochs - protocol.warmup)
    return _warmup(epoch, protocol) * 0.5 * (1 + math.cos(math.pi * share))


def _warmup(epoch: float, protocol: Protocol) -> float:
    """Rise linearly; the first step counts as the first of the rise, so the rate is never 0."""
    return min(1.0, (epoch + 1e-2) / protocol.warmup) if protocol.warmup else 1.0
