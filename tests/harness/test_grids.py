"""Laws of planning, over drawn grids: expansion, uniting, exclusion, keys that do not move, parents before children."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.check import load_sweep
from harness.plan import Plan
from harness.planfile import as_saved, dump, read_plan
from harness.planner import make_plan
from harness.store import Store, canonical, digest

AXES: dict[str, list[Any]] = {
    "arch": ["resnet20", "resnet32", "vgg16"],
    "mask": ["random", "snip", "lth", "magnitude"],
    "sparsity": ["50%", "80%", "imp:2"],
    "recipe": ["default", "ls", "gsw", "gsw+ls"],
    "seed": [0, 1, 2],
}

GRIDS = st.fixed_dictionaries(
    {axis: st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True) for axis, values in AXES.items()}
)
LAWS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def planned(folder: Path, grid: dict[str, list[Any]], **more: Any) -> Plan:
    text = {"name": "drawn", "protocol": "quick", "grid": {"dataset": "digits", **grid}, **more}
    (folder / "x.yaml").write_text(json.dumps(text))  # every JSON text is YAML
    return make_plan(load_sweep(folder / "x.yaml"), Store(folder / "runs"), folder)


LABELS = {"imp:2": "36.00%"}


@LAWS
@given(GRIDS)
def test_a_grid_expands_to_its_product_in_the_files_order(tmp_path: Path, grid: dict[str, list[Any]]) -> None:
    plan = planned(tmp_path, grid)
    labels = [tuple(LABELS.get(value, str(value)) for value in point) for point in itertools.product(*grid.values())]
    assert [tuple(str(cell.axis(axis)) for axis in grid) for cell, _ in plan.cells] == labels
    assert len({key for _, key in plan.cells}) == len(plan.cells)
    assert plan.united == 0


@LAWS
@given(GRIDS, st.data())
def test_a_repeated_block_adds_no_cell(tmp_path: Path, grid: dict[str, list[Any]], data: st.DataObject) -> None:
    alone = planned(tmp_path, grid)
    axis = data.draw(st.sampled_from(sorted(AXES)))
    again = data.draw(st.lists(st.sampled_from(grid[axis]), min_size=1, unique=True))
    twice = planned(tmp_path, grid, also=[{axis: again}])
    assert twice.cells == alone.cells
    assert twice.stages == alone.stages
    assert twice.united == len(alone.cells) * len(again) // len(grid[axis])


@LAWS
@given(GRIDS, st.data())
def test_exclusion_takes_exactly_the_cells_that_it_names(
    tmp_path: Path, grid: dict[str, list[Any]], data: st.DataObject
) -> None:
    whole = planned(tmp_path, grid)
    arch, seed = data.draw(st.sampled_from(AXES["arch"])), data.draw(st.sampled_from(AXES["seed"]))
    left = [pair for pair in whole.cells if not (pair[0].arch.name == arch and pair[0].seed == seed)]
    excluded = planned(tmp_path, grid, exclude=[f"arch == '{arch}' and seed == {seed}"])
    assert [key for _, key in excluded.cells] == [key for _, key in left]
    assert set(excluded.stages) <= set(whole.stages)
    assert set(excluded.stages) == set().union(*(whole.ancestors(key) for _, key in left))


@LAWS
@given(GRIDS, st.randoms())
def test_keys_depend_on_no_order_and_on_no_neighbour(tmp_path: Path, grid: dict[str, list[Any]], random: Any) -> None:
    whole = planned(tmp_path, grid)
    axes = random.sample(sorted(grid), len(grid))
    other = planned(tmp_path, {axis: random.sample(grid[axis], len(grid[axis])) for axis in axes})
    assert {str(cell): key for cell, key in other.cells} == {str(cell): key for cell, key in whole.cells}
    assert set(other.stages) == set(whole.stages)
    cell, key = random.choice(whole.cells)
    only = {axis: [v for v in grid[axis] if LABELS.get(v, str(v)) == str(cell.axis(axis))] for axis in axes}
    assert [k for _, k in planned(tmp_path, only).cells] == [key]


@LAWS
@given(GRIDS)
def test_parents_come_first_and_a_key_is_the_hash_of_all_it_holds(tmp_path: Path, grid: dict[str, list[Any]]) -> None:
    plan = planned(tmp_path, grid)
    seen: set[str] = set()
    for key, stage in plan.stages.items():
        assert set(stage.parents.values()) <= seen
        assert key == stage.key == digest({"kind": stage.kind, "parents": dict(stage.parents), **stage.spec})
        seen.add(key)
    assert seen == set().union(*(plan.ancestors(key) for key in plan.leaves)), "no stage that no cell needs"


@LAWS
@given(GRIDS)
def test_a_plan_comes_back_from_its_file(tmp_path: Path, grid: dict[str, list[Any]]) -> None:
    plan = planned(tmp_path, grid)
    saved = as_saved(plan, load_sweep(tmp_path / "x.yaml"))
    (tmp_path / "plan.json").write_bytes(dump(saved))
    back = read_plan(tmp_path / "plan.json")
    assert list(back.plan.stages) == list(plan.stages)
    for old, new in zip(plan.stages.values(), back.plan.stages.values(), strict=True):
        assert (old.kind, old.label, dict(old.parents)) == (new.kind, new.label, dict(new.parents))
        assert canonical(dict(old.spec)) == canonical(dict(new.spec))
    assert (back.cells, back.axes, back.source) == (saved.cells, saved.axes, saved.source)
    assert back.plan.leaves == plan.leaves


def test_two_sweeps_with_overlapping_grids_share_their_stages(tmp_path: Path) -> None:
    lth = {"arch": ["resnet20"], "mask": ["lth"], "sparsity": ["80%"]}
    first = planned(tmp_path, {**lth, "mask": ["lth", "snip"], "recipe": ["default", "ls"]})
    second = planned(tmp_path, {**lth, "sparsity": ["50%", "80%"], "recipe": ["gsw"], "seed": [0, 1]})
    kinds = [first.stages[key].kind for key in set(first.stages) & set(second.stages)]
    # The data set; rounds 0 to 7 of seed 0 with the cuts between them, and the cut at 80 %.
    assert (kinds.count("data"), kinds.count("train"), kinds.count("mask")) == (1, 8, 8)
