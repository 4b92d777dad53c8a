"""The laws at full size: every method on every network of the catalog, as published; run by `make conformance`."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from tests.tost.nets import call, offers, total
from tost.catalog import MASKS, MODELS, resolve
from tost.masks import find_masks, keep_count
from tost.masks.apply import check_masks, empty_layers
from tost.masks.scores import synflow

pytestmark = pytest.mark.conformance

SHARES = ("0", "1/2", "9/10", "49/50", "999/1000")


@pytest.fixture(params=sorted(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    net: torch.nn.Module = resolve(MODELS[name].path)(10, 3)
    return net


@pytest.mark.parametrize("method", sorted(MASKS))
def test_every_method_keeps_the_exact_count(method: str, name: str) -> None:
    net = build(name)
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    offered = {**offers(), "batches": [(images, torch.arange(20) % 10)], "shape": (3, 32, 32)}
    knobs = {n: MASKS[method].knobs[n].default for n in ("scope",) if n in MASKS[method].knobs}
    found = call(method, net, offered=offered)
    for share in SHARES:
        keep = keep_count(total(net), 1 - Fraction(share))
        masks = find_masks(lambda model: found, net, keep, offered=offered, **knobs)  # type: ignore[arg-type]
        assert sum(int(mask.sum()) for mask in masks.values()) == keep
        check_masks(net, masks)


@pytest.mark.parametrize("share", ["99/100", "999/1000"])
def test_synflows_hundred_steps_collapse_no_layer(share: str, name: str) -> None:
    net, density = build(name), 1 - Fraction(share)
    keep = keep_count(total(net), density)
    masks = find_masks(synflow, net, keep, density=density, steps=100, offered={"shape": (3, 32, 32)})
    assert sum(int(mask.sum()) for mask in masks.values()) == keep
    assert empty_layers(masks) == []
