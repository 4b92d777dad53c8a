"""What a notebook loads: typed rows, those of cells.parquet, holes kept; curves; masks; a store untouched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from harness import load_curves, load_mask, load_results
from harness.check import load_sweep
from harness.errors import UserError
from harness.planfile import find_plan, read_plan, save_plan
from harness.planner import make_plan
from harness.report.assemble import make_report
from harness.report.writers import write_cells
from harness.store import Store
from tests.conftest import environment
from tests.harness.synthetic import fixture, write_fixture_store

AXES = """
name: axes
protocol: {preset: quick}
grid:
  dataset: digits
  arch: resnet20
  mask: [snip, random]
  sparsity: [98%, 90%]
  recipe: [gsw, default]
  seed: 3..4
  lr: [0.1, 0.01]
  epochs: [6, 7]
  nesterov: [true, false]
  gsw.b1: [10, 20.5]
  milestones: [[2, 3], [1, 2]]
also:
  - {mask: dense}
tables: [any-mask]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of 300 cells, most of them with a made-up result, and no report."""
    made = tmp_path_factory.mktemp("results")
    write_fixture_store(made)
    return made


@pytest.fixture(scope="module")
def cells(folder: Path) -> pd.DataFrame:
    return load_results("synthetic", store=folder / "runs")


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


def test_every_cell_is_a_row_with_the_store_s_numbers(cells: pd.DataFrame) -> None:
    rows = fixture()
    assert len(cells) == len(rows) == 300
    for _, cell in cells.iterrows():
        told = rows[tuple(str(cell[axis]) for axis in ("arch", "mask", "sparsity", "recipe", "seed"))]
        if cell["state"] == "done":
            assert (cell["accuracy"], cell["dev_accuracy"]) == (float(told["test"]), float(told["dev"]))
        else:
            assert told["state"] != "done" or cell["state"] == "ticket failed"
            assert cell[["accuracy", "test@last", "density", "seconds", "finished", "torch"]].isna().all()
    assert list(cells["at_chance"].isna()) == list(cells["state"] != "done")
    assert cells["state"].value_counts()["diverged"] == cells["diverged"].sum() == 7
    assert set(cells.loc[cells["state"] == "ticket failed", "cause"]) == {"out of luck"}
    assert cells.loc[cells["state"] == "done", "cause"].isna().all()


def test_what_a_ticket_took_stands_beside_the_cell(folder: Path, cells: pd.DataFrame) -> None:
    plan, store = read_plan(find_plan(Store(folder / "runs"), "synthetic")).plan, Store(folder / "runs")
    done = cells[cells["state"] == "done"]
    for name in ("dense", "random", "lth"):
        cell = done[done["mask"] == name].iloc[0]
        above = [plan.stages[key] for key in plan.ancestors(cell["key"]) - {cell["key"]}]
        results = [store.folder(stage.kind, stage.key).result() for stage in above if stage.kind != "data"]
        told = [float(result.provenance["seconds"]) for result in results if result]
        assert cell["seconds_before"] == sum(told)
        assert bool(told) == (name != "dense")
    assert cells.loc[cells["state"] != "done", "seconds_before"].isna().all()


def test_columns_have_their_types(cells: pd.DataFrame) -> None:
    assert list(cells["mask"].cat.categories) == ["random", "snip", "lth", "dense"]
    assert list(cells["recipe"].cat.categories) == ["default", "gsw", "ls", "tost"]
    assert list(cells["sparsity"].cat.categories) == ["0%", "90%", "95%", "98%"]
    assert all(cells[axis].cat.ordered for axis in ("dataset", "arch", "mask", "sparsity", "recipe"))
    assert set(cells["sparsity_share"].unique()) == {0, 0.9, 0.95, 0.98}
    kinds = {
        "Int64": ["seed", "ticket_seed", "world", "best_epoch", "kept", "training_flops", "empty_layers", "threads"],
        "Float64": [
            "sparsity_share",
            "accuracy",
            "test@last",
            "dev_accuracy",
            "density",
            "near_zero",
            "seconds",
            "seconds_before",
        ],
        "boolean": ["at_chance", "diverged"],
        "string": ["state", "cause", "key", "mask_id", "device", "reported"],
        "datetime64[ms, UTC]": ["finished"],
    }
    for kind, names in kinds.items():
        assert {str(cells[name].dtype) for name in names} == {kind}, kind
    assert cells["finished"].max() == pd.Timestamp("2026-01-02T03:04:05Z")


def test_the_frame_is_the_report_s(folder: Path, cells: pd.DataFrame, tmp_path: Path) -> None:
    store = Store(folder / "runs")
    write_cells(tmp_path, make_report(store, [read_plan(find_plan(store, "synthetic"))]).frame)
    assert_frame_equal(pd.read_parquet(tmp_path / "cells.parquet"), cells)
    assert_frame_equal(load_results("synthetic", store=folder / "runs"), cells)  # whatever caches it has left
    read = pd.read_csv(tmp_path / "cells.csv", dtype=str, keep_default_na=False)
    assert list(read) == list(cells)
    assert list(read["sparsity"]) == list(cells["sparsity"])
    assert list(read["seed"]) == [str(seed) for seed in cells["seed"]]
    assert list(read["training_flops"]) == ["" if v is pd.NA else str(v) for v in cells["training_flops"]]


def test_axes_are_numbers_truths_or_names_in_the_grid_s_order(tmp_path: Path) -> None:
    (tmp_path / "axes.yaml").write_text(AXES)
    sweep, store = load_sweep(tmp_path / "axes.yaml"), Store(tmp_path / "runs")
    plan = make_plan(sweep, store, tmp_path)
    save_plan(plan, store, sweep, whole=True)
    frame = load_results("axes", store=store.root)
    assert len(frame) == len(plan.cells)
    types = {name: str(frame[name].dtype) for name in ("lr", "epochs", "nesterov", "gsw.b1", "seed", "epochs_measured")}
    assert types.pop("nesterov") == "boolean"
    assert types.pop("lr") == types.pop("gsw.b1") == "Float64"
    assert set(types.values()) == {"Int64"}
    assert list(frame["recipe"].cat.categories) == ["gsw(b1=10.0)", "gsw(b1=20.5)", "default"]
    assert list(frame["milestones"].cat.categories) == ["(2.0, 3.0)", "(1.0, 2.0)"]
    assert frame.loc[frame["recipe"] == "default", "gsw.b1"].isna().all()
    assert set(frame.loc[frame["recipe"] != "default", "gsw.b1"]) == {10, 20.5}
    assert set(frame["epochs"]) == {6, 7}, "an axis of a hole is known, though a metric has its name"
    assert frame["epochs_measured"].isna().all()
    assert set(frame["state"]) == {"missing"}
    assert_frame_equal(load_results(tmp_path / "axes.yaml", store=store.root), frame)
    assert load_curves("axes", store=store.root).empty


def test_nothing_is_written(folder: Path) -> None:
    (folder / "other.yaml").write_text((folder / "synthetic.yaml").read_text().replace("0..3", "0..4"))
    before = state_of(folder)
    assert len(load_results(folder / "other.yaml", store=folder / "runs")) > 300
    load_results("synthetic", store=folder / "runs")
    load_curves("synthetic", store=folder / "runs")
    assert state_of(folder) == before


def test_cells_of_several_sweeps_stand_once(folder: Path) -> None:
    (folder / "part.yaml").write_text(
        "name: part\nprotocol: {preset: quick, epochs: 12}\n"
        "grid: {dataset: digits, arch: resnet20, mask: snip, sparsity: 90%, seed: 3..5}\ntables: [any-mask]\n"
    )
    both = load_results("synthetic", folder / "part.yaml", store=folder / "runs")
    assert len(both) == 302
    assert list(both["sweep"].cat.categories) == ["synthetic", "part"]
    assert list(both.loc[both["sweep"] == "part", "seed"]) == [4, 5]
    (folder / "longer.yaml").write_text(
        (folder / "part.yaml").read_text().replace("12}", "20}").replace("part", '"007"')
    )
    told = load_results("synthetic", folder / "longer.yaml", store=folder / "runs").set_index("sweep")
    assert list(told.index.categories) == ["synthetic", "007"]
    assert set(told.loc["synthetic", "epochs"]) == {12}, "a field in which sweeps differ is told"
    assert list(told.loc["007", "epochs"]) == [20, 20, 20]


def test_curves_have_the_numbers_of_every_epoch(folder: Path, cells: pd.DataFrame) -> None:
    curves = load_curves("synthetic", store=folder / "runs")
    assert len(curves) == 12 * (cells["state"] == "done").sum()
    assert {str(curves[name].dtype) for name in ("train_loss", "dev_accuracy", "test_accuracy")} == {"Float64"}
    assert (str(curves["ghosts"].dtype), str(curves["epoch"].dtype)) == ("boolean", "Int64")
    assert list(curves["mask"].cat.categories) == list(cells["mask"].cat.categories)
    for key, rows in list(curves.groupby("key"))[::60]:
        written = Store(folder / "runs").path("train", str(key)) / "attempt-0001" / "metrics.jsonl"
        told: list[dict[str, Any]] = [json.loads(line) for line in written.read_text().splitlines()]
        assert list(rows["epoch"]) == [row["epoch"] for row in told]
        assert list(rows["dev_accuracy"]) == pytest.approx([row["dev_accuracy"] for row in told], rel=1e-5)
        assert list(rows["ghosts"]) == [row["ghosts"] for row in told]
        assert list(rows["test_accuracy"].notna()) == ["test_accuracy" in row for row in told]


def test_a_mask_is_loaded_by_its_key_or_file(folder: Path) -> None:
    paths = sorted((folder / "runs" / "stages" / "mask").glob("*/*/*.safetensors"))
    by_key = load_mask(paths[0].parent.name[:12], store=folder / "runs")
    by_file = load_mask(paths[0])
    assert (
        by_key.keys()
        == by_file.keys()
        == {"conv1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight", "fc.weight"}
    )
    assert all(mask.dtype == torch.bool and bool((mask == by_file[name]).all()) for name, mask in by_key.items())


def test_mistakes_are_said_in_words(folder: Path, tmp_path: Path) -> None:
    store = folder / "runs"
    with pytest.raises(UserError, match=r"'synthtic' has no plan .*did you mean 'synthetic'"):
        load_results("synthtic", store=store)
    with pytest.raises(UserError, match="there are none"):
        load_curves("quickstart", store=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"name a sweep, for example: load_results\('synthetic', store="):
        load_results(store=store)
    with pytest.raises(UserError, match=r"runs is a store; name its sweeps: load_results\('synthetic', store="):
        load_results(store)
    with pytest.raises(UserError, match=r"missing\.yaml"):
        load_results(tmp_path / "missing.yaml", store=store)
    with pytest.raises(UserError, match="no mask and no training"):
        load_mask("ffffffffffff", store=store)
    assert not (tmp_path / "nowhere").exists()


def test_importing_the_harness_loads_nothing_until_it_is_asked() -> None:
    code = (
        "import sys, harness\n"
        "assert {'load_results', 'load_curves', 'load_mask'} <= set(dir(harness))\n"
        "print([m for m in ('pandas', 'torch', 'numpy', 'harness.results') if m in sys.modules])\n"
        "from harness import load_results\n"
        "print([m for m in ('torch', 'matplotlib', 'ray', 'wandb') if m in sys.modules])\n"
        "harness.load_reslts"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment())
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr
    assert "AttributeError: module 'harness' has no attribute 'load_reslts'" in done.stderr
