"""Tickets in the plan: what controls, rewinding, schedules and scales share, and what each key holds."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cell import expand
from harness.check import load_sweep
from harness.errors import FileError
from harness.plan import Plan, Stage
from harness.planner import make_plan
from harness.probe import imports_of
from harness.store import Store
from harness.train.imported import answer
from tests.harness.test_plan import kinds, leaf, plan
from tost.masks import prunable
from tost.models.resnet import resnet20


def only(made: Plan, kind: str) -> list[Stage]:
    return [stage for stage in made.stages.values() if stage.kind == kind]


def test_controls_and_a_lengthened_training_share_the_ticket_they_control(tmp_path: Path) -> None:
    alone = plan(tmp_path, mask="lth", sparsity="50%")
    made = plan(
        tmp_path,
        "also: [{mask: lth, epochs: match_cost(gsw)}]\n",
        mask="[lth, {lth: {control: shuffled}}, {lth: {control: fresh}}]",
        sparsity="50%",
    )
    assert set(alone.stages) <= set(made.stages)
    extra = Counter(stage.kind for key, stage in made.stages.items() if key not in alone.stages)
    assert extra == {"mask": 1, "train": 3}, "one shuffled mask, and three trainings"


def test_a_shuffled_mask_is_made_of_the_mask_it_shuffles(tmp_path: Path) -> None:
    made = plan(tmp_path, mask="[snip, {snip: {control: shuffled}}]")
    plain, moved = only(made, "mask")
    assert dict(moved.parents) == {"mask": plain.key}
    assert leaf(tmp_path, mask="{snip: {control: fresh}}") != leaf(tmp_path, mask="snip")


def test_rewinding_to_the_start_is_no_rewinding(tmp_path: Path) -> None:
    assert leaf(tmp_path, mask="{lth: {rewind: 0}}") == leaf(tmp_path, mask="lth")


def test_all_rounds_and_cells_of_a_rewound_chain_start_from_one_dense_training(tmp_path: Path) -> None:
    made = plan(tmp_path, mask="{lth: {rewind: 3}}", sparsity="[50%, imp:2]", recipe="[default, ls]")
    starts = [stage for stage in only(made, "train") if "until" in stage.spec]
    assert len(starts) == 1
    assert starts[0].spec["until"] == 3
    others = [stage for stage in only(made, "train") if stage is not starts[0]]
    assert all(stage.parents["start"] == starts[0].key and stage.spec["rewind"] == 3 for stage in others)
    assert not any("rewind" in stage.spec["method"].get("args", {}) for stage in only(made, "mask"))
    assert leaf(tmp_path, mask="{lth: {rewind: 2}}") != leaf(tmp_path, mask="{lth: {rewind: 3}}")


def test_one_dense_training_serves_omp_taylor_the_chain_and_the_dense_row(tmp_path: Path) -> None:
    made = plan(tmp_path, "also: [{mask: dense}]\n", mask="[omp, taylor, lth]", sparsity="20%")
    assert kinds(made) == {"data": 1, "mask": 3, "train": 4}


def test_gradual_pruning_has_no_mask_of_its_own(tmp_path: Path) -> None:
    made = plan(tmp_path, mask="gmp", recipe="[default, lrsi]")
    assert kinds(made) == {"data": 1, "rescale": 1, "train": 2}
    assert made.stages[made.leaves[0]].spec["prune"] == {
        "method": {"name": "gmp", "version": 1},
        "sparsity": {"density": "1/10"},
        "prunable": "conv+linear",
    }


def test_scales_are_shared_by_recipes_and_hold_all_that_they_depend_on(tmp_path: Path) -> None:
    made = plan(tmp_path, "  ticket_seed: 0\n", recipe="[lrsi, tost, lrsi+ls]", seed="0..2")
    assert kinds(made) == {"data": 1, "mask": 1, "rescale": 1, "train": 9}

    def scales(**changed: str) -> str:
        return only(plan(tmp_path, recipe="lrsi", **changed), "rescale")[0].key

    plain = scales()
    for change in (
        {"mask": "{snip: {control: fresh}}"},
        {"mask": "small_dense"},
        {"mask": "random"},
        {"mask": "{lth: {rewind: 2}}"},
        {"sparsity": "50%"},
        {"head": "{preset: quick, batch: 32}"},
        {"head": "{preset: quick, augment: none}"},
        {"seed": "1"},
    ):
        assert scales(**change) != plain, change
    assert scales(head="{preset: quick, lr: 0.01}") == plain, "the learning rate of training is no part of them"


def test_the_answer_to_a_collapse_is_part_of_a_mask_and_of_no_training(tmp_path: Path) -> None:
    head = "{preset: quick, on_collapse: keep_one}"
    assert leaf(tmp_path, head=head) != leaf(tmp_path)
    assert leaf(tmp_path, mask="dense", head=head) == leaf(tmp_path, mask="dense")
    assert leaf(tmp_path, mask="gmp", head=head) != leaf(tmp_path, mask="gmp")


def test_a_files_content_is_in_the_key_and_its_path_is_not(tmp_path: Path) -> None:
    for name, content in (("a.pt", b"1"), ("b.pt", b"1"), ("c.pt", b"2")):
        (tmp_path / name).write_bytes(content)
    keys = {name: leaf(tmp_path, mask=f"'file:./{name}'") for name in ("a.pt", "b.pt", "c.pt")}
    assert keys["a.pt"] == keys["b.pt"] != keys["c.pt"]
    made = plan(tmp_path, mask="['file:./a.pt', 'file:./c.pt']")
    assert sorted({cell.mask.label for cell, _ in made.cells}) == ["file:./a.pt", "file:./c.pt"]
    assert sorted(path.name for path in made.imports.values()) == ["a.pt", "c.pt"]


def test_files_of_masks_are_held_against_the_networks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, asked = resnet20(classes=10, channels=1), []
    shapes = {n: w.shape for n, w in network.named_parameters() if n in prunable(network)}
    kept = {n: torch.arange(s.numel()).reshape(s) % 10 == 0 for n, s in shapes.items()}
    torch.save(list(kept.values()), tmp_path / "list.pt")
    torch.save({f"theirs.{n}": mask.int() for n, mask in enumerate(kept.values())}, tmp_path / "theirs.pt")
    torch.save({n: mask.numpy() for n, mask in kept.items()}, tmp_path / "arrays.pt")
    torch.save({n: mask[:1] if n == "fc.weight" else mask for n, mask in kept.items()}, tmp_path / "classes.pt")
    torch.save({n: mask[:1] if n == "conv1.weight" else mask for n, mask in kept.items()}, tmp_path / "narrow.pt")

    def ask(command: list[str], input: str, **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        answers = [answer(question) for question in json.loads(input)]
        return subprocess.CompletedProcess(command, 0, f"printed\n{json.dumps(answers)}")

    monkeypatch.setattr("harness.probe.subprocess.run", ask)
    order = "{match: order}"
    files = f"{{'file:./list.pt': {order}}}, {{'file:./theirs.pt': {order}}}, 'file:./theirs.pt', 'file:./arrays.pt'"
    made = plan(tmp_path, mask=f"[{files}, 'file:./classes.pt', 'file:./narrow.pt', random]", seed="0..1")
    for _ in range(2):
        found = {one.label.split("file:./")[1].split(" ")[0]: one for one in imports_of(made, tmp_path / "cache")}
        said = {name: one.said for name, one in found.items()}
        assert said.pop("list.pt(match=order)") == said.pop("theirs.pt(match=order)") == said.pop("classes.pt") == ""
        assert "no mask for 'conv1.weight'; its masks are named 'theirs.0', 'theirs.1'" in said.pop("theirs.pt")
        assert "it is a dict of numpy arrays" in said.pop("arrays.pt")
        assert "'conv1.weight' of the file has shape [1, 1, 3, 3]; the weight has [16, 1, 3, 3]" in said.pop(
            "narrow.pt"
        )
        assert not said
        pairs = found["theirs.pt(match=order)"].pairs
        assert pairs == {name: f"theirs.{n}" for n, name in enumerate(shapes)}
        assert not found["classes.pt"].pairs
    assert not imports_of(plan(tmp_path, sparsity="[90%, 50%]"), tmp_path / "cache")
    assert asked == ["harness.train.imported"]


OWN = "def score(model, batches=None, power=1.0):\n    return {}\n"


@pytest.mark.parametrize(("knobs", "trainings"), [("", 1), ("{at: trained}", 2), ("{at: chain}", 5)])
def test_a_score_of_ones_own_can_be_put_anywhere_in_the_engine(knobs: str, trainings: int, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    mask = f"{{own: {knobs}}}" if knobs else "own"
    made = plan(tmp_path, 'use: {own: "./own.py:score"}\n', mask=mask, sparsity="50%")
    assert kinds(made)["train"] == trainings


def test_a_score_may_not_take_the_engines_knobs_for_itself(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def score(model, rewind=3):\n    return {}\n")
    with pytest.raises(FileError, match="rewind: the harness's own knob; give the parameter another name"):
        plan(tmp_path, 'use: {own: "./own.py:score"}\n', mask="own")


def cells(tmp_path: Path, text: str) -> list[Any]:
    (tmp_path / "x.yaml").write_text(text)
    return expand(load_sweep(tmp_path / "x.yaml"))[0]


def test_sets_of_recipes(tmp_path: Path) -> None:
    def labels(recipe: str) -> list[str]:
        text = f"name: x\ngrid: {{dataset: digits, arch: resnet20, mask: snip, sparsity: 90%, recipe: {recipe}}}\n"
        return [cell.recipe.label for cell in cells(tmp_path, text)]

    assert labels("leave-one-out(tost)") == ["tost-gsw", "tost-gsk", "tost-lrsi", "tost-ls"]
    assert labels("cumulative(tost)") == ["default", "gsw", "gsw+gsk", "tost-ls", "tost"]
    assert len(labels("subsets(tost)")) == len(set(labels("subsets(tost)"))) == 16
    assert labels("[default, subsets(gsw+ls)]") == ["default", "gsw", "ls", "gsw+ls"], "default is united"
    assert labels("gsw+gsk+lrsi+ls") == ["tost"], "one name for one set of parts"


@pytest.mark.parametrize(
    "text",
    [
        "protocol: {preset: quick, epochs: match_cost(gsw)}\ngrid: {GRID}\n",
        "protocol: quick\ngrid: {GRID, epochs: match_cost(gsw)}\n",
        "grid: {GRID, protocol: [{preset: quick, epochs: match_cost(gsw)}]}\n",
        "protocol: quick\ngrid: {GRID}\nwhen: [{if: \"mask == 'snip'\", set: {epochs: match_cost(gsw)}}]\n",
    ],
)
def test_a_matched_cost_may_be_asked_for_wherever_epochs_may_stand(text: str, tmp_path: Path) -> None:
    text = "name: x\n" + text.replace("GRID", "dataset: digits, arch: resnet20, mask: snip, sparsity: 90%")
    (cell,) = cells(tmp_path, text)
    assert (cell.protocol.match_cost, cell.protocol.epochs) == ("gsw", 8)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("match_cost: [gsw]", r"match_cost: write epochs: match_cost\(RECIPE\)"),
        ("protocol: [{preset: quick, epochs: match_cost(gsww)}]", "'gsww' is no recipe or part"),
    ],
)
def test_a_matched_cost_of_nothing_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=said):
        cells(tmp_path, f"name: x\ngrid: {{dataset: digits, arch: resnet20, mask: snip, sparsity: 90%, {text}}}\n")


def test_a_librarys_version_is_part_of_its_networks_key(tmp_path: Path) -> None:
    import torchvision

    made = plan(tmp_path, mask="dense")
    text = (tmp_path / "x.yaml").read_text().replace("arch: resnet20", "arch: 'torchvision:resnet18'")
    (tmp_path / "x.yaml").write_text(text)
    made = make_plan(load_sweep(tmp_path / "x.yaml"), Store(tmp_path / "runs"), tmp_path)
    arch = made.stages[made.leaves[0]].spec["arch"]
    assert arch == {"name": "torchvision:resnet18", "version": torchvision.__version__.partition("+")[0]}


def test_a_part_with_nothing_to_hold_on_to_is_refused_by_the_plan(tmp_path: Path) -> None:
    def ask(network: str, recipe: str) -> Plan:
        plan(tmp_path, recipe=recipe)
        text = (tmp_path / "x.yaml").read_text().replace("arch: resnet20", f"arch: 'torchvision:{network}'")
        (tmp_path / "x.yaml").write_text(text)
        return make_plan(load_sweep(tmp_path / "x.yaml"), Store(tmp_path / "runs"), tmp_path)

    for _ in range(2):  # asked, then remembered
        with pytest.raises(FileError, match=r"gsw: soft neurons need nn\.ReLU modules to replace; ConvNeXt has none"):
            ask("convnext_tiny", "tost")
    assert ask("convnext_tiny", "ls").cells
    assert ask("resnet18", "tost").cells


def test_the_controls_and_the_factorial_plan(tmp_path: Path) -> None:
    sweeps = Path(__file__).parents[2] / "sweeps"
    controls = make_plan(load_sweep(sweeps / "controls.yaml"), Store(tmp_path), tmp_path)
    assert len(controls.cells) == 10 * 2 * 2 * 3 + 6 * 3 + 3 * 2 * 3
    factorial = make_plan(load_sweep(sweeps / "factorial.yaml"), Store(tmp_path), tmp_path)
    assert len(factorial.cells) == 16 * (2 * 2 + 1) * 3
    assert len({cell.recipe.label for cell, _ in factorial.cells}) == 16
