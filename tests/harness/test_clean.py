"""Topping up, orphans, cleaning, and the merging of two stores."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.claims import Owner, take
from harness.presence import Presence
from harness.store import Store
from tests.conftest import claims, environment, hashes, results

Run = Callable[..., subprocess.CompletedProcess[str]]


def edit(project: Path, old: str, new: str) -> None:
    text = (project / "tiny.yaml").read_text()
    assert old in text
    (project / "tiny.yaml").write_text(text.replace(old, new))


@pytest.fixture
def small(project: Path) -> Path:
    """The tiny sweep, three cells a seed."""
    edit(project, "mask: [random, lth]", "mask: random")
    return project


def test_more_seeds_add_exactly_the_missing_cells_and_fewer_leave_orphans(small: Path, sweep: Run) -> None:
    edit(small, "seed: 0..1", "seed: 0")
    assert sweep("tiny.yaml").returncode == 0
    before, made = claims(small / "runs"), hashes(small / "runs")
    edit(small, "seed: 0", "seed: 0..1")
    assert "train          6   to run       3" in sweep("tiny.yaml", "--plan").stdout
    assert sweep("tiny.yaml").returncode == 0
    assert {key: claims(small / "runs")[key] for key in before} == before
    assert len(hashes(small / "runs")) == len(made) + 4
    edit(small, "seed: 0..1", "seed: 1")
    plan = sweep("tiny.yaml", "--plan").stdout
    assert "to do: nothing, all is there" in plan
    assert "kept though no longer in the file: 3 finished cells" in plan
    assert "digits thin random 50% default seed 0" in plan


def test_gc_shows_and_then_removes_what_nothing_refers_to(small: Path, sweep: Run) -> None:
    assert sweep("tiny.yaml").returncode == 0
    store = small / "runs"
    nothing = sweep("tiny.yaml", "--gc")
    assert nothing.returncode == 0
    assert "0 stages that no sweep's newest plan refers to, 0 left-over files" in nothing.stdout
    edit(small, "seed: 0..1", "seed: 1")
    assert sweep("tiny.yaml").returncode == 0
    kept = next((store / "stages" / "train").glob("*/*"))
    (kept / "attempt-0001" / "checkpoint-000000001-x.safetensors").write_bytes(b"1" * 100)
    (kept / ".draft-elsewhere-1-0").touch()
    (kept / "damaged-x.safetensors").touch()
    shown = sweep("tiny.yaml", "--gc")
    assert "4 stages that no sweep's newest plan refers to" in shown.stdout
    assert "nothing was removed; --gc --yes removes them" in shown.stdout
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
    edit(small, "seed: 0..1", "seed: 0")
    assert sweep("tiny.yaml").returncode == 0
    (small / "other.yaml").write_text((small / "tiny.yaml").read_text().replace("name: tiny", "name: other"))
    assert sweep("other.yaml").returncode == 0
    edit(small, "seed: 0", "seed: 1")
    assert sweep("tiny.yaml").returncode == 0
    assert "0 stages" in sweep("tiny.yaml", "--gc").stdout, "the other sweep still refers to seed 0"
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
    orphan = next(
        path
        for path in (store.root / "stages" / "mask").glob("*/*")
        if str(path.relative_to(store.root)) in gone.stdout
    )
    folder = store.folder("mask", orphan.name)
    assert take(folder, folder.generation, Owner.me()) is not None
    again = sweep("tiny.yaml", "--gc", "--yes")
    assert "3 stages" in again.stdout
    assert "1 more are being worked on and stay" in again.stdout
    assert orphan.exists()


def merge(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", "data", "merge", *arguments],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_another_stores_finished_stages_are_taken_over(small: Path, sweep: Run) -> None:
    assert sweep("tiny.yaml", "--only", "seed=0", "--threads", "1", "--store", "a").returncode == 0
    assert sweep("tiny.yaml", "--only", "seed=1", "--threads", "1", "--store", "b").returncode == 0
    theirs = {path: path.read_bytes() for path in (small / "b").rglob("*") if path.is_file()}
    done = merge(small, "b", "--store", "a")
    assert done.returncode == 0, done.stderr
    assert "4 finished stages taken over, 1 were here already" in done.stdout
    assert {path: path.read_bytes() for path in (small / "b").rglob("*") if path.is_file()} == theirs
    taken = claims(small / "a")
    whole = sweep("tiny.yaml", "--store", "a")
    assert whole.returncode == 0
    assert "6 of 6 cells done" in whole.stderr
    assert claims(small / "a") == taken, "nothing ran"
    assert hashes(small / "a").items() >= hashes(small / "b").items()
    again = merge(small, "b", "--store", "a")
    assert "0 finished stages taken over, 5 were here already" in again.stdout
    merged = [r for (r,) in results(small / "a").values() if "merged_from" in r["provenance"]]
    assert len(merged) == 4
    assert all(r["provenance"]["merged_from"].endswith("/b") for r in merged)


def test_a_damaged_or_different_stage_of_the_other_store_is_named_and_not_taken(small: Path, sweep: Run) -> None:
    assert sweep("tiny.yaml", "--only", "seed=0", "--store", "a").returncode == 0
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


def test_what_is_no_store_is_refused(small: Path) -> None:
    for other, said in [(".", "is no store"), ("nowhere", "is no store")]:
        done = merge(small, other)
        assert done.returncode == 2
        assert said in done.stderr
    (small / "runs" / "stages").mkdir(parents=True)
    assert "is the store itself" in merge(small, "runs").stderr
