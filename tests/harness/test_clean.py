"""Topping up, orphans, cleaning, and the merging of two stores."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.check import load_sweep
from harness.claims import Observer, Owner, end_attempt, take
from harness.clean import find_waste, remove
from harness.dropped import ask_about_dropped
from harness.plan import Plan
from harness.planner import make_plan
from harness.presence import Presence
from harness.store import Store
from tests.conftest import claims, harness, hashes, results, run_sweep, save_whole_plan, write_project

Run = Callable[..., subprocess.CompletedProcess[str]]


def edit(project: Path, old: str, new: str) -> None:
    text = (project / "tiny.yaml").read_text()
    assert old in text
    (project / "tiny.yaml").write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny sweep, three cells a seed, run for seed 0 and then for both, in stores a (seed 0) and runs."""
    folder = write_project(tmp_path_factory.mktemp("ran"))
    edit(folder, "mask: [random, lth]", "mask: random")
    edit(folder, "seed: 0..1", "seed: 0")
    assert run_sweep(folder, "tiny.yaml", "--threads", "1").returncode == 0
    shutil.copytree(folder / "runs", folder / "a")
    edit(folder, "seed: 0", "seed: 0..1")
    done = run_sweep(folder, "tiny.yaml", "--plan")
    assert "train          6   to run       3" in done.stdout
    assert run_sweep(folder, "tiny.yaml", "--threads", "1").returncode == 0
    return folder


@pytest.fixture
def small(ran: Path, project: Path) -> Path:
    """A copy of it."""
    shutil.copytree(ran, project, dirs_exist_ok=True)
    return project


def test_more_seeds_add_exactly_the_missing_cells_and_fewer_leave_orphans(small: Path, sweep: Run) -> None:
    before, after = claims(small / "a"), claims(small / "runs")
    assert {key: after[key] for key in before} == before
    assert len(after) == len(before) + 4
    edit(small, "seed: 0..1", "seed: 1")
    plan = sweep("tiny.yaml", "--plan").stdout
    assert "to do: nothing, all is there" in plan
    assert "kept though no longer in the file: 3 finished cells" in plan
    assert "digits thin random 50% default seed 0" in plan


def test_gc_shows_and_then_removes_what_nothing_refers_to(small: Path, sweep: Run) -> None:
    store = small / "runs"
    nothing = sweep("tiny.yaml", "--gc")
    assert nothing.returncode == 0
    assert "0 stages that no sweep's newest plan refers to, 1 left-over file" in nothing.stdout, "the plan before"
    edit(small, "seed: 0..1", "seed: 1")
    assert sweep("tiny.yaml").returncode == 0
    kept = next((store / "stages" / "train").glob("*/*"))
    (kept / "attempt-0001" / "checkpoint-000000001-x.safetensors").write_bytes(b"1" * 100)
    (kept / ".draft-elsewhere-1-0").touch()
    (kept / "damaged-x.safetensors").touch()
    shown = sweep("tiny.yaml", "--gc")
    assert "4 stages that no sweep's newest plan refers to" in shown.stdout
    assert "nothing was removed; --gc --yes removes them" in shown.stderr
    before = hashes(store)
    assert len(before) == 9
    removed = sweep("tiny.yaml", "--gc", "--yes")
    assert removed.returncode == 0, removed.stderr
    after = hashes(store)
    assert len(after) == 5
    assert after.items() <= before.items()
    assert not list(store.rglob("checkpoint-*"))
    assert not list(store.rglob(".draft-*"))
    assert not list(store.rglob("damaged-*"))
    taken = claims(store)
    assert sweep("tiny.yaml").returncode == 0
    assert claims(store) == taken, "what is kept is whole"
    assert "0 stages" in sweep("tiny.yaml", "--gc").stdout


def test_gc_takes_nothing_that_another_sweep_or_a_worker_holds(small: Path, sweep: Run) -> None:
    other = (small / "tiny.yaml").read_text().replace("name: tiny", "name: other").replace("seed: 0..1", "seed: 0")
    (small / "other.yaml").write_text(other)
    assert sweep("other.yaml", "--only", "recipe=default").returncode == 0
    edit(small, "seed: 0..1", "seed: 1")
    assert sweep("tiny.yaml").returncode == 0
    assert "1 stage that no" in sweep("tiny.yaml", "--gc").stdout, "a part of seed 0 is still referred to"
    shutil.rmtree(small / "runs" / "sweeps" / "other")
    store = Store(small / "runs")
    presence = Presence(store, "tiny", Owner.me())
    refused = sweep("tiny.yaml", "--gc", "--yes")
    assert refused.returncode == 2
    assert "1 worker at work" in refused.stderr
    assert str(presence.path) in refused.stderr
    presence.leave()
    gone = sweep("tiny.yaml", "--gc")
    assert "4 stages" in gone.stdout
    masks = (store.root / "stages" / "mask").glob("*/*")
    orphan = next(path for path in masks if str(path.relative_to(store.root)) in gone.stdout)
    folder = store.folder("mask", orphan.name)
    assert take(folder, folder.generation, Owner.me()) is not None
    again = sweep("tiny.yaml", "--gc", "--yes")
    assert "3 stages" in again.stdout
    assert "1 more are being worked on and stay" in again.stdout
    assert orphan.exists()


@pytest.mark.parametrize("when", ["before", "while"])
def test_gc_leaves_a_stage_that_somebody_takes_after_it_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    store, rename = Store(tmp_path), Path.rename
    old, taken = ("ab" * 16, "cd" * 16)
    for key in (old, taken):
        assert take(store.folder("mask", key), 0, replace(Owner.me(), host="another"))
        end_attempt(store.folder("mask", key), 1, {"outcome": "stopped"})
    waste = find_waste(store, Plan("other"), Observer())
    assert {folder.path.name for folder in waste.stages} == {old, taken}

    def come() -> None:
        assert take(store.folder("mask", taken), 1, Owner.me())

    def renamed(path: Path, target: Path) -> Path:
        if path.name == taken:
            come()
        return rename(path, target)

    if when == "before":
        come()
    else:
        monkeypatch.setattr(Path, "rename", renamed)
    remove(store, waste)
    assert not store.path("mask", old).exists()
    assert store.folder("mask", taken).generation == 2


def test_workers_at_work_are_not_kept_from_cells_that_an_edited_file_has_no_longer(project: Path, sweep: Run) -> None:
    save_whole_plan(project)
    store, plan = Store(project / "runs"), project / "runs" / "sweeps" / "tiny" / "plan.json"
    presence, before = Presence(store, "tiny", Owner.me()), plan.read_bytes()
    edit(project, "recipe: [default, ls]", "recipe: default")
    refused = sweep("tiny.yaml")
    assert refused.returncode == 2
    said = " ".join(refused.stderr.split())
    assert "4 unfinished cells of the sweep as it was run before" in said
    assert "would be started no more by 1 worker at work. If that is meant: --yes" in said
    assert plan.read_bytes() == before
    made = make_plan(load_sweep(project / "tiny.yaml"), store, project)
    ask_about_dropped(made, store, project / "tiny.yaml", yes=True)
    presence.leave()
    ask_about_dropped(made, store, project / "tiny.yaml", yes=False)


def merge(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return harness(project, "data", "merge", *arguments)


def test_another_stores_finished_stages_are_taken_over(small: Path, sweep: Run) -> None:
    theirs = {path: path.read_bytes() for path in (small / "runs").rglob("*") if path.is_file()}
    done = merge(small, "runs", "--store", "a")
    assert done.returncode == 0, done.stderr
    assert "4 finished stages taken over, 5 were here already" in done.stdout
    assert {path: path.read_bytes() for path in (small / "runs").rglob("*") if path.is_file()} == theirs
    taken = claims(small / "a")
    whole = sweep("tiny.yaml", "--store", "a")
    assert whole.returncode == 0
    assert "6 of 6 cells done" in whole.stderr
    assert claims(small / "a") == taken, "nothing ran"
    assert hashes(small / "a") == hashes(small / "runs")
    again = merge(small, "runs", "--store", "a")
    assert "0 finished stages taken over, 9 were here already" in again.stdout
    merged = [r for (r,) in results(small / "a").values() if "merged_from" in r["provenance"]]
    assert len(merged) == 4
    assert all(r["provenance"]["merged_from"].endswith("/runs") for r in merged)


def test_a_damaged_or_different_stage_of_the_other_store_is_named_and_not_taken(small: Path, sweep: Run) -> None:
    shutil.copytree(small / "a", small / "b")
    (mask,) = (small / "a" / "stages" / "mask").glob("*/*")
    shutil.rmtree(mask)
    (artifact,) = (small / "b" / "stages" / "mask").glob("*/*/*.safetensors")
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"?")
    spec = next((small / "b" / "stages" / "train").glob("*/*/spec.json"))
    shutil.rmtree(small / "a" / spec.parent.relative_to(small / "b"))
    spec.write_text(json.dumps({**json.loads(spec.read_text()), "seed": 7}))
    done = merge(small, "b", "--store", "a")
    assert done.returncode == 1
    assert "damaged: its bytes are not the ones its result names" in done.stderr
    assert "its spec.json does not belong to its key" in done.stderr
    assert not list((small / "a" / "stages" / "mask").glob("*/*/result-*"))
    assert sweep("tiny.yaml", "--only", "seed=0", "--store", "a").returncode == 0


def test_a_divergence_is_a_result_that_is_taken_over_too(small: Path) -> None:
    trained = next((small / "runs").glob("stages/train/*/*"))
    theirs, ours = Store(small / "runs"), Store(small / "empty")
    (trained / "result-0001.json").unlink()
    (trained / "attempt-0001" / "end.json").write_text(json.dumps({"outcome": "diverged", "epoch": 2, "step": 7}))
    assert merge(small, "runs", "--store", "empty").returncode == 0
    end = ours.folder("train", trained.name).end(1)
    assert end is not None
    assert (end["outcome"], end["epoch"], end["step"]) == ("diverged", 2, 7)
    assert len(hashes(ours.root)) == len(hashes(theirs.root)) == 8


def test_what_is_no_store_is_refused(small: Path) -> None:
    for other, said in [(".", "is no store"), ("nowhere", "is no store")]:
        done = merge(small, other)
        assert done.returncode == 2
        assert said in done.stderr
    assert "is the store itself" in merge(small, "runs").stderr
