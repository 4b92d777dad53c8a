"""The plan: what a key depends on, what is shared, and the counts worked by hand."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from harness import probe
from harness.axes import read_sparsity
from harness.catalog import DATASETS
from harness.cell import USUAL, expand
from harness.check import load_sweep
from harness.claims import Observer
from harness.frontier import Frontier
from harness.names import Choice, Names
from harness.plan import Plan
from harness.planfile import read_plan, save_plan
from harness.planner import make_plan
from harness.plugins import find_plugin, freeze
from harness.probe import reaches
from harness.protocol import Protocol, as_fields, make_protocol
from harness.report.remarks import reach
from harness.shift import Worker
from harness.specs import Specs
from harness.store import Store

BASE = """
name: x
protocol: {head}
grid:
  dataset: digits
  arch: resnet20
  mask: {mask}
  sparsity: {sparsity}
  recipe: {recipe}
  seed: {seed}
"""


def plan(tmp_path: Path, after: str = "", head: str = "quick", **axes: str) -> Plan:
    values = {"mask": "snip", "sparsity": "90%", "recipe": "default", "seed": "0", "head": head, **axes}
    (tmp_path / "x.yaml").write_text(BASE.format(**values) + after)
    return make_plan(load_sweep(tmp_path / "x.yaml"), Store(tmp_path / "runs"), tmp_path)


def kinds(made: Plan) -> Counter[str]:
    return Counter(stage.kind for stage in made.stages.values())


def leaf(tmp_path: Path, **settings: str) -> str:
    return plan(tmp_path, **settings).leaves[0]


def test_what_a_cell_is_made_from_trains_with_as_many_processes(tmp_path: Path) -> None:
    made = plan(tmp_path, mask="[snip, lth]", after="  world: [1, 2]\n")
    assert {(stage.kind, stage.world) for stage in made.stages.values()} == {("data", 1), ("mask", 1), ("train", 2)}
    assert {stage.world for stage in plan(tmp_path, mask="[snip, lth]").stages.values()} == {1}


def test_cells_of_all_recipes_share_one_ticket(tmp_path: Path) -> None:
    made = plan(tmp_path, recipe="[default, gsw, ls, gsw+ls]")
    assert kinds(made) == {"data": 1, "mask": 1, "train": 4}
    assert made.unshared_trainings() == 4


@pytest.mark.parametrize(
    ("sparsity", "rounds"), [("90%", 11), ("95%", 14), ("98%", 18), ("imp:1", 1), ("imp:12", 12), ("20%", 1)]
)
def test_a_lottery_ticket_takes_the_rounds_above_it(sparsity: str, rounds: int, tmp_path: Path) -> None:
    made = plan(tmp_path, mask="lth", sparsity=sparsity, recipe="ls")
    assert kinds(made)["train"] == rounds + 1
    assert kinds(made)["mask"] == rounds


def test_all_sparsities_are_cuts_of_one_chain_and_round_0_is_the_dense_row(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        "also: [{mask: dense, recipe: default}]\n",
        mask="lth",
        sparsity="[90%, 95%, 98%]",
        recipe="[default, gsw, ls]",
        seed="0..2",
    )
    assert kinds(made)["train"] == 3 * (18 + 9)
    assert made.unshared_trainings() == 3 * (3 * (11 + 14 + 18 + 3) + 1)


def test_the_ladder_and_its_percentages_meet(tmp_path: Path) -> None:
    assert read_sparsity("97.19%").level == 16
    assert read_sparsity("20%").level == 1
    assert read_sparsity("90%").level == 0
    assert read_sparsity("imp:3").share == pytest.approx(0.488)
    ladder = "[" + ", ".join(f"imp:{n}" for n in range(1, 17)) + "]"
    made = plan(tmp_path, mask="lth", sparsity=ladder)
    assert kinds(made) == {"data": 1, "mask": 16, "train": 17}, "each level's default cell is the next round"


TREATED = {
    "digits": (1, 1, False),
    "cifar10": (1, 4, True),
    "cifar100": (1, 4, True),
    "mnist": (1, 2, False),
    "fashion_mnist": (1, 2, True),
    "tinyimagenet": (1, 4, True),
    "imagefolder": (2, 4, False),
}
"""Data set -> version, padding, flips: all of them are in keys. Only of the catalog's own is it known that flips do."""


def test_how_every_data_set_is_treated_is_as_keys_have_it() -> None:
    assert {name: (entry.version, entry.pad, entry.flip) for name, entry in DATASETS.items()} == TREATED
    assert (USUAL.pad, USUAL.flip) == (4, False), "of a data set of one's own nobody has said so"


@pytest.mark.parametrize("name", TREATED)
def test_augmentation_is_in_keys_by_what_is_done_however_it_is_written(name: str) -> None:
    _, pad, flip = TREATED[name]
    cell = next(iter(expand(load_sweep(Path("sweeps/quickstart.yaml")))[0]))

    def held(augment: object) -> dict[str, object]:
        protocol = make_protocol("quick", as_fields({"augment": augment}))
        assert Protocol(**protocol.model_dump()) == protocol, "as read back"
        return Specs(Names({}, Path())).augment(replace(cell, dataset=Choice(name), protocol=protocol))

    usual = {"augment": {"pad": pad, "flip": flip}}
    for same in (
        "standard",
        {"crop": pad},
        {"flip": flip},
        {"flip": flip, "crop": pad},
        f"crop={pad} flip={str(flip).lower()}",
    ):
        assert held(same) == usual
    assert held({"flip": not flip}) == {"augment": {"pad": pad, "flip": not flip}}
    assert held({"crop": 7}) == {"augment": {"pad": 7, "flip": flip}}
    assert held({"crop": 0, "flip": True}) == {"augment": {"pad": 0, "flip": True}}
    assert held("none") == held({"crop": 0, "flip": False}) == {}


def test_the_path_and_the_view_are_no_part_of_a_key(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    key = leaf(tmp_path)
    assert leaf(tmp_path / "other") == key
    assert leaf(tmp_path, head="{preset: quick, report: test@best-dev}") == key
    assert leaf(tmp_path, head="{preset: quick, dev: 'stratified:0.1'}") == key, "the standard split of digits"
    assert leaf(tmp_path, head="{preset: quick, augment: {flip: false, crop: 1}}") == key, "what digits have anyway"


@pytest.mark.parametrize(
    "change",
    [
        {"head": "{preset: quick, lr: 0.05}"},
        {"head": "{preset: quick, prunable: conv}"},
        {"head": "{preset: quick, precision: bf16}"},
        {"head": "{preset: quick, dev: none}"},
        {"head": "{preset: quick, augment: none}"},
        {"head": "{preset: quick, augment: {flip: true}}"},
        {"head": "{preset: quick, resize: 16}"},
        {"sparsity": "91%"},
        {"mask": "{snip: {bn: train}}"},
        {"mask": "random"},
        {"recipe": "ls"},
        {"recipe": "{ls: {alpha: 0.2}}"},
        {"seed": "1"},
    ],
    ids=str,
)
def test_whatever_changes_the_number_changes_the_key(change: dict[str, str], tmp_path: Path) -> None:
    keys = {leaf(tmp_path), leaf(tmp_path, **change)}
    if change == {"recipe": "{ls: {alpha: 0.2}}"}:
        keys.add(leaf(tmp_path, recipe="ls"))
        assert len(keys) == 3
    assert len(keys) >= 2


def test_a_dense_training_depends_on_no_prunable_set(tmp_path: Path) -> None:
    assert leaf(tmp_path, mask="dense") == leaf(tmp_path, mask="dense", head="{preset: quick, prunable: conv}")


def test_the_window_follows_the_first_drop(tmp_path: Path) -> None:
    for head, window in [
        ("tost", (45 / 182, 89 / 182)),
        ("quick", (0.25, 0.5 * 89 / 90)),
        ("{preset: tost, epochs: 91}", (45 / 182, 89 / 182)),
    ]:
        made = plan(tmp_path, recipe="gsw", head=head)
        (part,) = made.stages[made.leaves[0]].spec["recipe"]
        assert part["args"]["window"] == pytest.approx(window)
    made = plan(tmp_path, recipe="{gsw: {window: early}}")
    assert made.stages[made.leaves[0]].spec["recipe"][0]["args"]["window"] == pytest.approx((0, 1 / 6))


def test_ticket_and_order_can_have_seeds_of_their_own(tmp_path: Path) -> None:
    made = plan(tmp_path, "  ticket_seed: 7\n", mask="lth", sparsity="20%", seed="0..3", recipe="ls")
    assert kinds(made) == {"data": 1, "mask": 1, "train": 5}


def test_the_longest_chain_goes_first(tmp_path: Path) -> None:
    made = plan(tmp_path, mask="[snip, lth]", sparsity="90%")
    frontier = Frontier(made, Store(tmp_path / "runs"), Observer())
    heights = made.heights
    worker = Worker(frontier, None, threading.Event(), print)  # it only looks, and so needs no supervisor
    worker.look()
    ((data, _),) = worker.ready()
    assert data.kind == "data"
    assert heights[data.key] == 12
    assert sorted(heights[leaf] for leaf in made.leaves) == [1, 1]


def test_a_saved_plan_comes_back(tmp_path: Path) -> None:
    made = plan(tmp_path, mask="lth", sparsity="50%")
    sweep = load_sweep(tmp_path / "x.yaml")
    store = Store(tmp_path / "runs")
    path = save_plan(made, store, sweep, whole=True)
    assert read_plan(path).plan.leaves == made.leaves
    assert (store.sweep("x") / "plan.json").read_bytes() == path.read_bytes()
    assert (store.sweep("x") / "sweep.yaml").read_text() == (tmp_path / "x.yaml").read_text()


OWN = """
import torch
from torch import nn


def rows(classes, channels):
    print("built")
    return nn.Sequential(nn.Flatten(2), nn.Conv1d(channels, 6, 1), nn.Flatten(), nn.Linear(6 * 64, classes))


def normed(classes, channels):
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64 * channels, classes)))


def none(classes, channels):
    return nn.Sequential(nn.ConvTranspose2d(channels, classes, 8), nn.Flatten())


def broken(classes, channels):
    raise RuntimeError("not here")
"""


def test_helpers_of_one_name_in_two_folders_are_each_their_networks_own(tmp_path: Path) -> None:
    from harness.train.fit import reached

    store, sizes = tmp_path / "frozen", {}
    for folder, width in (("a", 3), ("b", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "blocks.py").write_text(f"WIDTH = {width}\n")
        (tmp_path / folder / "net.py").write_text(
            "import blocks\nfrom torch import nn\n\n\n"
            "def build(classes, channels):\n    return nn.Sequential(nn.Flatten(), nn.Linear(blocks.WIDTH, classes))\n"
        )
        plugin = find_plugin(f"./{folder}/net.py:build", tmp_path)
        freeze(plugin, store)
        arch = {"name": folder, "args": {}, "path": plugin.path, "source": plugin.source}
        sizes[folder] = reached({"arch": arch, "prunable": "conv+linear", "shape": [10, 1]}, store)["prunable"]
    assert sizes == {"a": 30, "b": 50}


def test_a_plan_says_what_masks_reach_of_own_networks_and_asks_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    nets = ", ".join(f'{name}: "./own.py:{name}"' for name in ("rows", "normed", "none", "broken"))
    (tmp_path / "x.yaml").write_text(
        f"name: x\nprotocol: quick\nuse: {{{nets}}}\ngrid:\n  dataset: digits\n  mask: [snip, dense]\n  sparsity: 90%\n"
        "  arch: [resnet20, rows, normed, none, broken]\n"
    )
    sweep, cache = load_sweep(tmp_path / "x.yaml"), tmp_path / "cache"
    cells, _ = expand(sweep)
    found = reaches(cells, sweep.names, cache)
    assert [line for label, one in found.items() if (line := reach(label, **vars(one)))] == [
        "rows: sparsities are of 99.8 % of its weights; left dense: 1.weight",
        "normed is refused: the weight of '1' is re-parametrised (weight_norm, spectral_norm, prune), so that pruned "
        "weights would not stay 0; make it plain first (remove_weight_norm, remove_parametrizations, prune.remove), or "
        "use a network with plain layers",
        "none takes no masks: no Conv2d or Linear of it is trained, so that there is no weight to prune; write mask: "
        "dense",
    ]
    monkeypatch.setattr(probe, "_ask_process", lambda *asked: pytest.fail("it was asked twice"))
    assert reaches(cells, sweep.names, cache) == found
    assert reaches([cell for cell in cells if cell.mask.name == "dense"], sweep.names, cache) == {}
