"""Draws: code that uses the global random states gives the same numbers on every run, and leaves them as they were."""

from __future__ import annotations

import random

import numpy as np
import torch

from harness.train.draws import global_draws


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.random()), random.random()


def test_global_draws_follow_from_the_seed_and_the_purpose_alone() -> None:
    found = []
    for seed, purpose in ((0, "mask"), (0, "mask"), (1, "mask"), (0, "init")):
        draw()
        with global_draws(seed, purpose):
            found.append(draw())
    assert found[0] == found[1]
    assert all(len({one[source] for one in found[1:]}) == 3 for source in range(3))


def test_what_was_drawn_from_before_goes_on_as_if_nothing_had_been() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    plain = [draw(), draw()]
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    first = draw()
    with global_draws(0, "mask"):
        draw()
    assert [first, draw()] == plain
