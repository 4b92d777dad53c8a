"""Why a cell runs again: the field, version or source that changed; and accepting older results, with a record."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness import planner
from harness.check import load_sweep
from harness.cli import app
from harness.planfile import as_saved, save_plan
from harness.planner import make_plan
from harness.store import Store, digest, read_json
from harness.why import Change, changes, explain
from tests.conftest import claims, hashes, run_sweep, write_project
from tests.harness.test_status import status

Run = Callable[..., subprocess.CompletedProcess[str]]

SCORE = """
from tost.masks import prunable


def score(model):
    return {n: w.detach().abs() for n, w in prunable(model).items()}
"""
CELL = "mask=mine,recipe=ls,seed=0"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny sweep with a mask method of one's own, two of its cells run."""
    folder = write_project(tmp_path_factory.mktemp("ran"))
    (folder / "score.py").write_text(SCORE)
    text = (folder / "tiny.yaml").read_text().replace("mask: [random, lth]", "mask: [random, mine]")
    (folder / "tiny.yaml").write_text(text.replace("use: {", 'use: {mine: "./score.py:score", '))
    assert run_sweep(folder, "tiny.yaml", "--only", "mask=mine,seed=0").returncode == 0
    return folder


@pytest.fixture
def mine(ran: Path, project: Path) -> Path:
    """A copy of it."""
    shutil.copytree(ran, project, dirs_exist_ok=True)
    return project


def why(project: Path, *more: str) -> str:
    done = status(project, "tiny.yaml", "--why", CELL, *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_finished_cell_shows_what_it_is_made_of(mine: Path) -> None:
    said = why(mine)
    assert said.startswith("digits thin mine 50% ls seed 0: 3 stages")
    assert [line.split()[:2] for line in said.splitlines()[1:]] == [
        ["done", "data"],
        ["done", "mask"],
        ["done", "train"],
    ]


def test_an_edited_field_is_named_with_both_values(mine: Path) -> None:
    text = (mine / "tiny.yaml").read_text()
    (mine / "tiny.yaml").write_text(text.replace("epochs: 2}", "epochs: 2, lr: 0.05}"))
    said = why(mine)
    assert "protocol.lr: not set -> 0.05" in said
    assert said.count("->") == 1, "the mask does not depend on it"
    assert "which is finished; since then" in said


def test_an_edited_method_is_named_and_so_is_what_rests_on_it(mine: Path) -> None:
    (mine / "score.py").write_text(SCORE + "# edited\n")
    said = why(mine)
    assert said.count("the source file of a method of your own was edited") == 2, "of the mask, and of the training"
    assert "method.source" in said
    assert "todo     mask" in said
    assert "done     data" in said


def test_older_results_are_accepted_with_a_record_and_a_word_under_the_table(mine: Path, sweep: Run) -> None:
    before = hashes(mine / "runs")
    (mine / "score.py").write_text(SCORE + "# edited\n")
    said = why(mine, "--bless")
    assert "accepted: mask digits thin mine 50%" in said
    assert "accepted: digits thin mine 50% ls seed 0" in said
    assert "todo" not in said
    taken = claims(mine / "runs")
    done = sweep("tiny.yaml", "--only", CELL)
    assert done.returncode == 0
    assert "Accepted from older code: 1 of 1 results." in " ".join(done.stdout.split())
    assert claims(mine / "runs") == taken, "nothing ran"
    assert "Made from masks" not in done.stdout
    other = sweep("tiny.yaml", "--only", "mask=mine,seed=0")
    said = " ".join(other.stdout.split())
    assert "Accepted from older code: 1 of 2 results." in said
    assert "Made from masks or trainings accepted from older code: 1 of 2 results." in said
    assert set(before.values()) == set(hashes(mine / "runs").values())
    assert "accepted from" in why(mine)


def test_several_cells_are_accepted_at_once_with_all_that_a_result_has(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mine)
    (mine / "score.py").write_text(SCORE + "# edited\n")
    before = {path.parents[1] for path in mine.glob("runs/stages/train/*/*/*/metrics.jsonl")}
    asked = ["status", "tiny.yaml", "--why", "mask=mine,seed=0", "--bless"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("2 cells: 4 stages")
    assert done.stdout.count("  accepted: ") == 3
    for result in mine.glob("runs/stages/*/*/*/result-*.json"):
        assert digest(read_json(result.parent / "spec.json")) == result.parent.name
    curves = {path.parents[1] for path in mine.glob("runs/stages/train/*/*/*/metrics.jsonl")}
    assert len(curves) == 2 * len(before)
    again = CliRunner().invoke(app, asked)
    assert again.exit_code == 0
    assert "nothing to accept" in again.stdout


def test_another_version_of_a_package_is_a_change_of_code() -> None:
    assert Change("mask", "mask", "method.package", "colbal 0.1", "colbal 0.2").of_the_code
    assert not Change("mask", "mask", "method.settings.package_size", 1, 2).of_the_code


def test_another_experiment_is_not_accepted(mine: Path) -> None:
    text = (mine / "tiny.yaml").read_text()
    (mine / "tiny.yaml").write_text(text.replace("epochs: 2}", "epochs: 2, lr: 0.05}"))
    done = status(mine, "tiny.yaml", "--why", CELL, "--bless")
    assert done.returncode == 1
    said = done.stdout
    assert "not accepted: digits thin mine 50% ls seed 0: it would be another experiment" in said
    assert "protocol.lr" in said
    assert "todo     train" in said


def test_what_was_never_made_is_said_to_be_so(mine: Path) -> None:
    done = status(mine, "tiny.yaml", "--why", "mask=random,recipe=ls,seed=1")
    assert "was never made, under this or an earlier plan" in done.stdout


def test_a_raised_version_of_the_code_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, sweep = Store(project / "runs"), load_sweep(project / "tiny.yaml")
    old = make_plan(sweep, store, project)
    save_plan(old, store, sweep, whole=True)
    before = planner.TRAIN_VERSION
    monkeypatch.setattr(planner, "TRAIN_VERSION", before + 1)
    new = make_plan(sweep, store, project)
    pairs = [(old.stages[a], new.stages[b]) for (_, a), (_, b) in zip(old.cells, new.cells, strict=True)]
    (change,) = {c.text.partition(": ")[2] for a, b in pairs[:1] for c in changes(a, b, old, new)}
    assert (
        change == f"the harness's code for it changed (version: {planner.TRAIN_VERSION - 1} -> {planner.TRAIN_VERSION})"
    )
    lottery = next(pair for pair in pairs if "lth" in pair[0].label and "ls" in pair[0].label)
    found = changes(*lottery, old, new)
    assert {c.field for c in found} == {"version"}
    assert [c.stage for c in found] == ["digits thin dense default seed 0"], "each cause once, where it comes first"
    explain(as_saved(new, sweep), store, "mask=lth,recipe=ls,seed=0", accept=True)
    assert "nothing to accept" in capsys.readouterr().out
