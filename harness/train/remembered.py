"""What a worker finds out about a network once, and knows for its next cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from harness.store import canonical

KEPT = 1000
"""Answers; each is small."""
T = TypeVar("T")
_answers: dict[bytes, Any] = {}


def remembered(what: str, of: object, find: Callable[[], T]) -> T:
    """Return what was found out before about the same thing, in this process, or else find it out.

    `of`: what the answer depends on, as JSON: a network's spec and an image's shape, never weights or a seed. What
    raises is not remembered.
    """
    key = canonical([what, of])
    if key not in _answers:
        if len(_answers) >= KEPT:
            _answers.clear()
        _answers[key] = find()
    answer: T = _answers[key]
    return answer
