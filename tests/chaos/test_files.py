"""Damaged files: cut, flipped, emptied, deleted or replaced; found by checksum or form, and never used."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from harness.claims import Observer
from harness.errors import UserError
from harness.index import stand
from harness.inline import Inline
from harness.merge import merge
from harness.planfile import NEWEST, dump, find_plan, read_plan
from harness.report.measured import measure, read_measured
from harness.shift import Limits, work
from harness.store import Store, file_sha256, read_json
from harness.supervisor import Setup
from tests.chaos.case import Calm, Case, make_calm
from tests.chaos.conftest import Record
from tests.chaos.damage import CHANGES_SIZE, DAMAGES, FOLDER, Tally, draws, undo_folder

AREA = "Damaged files"
pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calm]:
    import torch

    threads = torch.get_num_threads()
    yield make_calm(tmp_path_factory.mktemp("files"))
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(threads)


def _checkpoint(case: Case) -> Path:
    return max(case.path("dense").glob("attempt-0001/checkpoint-*"))


def _result(role: str, *children: str) -> Callable[[Case], Path]:
    def damaged(case: Case) -> Path:
        case.forget(*children)
        return case.path(role) / "result-0001.json"

    return damaged


def _read(artifact: str, *children: str) -> Callable[[Case], Path]:
    def damaged(case: Case) -> Path:
        case.forget(*children)
        return case.artifact(artifact)

    return damaged


KINDS: Mapping[str, tuple[Callable[[Case], Path], str]] = {
    "checkpoint": (_checkpoint, "its name holds its hash: the one before it is taken, with a word in the log"),
    "result of a mask": (_result("omp", "omp trained"), "its own checksum: the stage is made again"),
    "result of a training": (_result("omp trained"), "its own checksum: the stage is made again"),
    "mask": (_read("omp", "omp trained"), "its name is its hash: set aside as damaged-*, made again"),
    "weights": (_read("dense", "omp", "omp trained"), "its name is its hash: set aside as damaged-*, made again"),
    "data set": (_read("data", "random", "random trained"), "its name is its hash: set aside as damaged-*, made again"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_stage_has_made(
    kind: str, calm: Calm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    find, found = KINDS[kind]
    killed, tally = kind == "checkpoint", Tally(kind)
    for name, draw in draws(kind):
        case = Case(calm, _copy(calm.killed if killed else calm.done, tmp_path), monkeypatch)
        path = find(case)
        what = DAMAGES[name](path, draw)
        code = case.sweep(*(["--only", "mask=dense"] if killed else []))
        lost, wrong = case.amiss(dense_only=killed)
        if killed:
            named = name == "deleted" or "damaged (its" in case.said or "cannot be read" in case.said
        elif path.suffix == ".safetensors":
            wrong += not path.is_file() or file_sha256(path) != path.stem
            named = name in CHANGES_SIZE or bool(list(path.parent.glob("damaged-*")))
        else:
            named = (path.parent / "result-0002.json").exists() or name == "deleted"
        tally.add(what, lost, wrong, case.said, well=code == 0 and named)
    tally.note(record, found)


def _copy(source: Path, tmp_path: Path) -> Path:
    target = tmp_path / "store"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def test_claim(calm: Calm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    tally = Tally("claim")
    for name, draw in draws("claim"):
        case = Case(calm, _copy(calm.killed, tmp_path), monkeypatch)
        what = DAMAGES[name](case.path("dense") / "claim-0001", draw)
        saved, setup, said = read_plan(find_plan(case.store, "tiny")), Setup("cpu", 1, 300.0, lease=1.0), Words()
        work(saved, case.store, setup, Limits(), threading.Event(), said, Inline)
        lost, wrong = case.amiss(dense_only=True)
        newest = case.store.folder("train", calm.stage("dense")[1]).result()
        resumed = newest is not None and newest.provenance["resumed_at_step"] > 0
        tally.add(what, lost, wrong, said.heard, well=resumed)
    tally.note(record, "its owner is unknown: taken over after a lease, from its last checkpoint")


class Words:
    """What a worker tells."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def __call__(self, **event: object) -> None:
        self.heard.append(event)


def test_plan(calm: Calm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    tally = Tally("plan")
    for name, draw in draws("plan"):
        case = Case(calm, _copy(calm.done, tmp_path), monkeypatch)
        path = case.store.sweep("tiny") / NEWEST
        before = dump(read_plan(path))
        what = DAMAGES[name](path, draw)
        try:
            used = int(dump(read_plan(find_plan(case.store, "tiny"))) != before)
        except UserError as error:
            used = int(NEWEST not in str(error))
        code = case.sweep()
        if name == FOLDER:
            named = code == 3 and f"{NEWEST}: Is a directory" in case.said
            undo_folder(path)
            code = case.sweep()
        else:
            named = True
        lost, wrong = case.amiss()
        well = code == 0 and named and dump(read_plan(path)) == before
        tally.add(what, lost, wrong + used, case.said, well=well)
    tally.note(record, "its checksum: a worker refuses it (code 2), the sweep command writes it anew")


def test_specification(calm: Calm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    tally = Tally("spec.json")
    for name, draw in draws("spec"):
        case = Case(calm, _copy(calm.done, tmp_path), monkeypatch)
        path = case.path("omp trained") / "spec.json"
        before = read_json(path)
        what = DAMAGES[name](path, draw)
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        taken = merge(Store(tmp_path / "other"), case.store)
        used = not taken.damaged and read_json(path) != before
        code = case.sweep()
        lost, wrong = case.amiss()
        tally.add(what, lost, wrong + used, case.said, well=code == 0)
    tally.note(record, "its hash is the stage's key: a merge into another store names it and leaves it")


def test_line_of_metrics(calm: Calm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    tally, key = Tally("metrics.jsonl"), calm.stage("omp trained")[1]
    for name, draw in draws("metrics"):
        case = Case(calm, _copy(calm.done, tmp_path), monkeypatch)
        (path,) = case.path("omp trained").glob("attempt-*/metrics.jsonl")
        what = DAMAGES[name](path, draw)
        code = case.sweep()
        now, before = measure(case.store, key), calm.measured[key]
        assert now is not None
        same = all(list(values) == list(before.curves[curve])[: len(values)] for curve, values in now.curves.items())
        lost, wrong = case.amiss()
        tally.add(what, lost, wrong + (not same or now.metrics != before.metrics), now.curves, well=code == 0)
    tally.note(record, "a checksum a line: a curve ends before the damage; numbers of tables stand in the result")


@pytest.mark.parametrize("kind", ["index", "measured", "content"])
def test_what_is_remembered(
    kind: str, calm: Calm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    tally = Tally(f"cache/{kind}")
    for name, draw in draws(kind):
        case = Case(calm, _copy(calm.done, tmp_path), monkeypatch)
        truth = stand(calm.plan, case.store, Observer(), rebuild=True)
        read_measured(case.store, "tiny", truth.done, calm.measured)
        (path,) = (case.store.root / "cache" / kind).iterdir()
        what = DAMAGES[name](path, draw)
        standing = stand(calm.plan, case.store, Observer())
        used = int((standing.done, standing.states) != (truth.done, truth.states))
        used += read_measured(case.store, "tiny", truth.done, calm.measured) != calm.measured
        code = case.sweep()
        lost, wrong = case.amiss()
        tally.add(what, lost, wrong + used, case.said, well=code == 0)
    tally.note(record, "its checksum: not believed, and made again")
