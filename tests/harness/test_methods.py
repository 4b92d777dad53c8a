"""Every mask method, control and recipe through the real command, and masks carried out of a store and in again."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import harness, hashes
from tost.catalog import MASKS, PARTS

Sweep = Callable[..., subprocess.CompletedProcess[str]]

ALL = """
name: all
protocol: {preset: quick, epochs: 2}
use: {thin: "./thin.py:build", wide: "./wide.py:build"}
grid:
  dataset: digits
  arch: wide
  mask: [METHODS, {snip: {control: shuffled}}, {lth: {rewind: 1}}, small_dense]
  sparsity: [60%]
  recipe: [default, {tost: {lrsi: {iterations: 2}}}]
also:
  - {mask: dense, recipe: [default, {gsk: {variant: authors}}]}
  - {mask: snip, recipe: default, epochs: match_cost(gsk)}
tables: [any-mask, accounting, diagnostics]
"""


def records(project: Path, name: str) -> list[dict[str, str]]:
    with open(project / "runs" / "sweeps" / name / "report" / "cells.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def wide(project: Path) -> Path:
    text = (project / "thin.py").read_text().replace("width=6", "width=1.0").replace("width", "round(6 * width)")
    (project / "wide.py").write_text(text.replace("round(6 * width)=1.0", "width=1.0"))
    return project


def test_every_method_and_recipe_trains_and_is_accounted_for(wide: Path, sweep: Sweep) -> None:
    (wide / "all.yaml").write_text(ALL.replace("METHODS", ", ".join(MASKS)))
    done = sweep("all.yaml", "--threads", "1")
    assert done.returncode == 0, done.stderr
    cells = records(wide, "all")
    assert len(cells) == 2 * (len(MASKS) + 3) + 2 + 1
    assert all(cell["state"] == "done" for cell in cells)
    weights = 6 * 9 + 6 * 8 * 9 + 80
    for cell in cells:
        sparse = cell["mask"] not in ("dense", "small_dense")
        assert float(cell["kept"] or 0) == (round(0.4 * weights) if sparse else 0), cell["mask"]
        assert float(cell["inference_flops"]) > 0
        assert (float(cell["ghost_operations"]) > 0) == ("tost" in cell["recipe"] or "gsk" in cell["recipe"])
        assert (float(cell["rescale_operations"]) > 0) == ("tost" in cell["recipe"])
        assert (float(cell["ghost_parameters"]) == 0) == ("authors" not in cell["recipe"])
    (matched,) = [cell for cell in cells if cell["epochs"] == "match_cost(gsk)"]
    assert float(matched["epochs_measured"]) > 2
    assert "Not of equal size: gsk(variant=authors) on wide keeps 64 trained ghost parameters." in done.stdout.replace(
        "\n", " "
    )
    assert "(as gsk costs)" in done.stdout.replace("\n", " ")
    assert all(part in "gsw gsk lrsi ls" for part in PARTS)


def mask(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return harness(folder, "mask", *arguments)


ONE = """
name: NAME
protocol: {preset: quick, epochs: 1}
use: {thin: "./thin.py:build"}
grid: {dataset: digits, arch: thin, mask: MASK, sparsity: SPARSITY}
tables: [any-mask]
"""


def test_a_mask_goes_out_of_a_store_and_into_another_sweep(project: Path, sweep: Sweep) -> None:
    (project / "one.yaml").write_text(
        ONE.replace("NAME", "one").replace("MASK", "[snip, random]").replace("SPARSITY", "60%")
    )
    assert sweep("one.yaml", "--threads", "1").returncode == 0
    found = {
        json.loads(path.read_text())["method"]["name"]: path.parent.name
        for path in project.glob("runs/stages/mask/*/*/spec.json")
    }
    snip, random = found["snip"], found["random"]
    shown = mask("show", snip[:10], folder=project)
    assert "│ all      │     566 │  226 │  39.93% │" in shown.stdout, shown
    compared = mask("compare", snip[:10], random[:10], folder=project)
    assert compared.returncode == 0
    assert "IoU" in compared.stdout
    trained = next(project.glob("runs/stages/train/*/*"))
    for source, form in ((snip[:10], "weight_mask"), (trained.name, "zeros"), (trained.name, "prune")):
        made = mask("export", source, f"{form}.pt", "--form", form, folder=project)
        assert made.returncode == 0, made.stderr
    before = hashes(project / "runs")
    (project / "two.yaml").write_text(
        ONE.replace("NAME", "two").replace("MASK", "'file:./weight_mask.pt'").replace("SPARSITY", "60%")
    )
    done = sweep("two.yaml", "--threads", "1")
    assert done.returncode == 0, done.stderr
    after = hashes(project / "runs")
    new = [after[key] for key in after if key not in before]
    assert len(new) == 2, "a mask and a training"
    assert set(new) <= set(before.values()), "the same mask, and the same weights after training, to the bit"
    assert "file:./weight_mask.pt" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "nothing.pt"), "'nothing.pt' is no file, and no key"),
        (("show", "abcdef12"), "no mask and no training in runs have a key that begins with abcdef12"),
        (("show", "junk"), "is neither safetensors nor a file of tensors that torch.save wrote"),
        (("export", "a.pt", "b.pt", "--form", "zip"), "'zip' is no form; choose from safetensors, weight_mask,"),
        (("export", "a.pt", "junk"), "junk exists; name a file that does not"),
        (("export", "a.pt", "b.pt", "--form", "zeros"), "needs the weights along with the masks; name a training"),
        (("show", "a.pt", "--entry", "ema"), "holds no tensors under the entry 'ema'"),
        (("compare", "a.pt", "c.pt"), "only one of the two has a mask for conv.weight, fc.weight"),
    ],
)
def test_a_mistake_with_masks_is_said_in_a_line(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.masks import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk").write_bytes(b"junk")
    torch.save({"conv.weight_mask": torch.ones(2, 2)}, tmp_path / "a.pt")
    torch.save({"fc.weight_mask": torch.ones(2, 2)}, tmp_path / "c.pt")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.exception
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_does_not_fit_is_told_by_the_plan(project: Path, sweep: Sweep) -> None:
    torch.save({"0.weight_mask": torch.ones(6, 1, 3, 3)}, project / "part.pt")
    shapes = {0: (6, 1, 3, 3), 3: (8, 6, 3, 3), 8: (10, 8)}
    other = {f"{n}.weight_mask": (torch.rand(shape) < 0.3).float() for n, shape in shapes.items()}
    torch.save(other, project / "other.pt")
    masks = "['file:./part.pt', 'file:./other.pt', random]"
    text = ONE.replace("NAME", "x").replace("MASK", masks).replace("SPARSITY", "60%")
    (project / "x.yaml").write_text(text)
    for command in ("--plan", "--yes"):
        done = sweep("x.yaml", command)
        assert done.returncode == 2
        assert "the file has no mask for '3.weight'; its masks are named '0.weight'." in done.stderr
        assert "the cell's sparsity 226; write sparsity: " in done.stderr
        assert not (project / "runs" / "stages").exists(), "nothing is run"
