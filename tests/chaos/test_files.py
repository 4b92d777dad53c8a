"""Damaged files of a store: cut, flipped, emptied, deleted or replaced; found by checksum or form, and never used."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.claims import Observer
from harness.errors import UserError
from harness.index import stand
from harness.inline import Inline
from harness.merge import merge
from harness.planfile import NEWEST, dump, find_plan, read_plan
from harness.report.measured import measure, read_measured
from harness.shift import Limits, work
from harness.store import Result, Store, file_sha256, read_json
from harness.supervisor import Setup
from harness.sweep import app
from tests.conftest import THIN, environment, kill_tree, until

pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings("default")]

SWEEP = """
name: tiny
protocol: {preset: quick, epochs: 3}
use: {thin: "./thin.py:build"}
grid: {dataset: digits, arch: thin, mask: [random, omp], sparsity: [50%], recipe: default, seed: 0}
also:
  - {mask: dense, recipe: default}
tables: [any-mask]
figures: []
"""


def truncated(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def flipped(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(data))


def emptied(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def deleted(path: Path, draw: random.Random) -> None:
    path.unlink()


def folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("of somebody's")


def garbage(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(path.stat().st_size))


Damage = Callable[[Path, random.Random], None]
DAMAGES: Mapping[str, tuple[Damage, ...]] = {
    "checkpoint": (flipped, truncated, folder),
    "result of a mask": (flipped, deleted),
    "result of a training": (garbage, emptied),
    "mask": (flipped, truncated),
    "weights": (garbage, folder),
    "data set": (flipped, deleted),
    "claim": (flipped, emptied),
    "plan": (flipped, folder, truncated),
    "spec.json": (flipped, truncated),
    "metrics.jsonl": (flipped, garbage),
    "index": (flipped, folder),
    "measured": (flipped, emptied),
    "content": (flipped, deleted),
}
"""What each kind of file is put through; every kind has a damage that keeps its size."""


class Case:
    """A sweep that nothing disturbed, the same one killed in its first training, and a copy of one to be damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, ""
        (folder / "thin.py").write_text(THIN)
        (folder / "tiny.yaml").write_text(SWEEP)
        command = [sys.executable, "-m", "harness.sweep", "tiny.yaml", "--workers", "1", "--threads", "1", "--store"]
        killed = subprocess.Popen(
            [*command, "killed", "--only", "mask=dense", "--checkpoint-every", "0", "--lease", "1"],
            cwd=folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until(lambda: len(list(folder.glob("killed/stages/train/*/*/attempt-*/checkpoint-*"))) > 1)
        kill_tree(killed.pid)
        killed.wait()
        assert not list(folder.glob("killed/stages/train/*/*/result-*")), "it was killed in the middle"
        subprocess.run([*command, "done"], cwd=folder, env=environment(), check=True, capture_output=True)
        self.store = Store(folder / "done")
        self.plan = read_plan(find_plan(self.store, "tiny")).plan
        self.hashes = {key: result.artifact.sha256 for key, result in self.results().items()}
        self.measured = {key: found for key in self.plan.stages if (found := measure(self.store, key))}

    def take(self, source: str) -> None:
        """Begin anew with a copy of the store that is `done`, or of the `killed` one."""
        self.store, self.said = Store(self.folder / "copy"), ""
        shutil.rmtree(self.store.root, ignore_errors=True)
        shutil.copytree(self.folder / source, self.store.root)

    def key(self, role: str) -> str:
        """Return a stage's key by what it makes: data, dense, random, omp, or what a mask is trained to."""
        stages = self.plan.stages.values()
        (omp,) = (s for s in stages if s.kind == "mask" and "trained" in s.parents)
        (drawn,) = (s for s in stages if s.kind == "mask" and "trained" not in s.parents)
        named = {"omp": omp.key, "random": drawn.key, "dense": omp.parents["trained"]}
        named["data"] = next(s.key for s in stages if s.kind == "data")
        named |= {f"{s.parents['mask']} trained": s.key for s in stages if "mask" in s.parents}
        mask, _, trained = role.partition(" ")
        return named[f"{named[mask]} trained" if trained else mask]

    def path(self, role: str) -> Path:
        return self.store.path(self.plan.stages[self.key(role)].kind, self.key(role))

    def artifact(self, role: str, *readers: str) -> Path:
        """Return a stage's artifact; let stages be made again, which read it for that."""
        for reader in readers:
            shutil.rmtree(self.path(reader))
        return self.path(role) / f"{self.hashes[self.key(role)]}.safetensors"

    def sweep(self, *arguments: str) -> int:
        """Run the sweep command; a traceback fails the test."""
        given = ["tiny.yaml", "--via", "debug", "--threads", "1", "--yes", "--store", str(self.store.root)]
        done = CliRunner().invoke(app, [*given, *arguments])
        self.said += done.output
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        assert "Traceback" not in done.output
        return done.exit_code

    def results(self) -> dict[str, Result]:
        found = ((key, self.store.folder(stage.kind, key).result()) for key, stage in self.plan.stages.items())
        return {key: result for key, result in found if result is not None}

    def whole(self, dense_only: bool = False) -> bool:
        """Return whether every result is there, each the undisturbed one, and nothing else was made."""
        wanted = {key: self.hashes[key] for key in map(self.key, ("data", "dense"))} if dense_only else self.hashes
        there = {key: result.artifact.sha256 for key, result in self.results().items()}
        asked = all(path.name in self.plan.stages for path in self.store.root.glob("stages/*/*/*"))
        return asked and {key: there.get(key) for key in wanted} == wanted


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    import torch

    threads = torch.get_num_threads()
    yield Case(tmp_path_factory.mktemp("files"))
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(threads)


@pytest.fixture
def case(undisturbed: Case, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.chdir(undisturbed.folder)
    return undisturbed


def each(kind: str) -> list[Any]:
    """Return the damages of a kind of file as a test's parameters."""
    return [pytest.param(kind, damage, id=f"{kind}-{damage.__name__}") for damage in DAMAGES[kind]]


def drawn(kind: str) -> random.Random:
    return random.Random(f"of {kind}")


@pytest.mark.parametrize(("kind", "damage"), each("checkpoint"))
def test_a_training_goes_on_from_the_checkpoint_before_a_damaged_one(kind: str, damage: Damage, case: Case) -> None:
    case.take("killed")
    damage(max(case.path("dense").glob("attempt-0001/checkpoint-*")), drawn(kind))
    assert case.sweep("--only", "mask=dense") == 0, case.said
    assert "damaged (its" in case.said or "cannot be read" in case.said
    assert case.whole(dense_only=True)


@pytest.mark.parametrize(("kind", "damage"), each("result of a mask") + each("result of a training"))
def test_a_damaged_result_is_made_again(kind: str, damage: Damage, case: Case) -> None:
    case.take("done")
    if kind == "result of a mask":
        shutil.rmtree(case.path("omp trained"))  # a mask that nobody needs is not looked at
    path = case.path("omp" if kind == "result of a mask" else "omp trained") / "result-0001.json"
    before = Result.load(path, 1)
    damage(path, drawn(kind))
    assert before is not None
    unharmed = path.is_file() and Result.load(path, 1) == before  # a flip in white space changes nothing
    assert case.sweep() == 0, case.said
    assert case.whole()
    assert (path.parent / "result-0002.json").exists() or damage is deleted or unharmed


READ = {"mask": ("omp", "omp trained"), "weights": ("dense", "omp", "omp trained")}
READ["data set"] = ("data", "random", "random trained")


@pytest.mark.parametrize(("kind", "damage"), each("mask") + each("weights") + each("data set"))
def test_a_damaged_artifact_is_set_aside_and_made_again(kind: str, damage: Damage, case: Case) -> None:
    case.take("done")
    path = case.artifact(*READ[kind])
    size = path.stat().st_size
    damage(path, drawn(kind))
    seen_by_size = not path.exists() or (path.is_file() and path.stat().st_size != size)
    assert case.sweep() == 0, case.said
    assert case.whole()
    assert path.is_file()
    assert file_sha256(path) == path.stem
    assert seen_by_size or list(path.parent.glob("damaged-*"))


@dataclass
class Words:
    """What a worker tells."""

    heard: list[object] = field(default_factory=list)

    def __call__(self, **event: object) -> None:
        self.heard.append(event)


@pytest.mark.parametrize(("kind", "damage"), each("claim"))
def test_a_damaged_claim_is_taken_over_after_a_lease_from_the_last_checkpoint(
    kind: str, damage: Damage, case: Case
) -> None:
    case.take("killed")
    damage(case.path("dense") / "claim-0001", drawn(kind))
    saved, setup, said = read_plan(find_plan(case.store, "tiny")), Setup("cpu", 1, 300.0, lease=1.0), Words()
    work(saved, case.store, setup, Limits(), threading.Event(), said, Inline)
    assert case.whole(dense_only=True), said.heard
    newest = case.store.folder("train", case.key("dense")).result()
    assert newest is not None
    assert newest.provenance["resumed_at_step"] > 0


@pytest.mark.parametrize(("kind", "damage"), each("plan"))
def test_a_damaged_plan_is_refused_by_workers_and_written_anew_by_the_command(
    kind: str, damage: Damage, case: Case
) -> None:
    case.take("done")
    path = case.store.sweep("tiny") / NEWEST
    before = dump(read_plan(path))
    damage(path, drawn(kind))
    try:
        found, said = dump(read_plan(find_plan(case.store, "tiny"))), ""
    except UserError as error:
        found, said = before, str(error)
    assert found == before
    assert NEWEST in said or not said
    if damage is folder:
        assert case.sweep() == 3
        assert f"{NEWEST}: Is a directory" in case.said
        shutil.rmtree(path)  # as whoever is told of it would
    assert case.sweep() == 0, case.said
    assert case.whole()
    assert dump(read_plan(path)) == before


@pytest.mark.parametrize(("kind", "damage"), each("spec.json"))
def test_a_stage_whose_specification_is_damaged_is_not_merged(
    kind: str, damage: Damage, case: Case, tmp_path: Path
) -> None:
    case.take("done")
    path = case.path("omp trained") / "spec.json"
    before = read_json(path)
    damage(path, drawn(kind))
    assert merge(Store(tmp_path / "other"), case.store).damaged or read_json(path) == before
    assert case.sweep() == 0, case.said
    assert case.whole()


@pytest.mark.parametrize(("kind", "damage"), each("metrics.jsonl"))
def test_a_curve_ends_before_a_damaged_line_and_tables_keep_their_numbers(
    kind: str, damage: Damage, case: Case
) -> None:
    case.take("done")
    (path,) = case.path("omp trained").glob("attempt-*/metrics.jsonl")
    damage(path, drawn(kind))
    assert case.sweep() == 0, case.said
    now, before = measure(case.store, case.key("omp trained")), case.measured[case.key("omp trained")]
    assert now is not None
    assert all(list(values) == list(before.curves[curve])[: len(values)] for curve, values in now.curves.items())
    assert now.metrics == before.metrics
    assert case.whole()


@pytest.mark.parametrize(("kind", "damage"), each("index") + each("measured") + each("content"))
def test_a_damaged_cache_is_not_believed_and_made_again(kind: str, damage: Damage, case: Case) -> None:
    case.take("done")
    truth = stand(case.plan, case.store, Observer(), rebuild=True)
    read_measured(case.store, "tiny", truth.done, case.measured)
    (path,) = (case.store.root / "cache" / kind).iterdir()
    damage(path, drawn(kind))
    now = stand(case.plan, case.store, Observer())
    assert (now.done, now.states) == (truth.done, truth.states)
    assert read_measured(case.store, "tiny", truth.done, case.measured) == case.measured
    assert case.sweep() == 0, case.said
    assert case.whole()
