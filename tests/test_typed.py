"""A user's script under mypy --strict: what is right passes, and what is wrong is seen."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

ROOT = Path(__file__).parents[1]
SCRIPT = """
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness import load_curves, load_mask, load_results
from tost import (
    GhostSkips,
    GradualPruning,
    LabelSmoothing,
    MaskError,
    Masks,
    Part,
    Pruned,
    RescaledInit,
    SoftActivation,
    apply_masks,
    density,
    find_masks,
    find_scales,
    keep_count,
    prunable,
    shuffled,
)
from tost.accounting import layers
from tost.masks.scores import magnitude, snip
from tost.models.resnet import resnet20


def score(model: nn.Module, power: float = 1.0) -> dict[str, Tensor]:
    return {name: weight.detach().abs() ** power for name, weight in prunable(model).items()}


def ticket(net: nn.Module, images: Tensor, labels: Tensor) -> Masks:
    total = sum(weight.numel() for weight in prunable(net).values())
    try:
        return find_masks(snip, net, keep_count(total, 0.1), offered={"batches": [(images, labels)]})
    except MaskError:
        return find_masks(score, net, keep_count(total, 0.1), steps=3, offered={"power": 2.0})


class Mine(Part):
    def step(self, progress: float) -> None:
        self.ghosts = progress < 0.5


def train(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    masks = ticket(net, images, labels)
    scales = find_scales(net, masks, lambda: (images, labels), iterations=2)
    parts: list[Part] = [RescaledInit(scales.scales), SoftActivation((0.2, 0.5)), GhostSkips((0.2, 0.5)), Mine()]
    criterion = LabelSmoothing(0.1).criterion(cross_entropy)
    for part in parts:
        part.attach(net)
    pruned = Pruned(net, masks)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(10):
        for part in parts:
            part.step(step / 10)
        optimizer.zero_grad()
        loss: Tensor = criterion(net(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        pruned.clear()
    apply_masks(net, shuffled(masks, torch.Generator()))
    return density(masks) + sum(layer.kept for layer in layers(net, (1, 8, 8), masks).values())


net = resnet20(classes=10, channels=1)
gradual = GradualPruning(net, 1000, 100)(5)
cells = load_results("quickstart", "sweeps/other.yaml", store="runs")
means = cells.groupby("mask", observed=True)["accuracy"].mean()
curves = load_curves("quickstart")
kept: dict[str, int] = {name: int(mask.sum()) for name, mask in load_mask("3fa9c1").items()}
scores: dict[str, Tensor] = magnitude(net)
from harness import load_reslts  # wrong
from tost import aply_masks  # wrong
find_masks("snip", net, 3)  # wrong
load_results(3)  # wrong
keep_count("many", 0.1)  # wrong
"""


@pytest.mark.slow
def test_a_script_is_checked_as_strictly_as_the_project(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    for example in ("own_mask.py", "own_dataset.py"):
        (tmp_path / example).write_text((ROOT / "examples" / example).read_text())
    files = ["script.py", "own_mask.py", "own_dataset.py"]
    options = ["--strict", "--config-file=", "--follow-imports=silent", "--no-error-summary"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *files],
        cwd=tmp_path,
        env=environment() | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    wrong = [number for number, line in enumerate(SCRIPT.splitlines(), 1) if line.endswith("# wrong")]
    found = re.findall(r"^(\w+)\.py:(\d+): error", done.stdout, re.M)
    assert [(name, int(number)) for name, number in found] == [("script", number) for number in wrong], done.stdout


def test_both_packages_carry_their_types() -> None:
    told = configparser.ConfigParser()
    told.read(ROOT / "setup.cfg")
    for package in ("harness", "tost"):
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in told["options.package_data"][package].split()
