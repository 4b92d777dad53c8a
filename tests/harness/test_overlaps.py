"""Overlaps of masks: by hand, kept once computed, and silent about files that are gone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from harness.report.overlaps import Overlaps
from harness.store import Store


def mask(store: Store, key: str, **layers: list[int]) -> tuple[str, str]:
    """Write a mask as a stage's artifact; return its key and hash."""
    data = save({name: np.array(values, np.uint8) for name, values in layers.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    store.path("mask", key).mkdir(parents=True)
    (store.path("mask", key) / f"{sha256}.safetensors").write_bytes(data)
    return key, sha256


def test_by_hand_over_all_layers_together(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = mask(store, "a" * 32, x=[1, 1, 0, 0], y=[1, 0])
    two = mask(store, "b" * 32, x=[1, 0, 1, 0], y=[1, 0])
    overlaps = Overlaps(store)
    assert overlaps.of(one, two) == pytest.approx(2 / 4), "two in common of four in either"
    assert overlaps.of(one, one) == 1.0
    assert overlaps.mean({"0": one, "1": one}, {"0": two, "1": one, "2": two}) == pytest.approx(0.75)


def test_what_was_computed_is_kept_and_what_is_gone_is_no_number(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, two = mask(store, "a" * 32, x=[1, 1]), mask(store, "b" * 32, x=[1, 0])
    first = Overlaps(store)
    assert first.of(one, two) == 0.5
    first.keep()
    for key, sha256 in (one, two):
        (store.path("mask", key) / f"{sha256}.safetensors").unlink()
    assert Overlaps(store).of(two, one) == 0.5
    other = mask(store, "c" * 32, x=[1, 0, 1])
    assert Overlaps(store).of(one, other) is None
    assert Overlaps(store).mean({"0": one}, {"0": other}) is None
    assert Overlaps(store).of(other, mask(store, "d" * 32, y=[1, 0, 1])) is None, "masks of other networks"


def test_a_damaged_mask_is_no_number(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, two = mask(store, "a" * 32, x=[1, 1]), mask(store, "b" * 32, x=[1, 0])
    path = store.path("mask", one[0]) / f"{one[1]}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert Overlaps(store).of(one, two) is None
