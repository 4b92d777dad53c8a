"""Numbers: losses and gradients that are none, precisions, networks that learn nothing."""

from __future__ import annotations

import csv
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.store import file_sha256
from harness.train.order import Order
from harness.train.stages import run_stage
from harness.train.training import prepare
from tests.chaos.conftest import Record, amount
from tests.conftest import results, run_sweep
from tests.harness.test_training import Watcher, orders  # noqa: F401 - a fixture
from tost.catalog import MASKS

AREA = "Numbers"
pytestmark = pytest.mark.chaos

POISON = '''
import torch
import torch.distributed as dist
from torch import nn


class Spoil(torch.autograd.Function):
    """Passes values on as they are, and gradients back as they are not."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, ctx.value), None


class Net(nn.Module):
    def __init__(self, classes, channels, at, what, value, rank):
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3, padding=1, bias=False)
        self.rest = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(6, classes)
        self.at, self.what, self.value, self.rank, self.seen = at, what, float(value), rank, 0

    def forward(self, x):
        spoilt = False
        if self.training and torch.is_grad_enabled():
            mine = self.rank < 0 or dist.get_rank() == self.rank
            spoilt, self.seen = mine and self.seen == self.at, self.seen + 1
        x = self.first(x)
        if spoilt and self.what == "gradient":
            x = Spoil.apply(x, self.value)
        logits = self.last(self.rest(x))
        if spoilt and self.what == "loss":
            off = torch.zeros_like(logits)
            off[:, 1:] = -abs(self.value)
            return logits + off
        return logits


def build(classes, channels, at=-1, what="nothing", value="0", rank=-1):
    return Net(classes, channels, at, what, value, rank)
'''
SWEEP = """
name: numbers
protocol: {{preset: quick, epochs: 2, batch: 76}}
use: {{poison: "./poison.py:build"}}
grid:
  dataset: digits
  arch: {archs}
  mask: dense
  recipe: default
  precision: {precisions}
  seed: 0
  world: {world}
figures: []
"""


def poisoned(folder: Path, archs: list[dict[str, Any]], precisions: str, world: int) -> list[dict[str, Any]]:
    """Run a sweep of poisoned networks and a sound one; return how every training ended, with its network's knobs."""
    (folder / "poison.py").write_text(POISON)
    written = json.dumps([{"poison": knobs} for knobs in archs])
    (folder / "numbers.yaml").write_text(SWEEP.format(archs=written, precisions=precisions, world=world))
    done = run_sweep(folder, "numbers.yaml", "--workers", "2", "--threads", "1", timeout=1200)
    assert "Traceback" not in done.stderr
    found = []
    for path in folder.glob("runs/stages/train/*/*/attempt-*/end.json"):
        spec = json.loads((path.parents[1] / "spec.json").read_text())
        found.append({**json.loads(path.read_text()), "knobs": spec["arch"].get("args", {})})
    return found


def in_its_step(end: dict[str, Any], steps: int) -> bool:
    """Return whether an end is told as a divergence at the very step, for the right reason."""
    epoch, step = divmod(end["knobs"]["at"], steps)
    where = f"the {end['knobs']['what']} is not finite at epoch {epoch + 1}, step {step + 1}"
    return (end["outcome"], end["epoch"], end["step"], end["message"]) == ("diverged", epoch + 1, step + 1, where)


CASES = list(itertools.product(("loss", "gradient"), ("nan", "inf")))


@pytest.mark.parametrize("world", [1, 2])
def test_what_is_no_number_is_a_divergence_in_its_step(
    world: int,
    project: Path,
    orders: Callable[..., dict[str, Order]],  # noqa: F811
    record: Record,
) -> None:
    steps, draw = prepare(orders(", batch: 76")["train"]).steps, random.Random(world)
    alone = world == 1
    cases = CASES * amount(1, 12) if alone else amount(CASES[::3], CASES * 2)
    rank = {} if alone else {"rank": 1}
    archs = [{"what": w, "value": v, "at": draw.randrange(2 * steps), **rank} for w, v in cases]
    ends = poisoned(project, [*archs, {"what": "nothing at all", **rank}], "[fp32, bf16]" if alone else "fp32", world)
    sound = [end for end in ends if "at" not in end["knobs"]]
    assert sound
    assert {end["outcome"] for end in sound} == {"published"}, "and so is the rest of the sweep"
    spoilt = [end for end in ends if "at" in end["knobs"]]
    assert len(results(project / "runs")) == len(sound) + 1
    for what in ("loss", "gradient"):
        mine = [end for end in spoilt if end["knobs"]["what"] == what]
        wanted = len({tuple(arch.items()) for arch in archs if arch["what"] == what}) * (2 if alone else 1)
        wrong = sum(not in_its_step(end, steps) for end in mine)
        record.note(
            f"a {what} becomes nan or infinite" + ("" if alone else " in one of two processes"),
            len(mine),
            "the training diverged, with epoch and step, before the next; the rest of the sweep goes on",
            lost=wanted - len(mine),
            wrong=wrong,
        )
        assert (len(mine), wrong) == (wanted, 0), mine


SCORED = sorted(name for name, method in MASKS.items() if method.at != "training")
FRESH = ["random", "erk", "magnitude", "snip", "grasp", "synflow"]
"""Those that no training comes before."""


def test_precision_changes_no_mask(orders: Callable[..., dict[str, Order]], record: Record) -> None:  # noqa: F811
    seen, wrong = set[torch.dtype](), 0
    masks = amount(FRESH, SCORED)
    for mask in masks:
        plain, mixed = (orders(f", precision: {p}", mask=mask, epochs="1")["mask"] for p in ("fp32", "bf16"))
        seen.clear()
        with torch.nn.modules.module.register_module_forward_hook(lambda module, given, made: seen.add(made.dtype)):
            made = [run_stage(order, Watcher()).draft for order in (plain, replace(mixed, parents=plain.parents))]
        wrong += file_sha256(made[0]) != file_sha256(made[1]) or not seen <= {torch.float32, torch.float64}
    record.note("a protocol in bf16", len(masks), "its masks are those of fp32: scores are", wrong=wrong)
    assert set(FRESH) < set(SCORED)
    assert wrong == 0


FLAT = """
from torch import nn


class Net(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        self.last = nn.Linear(216, classes)

    def forward(self, x):
        return self.last(self.body(x)) * 0


def build(classes, channels):
    return Net(classes, channels)
"""


def test_a_network_that_learns_nothing_is_told_apart(project: Path, record: Record) -> None:
    seeds = amount(2, 10)
    (project / "flat.py").write_text(FLAT)
    text = (project / "tiny.yaml").read_text().split("also:")[0] + "tables: [any-mask]\nfigures: []\n"
    text = text.replace('use: {thin: "./thin.py:build"}', 'use: {thin: "./thin.py:build", flat: "./flat.py:build"}')
    text = text.replace("arch: thin", "arch: [thin, flat]").replace("mask: [random, lth]", "mask: random")
    text = text.replace("epochs: 2", "epochs: 4").replace("[default, ls]", "default")
    (project / "tiny.yaml").write_text(text.replace("0..1", f"0..{seeds - 1}"))
    done = run_sweep(project, "tiny.yaml", "--workers", "2", "--threads", "1")
    assert done.returncode == 0, done.stderr
    with (project / "runs/sweeps/tiny/report/cells.csv").open() as file:
        marked = {(row["arch"], row["seed"]): row["at_chance"] for row in csv.DictReader(file)}
    assert len(marked) == 2 * seeds
    missed = sum(marked["flat", str(seed)] != "True" for seed in range(seeds))
    accused = sum(marked["thin", str(seed)] != "False" for seed in range(seeds))
    found = f"`[{seeds} at chance]` in its entry, its name in the caption, a mark in cells.csv"
    record.note("a network that learns nothing", seeds, found, lost=missed, wrong=accused)
    assert (missed, accused) == (0, 0)
    assert f"[{seeds} at chance]" in done.stdout
    said = " ".join(done.stdout.split())
    assert "No better than guessing (95 % interval): digits flat random 50% default seed 0;" in said
