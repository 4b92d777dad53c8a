"""The miniature: the whole graph of a sweep on stand-in images, with a pre-emption, in a store of its own."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.check import load_sweep
from harness.driver import Driver
from harness.errors import UserError
from harness.miniature import own_store
from harness.options import Options
from harness.planfile import as_saved
from harness.planner import make_plan
from harness.store import Store
from tests.conftest import results

Run = Callable[..., subprocess.CompletedProcess[str]]
FILE = Path(__file__).resolve().parents[2] / "sweeps" / "full_grid.yaml"

GRID = """
name: wide
use: {thin: "./thin.py:build"}
grid:
  dataset: [cifar10, "imagefolder:./nowhere"]
  arch: [thin, {resnet20: {width: 0.5}}]
  mask: [lth, {lth: {rewind: 100}}, snip, synflow, gmp, {random: {control: shuffled}}]
  sparsity: [90%, 50%]
  recipe: [default, gsw, {lrsi: {iterations: 50}}]
  seed: 3..5
also:
  - {mask: dense, recipe: [default, gsw]}
  - {recipe: default, mask: snip, epochs: match_cost(gsw)}
tables: [any-mask]
"""


def test_full_grids_miniature_has_every_sort_of_cell_once(tmp_path: Path) -> None:
    sweep = load_sweep(FILE)
    plan = make_plan(sweep, Store(tmp_path), tmp_path, miniature=True)
    kinds = Counter(stage.kind for stage in plan.stages.values())
    # Three data sets and five networks: 5 masks x 6 recipes and a dense tost each, and 18 rounds of the lottery,
    # of which round 0 is the dense row.
    assert len(plan.cells) == 15 * (5 * 6 + 2)
    assert kinds["train"] == 15 * (5 * 6 + 1 + 18)
    assert kinds["rescale"] == 15 * (5 + 1)
    # A mask method's three sparsities; of the lottery 90 and 95 and 98 %, and 18 levels less the one that is 98.20.
    assert kinds["mask"] == 15 * (4 * 3 + 17 + 3)
    assert kinds["data"] == 2, "16 pixels for three halvings, 32 for more"
    assert not plan.missing(), "no data set is needed"
    assert {cell.seed for cell, _ in plan.cells} == {0}
    assert {cell.world for cell, _ in plan.cells} == {1}


SHIPPED = [file for file in sorted(FILE.parent.glob("*.yaml")) if "\nsearch:" not in file.read_text()]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_sweep_that_comes_along_has_a_miniature_claims_or_not(file: Path, tmp_path: Path) -> None:
    driver = Driver(file, tmp_path / "runs", None, Options("local"), miniature=True)
    driver.load()
    saved = as_saved(driver.plan, driver.sweep)
    assert saved.cells
    assert not saved.declared.claims


@pytest.mark.slow
def test_a_miniature_runs_every_kind_of_stage_and_goes_on_after_a_pre_emption(project: Path, sweep: Run) -> None:
    (project / "wide.yaml").write_text(GRID)
    done = sweep("wide.yaml", "--miniature", timeout=400)
    assert done.returncode == 0, done.stderr
    assert "any-mask" in done.stdout
    assert "the images are noise: these numbers mean nothing" in " ".join(done.stdout.split()).lower()
    store = project / "runs" / "miniature"
    assert not (project / "runs" / "stages").exists(), "the sweep's own store is not touched"
    kinds = Counter(path.parts[-4] for path in store.glob("stages/*/*/*/result-0001.json"))
    assert set(kinds) == {"data", "mask", "rescale", "train"}
    assert not list(store.glob("stages/*/*/*/result-0002.json"))
    ends = [json.loads(path.read_text()) for path in store.glob("stages/train/*/*/attempt-*/end.json")]
    assert any(end["outcome"] == "stopped" for end in ends), "one worker was pre-empted in a training"
    trained = [r for (r,) in results(store).values() if "test@last" in r["metrics"]]
    assert any(r["provenance"]["resumed"] for r in trained)
    assert {r["metrics"]["epochs"] for r in trained} <= {1, 2, 3}
    assert sweep("wide.yaml", "--miniature", "--plan").returncode == 0
    assert "to run" in sweep("wide.yaml", "--miniature", "--plan").stdout


def test_a_miniature_that_was_only_planned_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "miniature" / "cache").mkdir(parents=True)
    assert not own_store(tmp_path).exists()
    (tmp_path / "miniature" / "cache").mkdir(parents=True)
    (tmp_path / "miniature" / "thesis.txt").touch()
    with pytest.raises(UserError, match="in the way"):
        own_store(tmp_path)


def test_what_is_in_the_way_of_a_miniature_is_named_and_kept(project: Path, sweep: Run) -> None:
    kept = project / "runs" / "miniature" / "thesis.txt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    done = sweep("tiny.yaml", "--miniature")
    assert done.returncode == 2
    assert "is in the way" in done.stderr
    assert kept.exists()
