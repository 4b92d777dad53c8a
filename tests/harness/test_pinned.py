"""Keys of the shipped sweeps, and artifacts of a small one, as they have always been: no change of code moves them.

Where a result must change, its entry's version is raised: the keys that change with it are written here anew, and no
others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.check import load_sweep
from harness.planner import make_plan
from harness.store import Store, digest
from tests.conftest import hashes, run_sweep

SWEEPS = Path(__file__).parents[2] / "sweeps"

KEYS = {
    "controls": ("a841fa7190cf3bb33f3c8faddb18155c", "c782483e8ab959dbbeec18afd18001f9"),
    "factorial": ("cf1e1d58c42a84ab5449ac9826d14181", "b2a3c13ecf9a7cacf86186752e6528c2"),
    "full_grid": ("f5bc28778dc3fdcdb9875dfe1d9b44f3", "a9a94b0cd192355c14e320aa977e17c4"),
    "quickstart": ("f3abee6c6882c137d9852a485a544844", "26d9cddf5bec8beb845e9799963c3848"),
    "tuning": ("f102790ceac4ce59830295e5567dd8c4", "200ff7fb2bcc1d0918a1860f3c6e26f1"),
}
"""Sweep -> digest of all its stage keys, digest of its cells' labels and keys; made where no data set is."""

RANDOM = """
name: pinned
protocol: {preset: quick, epochs: 1}
grid: {dataset: digits, arch: resnet20, mask: [random, erk], sparsity: 90%, recipe: default, seed: 0}
"""

ARTIFACTS = {  # key -> SHA-256
    "f510fa082b5003c3321914fae5767231": "65f90e0a5f897e8a538a7e31374a53307ee58a7e1f952ced88ca1685ab3c0484",
    "4b049f995fd649cbab395c6a6db940ea": "cf8997f680cd4f27e0c6d71dddc035f732023d2e8f9bd4bb202f7dc014409b0b",
    "a78630bea894e01f9eef27e7ea35c19c": "9e8b6c21c1f49be181caac5caee2f4d271be21d574fb9dc57b47bcafc27e0e86",
}


@pytest.mark.parametrize("name", sorted(path.stem for path in SWEEPS.glob("*.yaml")))
def test_stage_keys_of_shipped_sweeps(name: str, tmp_path: Path) -> None:
    plan = make_plan(load_sweep(SWEEPS / f"{name}.yaml"), Store(tmp_path), tmp_path)
    assert (digest(sorted(plan.stages)), digest([(cell.label, key) for cell, key in plan.cells])) == KEYS[name]


def test_artifacts_that_no_processor_changes(tmp_path: Path) -> None:
    """The data and random masks: integers throughout, so that they are the same to the bit on every machine."""
    (tmp_path / "pinned.yaml").write_text(RANDOM)
    done = run_sweep(tmp_path, "pinned.yaml", "--workers", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    trained = {path.parent.name for path in tmp_path.glob("runs/stages/train/*/*/spec.json")}
    assert {key: sha for key, sha in hashes(tmp_path / "runs").items() if key not in trained} == ARTIFACTS
