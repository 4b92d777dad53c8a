"""What runs say of stages: attempts that are one run and the rows it may show, by hand; and the records of a plan."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from harness.claims import Observer
from harness.facts import Facts
from harness.index import stand
from harness.plan import Stage
from harness.states import EARLY, state_of
from harness.store import Artifact, Folder, Result, Store
from harness.tracking import run_record
from harness.tracking.run_record import RecordBuilder, RunRecord, StageInfo, attempt_chains, stage_infos
from harness.train.checkpoint import Position, pack
from tests.harness.synthetic import write_fixture_store

KEY, MASK = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
FAILURE = {"outcome": "failed", "cause": "code", "message": "boom"}
RELEASED = {"outcome": "stopped", "message": "released for another try", "released": True}
SEARCHED = {"outcome": "stopped", "cause": "search", "epoch": 2}
PUBLISHED, RESTORED, DIED, STOPPED = ({"outcome": o} for o in ("published", "restored", "died", "stopped"))
ENDS = [(None, "running"), (STOPPED, "stopped"), (DIED, "stopped"), (SEARCHED, "finished"), (FAILURE, "failed")]
PAGE = "https://wandb.ai/lab/p/reportlist"
RAN, DIED_TWICE = ([3, 2], PUBLISHED), [([3], DIED, [3]), ([3, 2], DIED, [3])]
BROKEN = [b"", b"12345678", (10**12).to_bytes(8, "little"), b"\x02" + b"\0" * 7 + b"[]"]
CHAINS: dict[str, tuple[Any, Any, Any]] = {  # attempts: losses, end, losses in the checkpoint; runs; losses that show
    "resumed": ([([3, 2], None, [3]), ([3, 2, 1], PUBLISHED)], [(1, 2, True)], [[3, 2, 1]]),
    "running": ([([3, 2, 1],)], [(1, 1, True)], [[]]),
    "running on": ([([3, 2, 1],), ([3, 2, 1], None, [3, 2])], [(1, 2, True)], [[3, 2]]),
    "overtaken": ([([3, 2, 1.5], None, [3, 2, 1.5]), ([3, 2, 1], None, [3])], [(1, 2, True)], [[3, 2]]),
    "anew": ([([3, 2], None, [3, 2]), ([4, 3], None, [4])], [(1, 1, False), (2, 2, True)], [[3, 2], [4]]),
    "failed": ([([3, 2], FAILURE, [3])], [(1, 1, True)], [[3, 2]]),
    "released": ([([3, 2], FAILURE), ((), RELEASED)], [(1, 1, True)], [[3, 2]]),
    "retried": ([([3, 2], FAILURE), ((), RELEASED), ([3],)], [(1, 1, False), (3, 3, True)], [[3, 2], []]),
    "died": (DIED_TWICE, [(1, 2, True)], [[3]]),
    "died, retried": ([*DIED_TWICE, ((), RELEASED), ([3],)], [(1, 2, False), (4, 4, True)], [[3, 2], []]),
    "being made anew": ([RAN, ([4],)], [(1, 1, True)], [[3, 2]]),
    "made anew": ([RAN, ([4],), ([4, 3], PUBLISHED)], [(1, 1, False), (2, 3, True)], [[3, 2], [4, 3]]),
    "restored": ([RAN, ((), RESTORED)], [(1, 1, True)], [[3, 2]]),
    "restored, anew": ([RAN, ((), RESTORED), RAN], [(1, 1, False), (3, 3, True)], [[3, 2], [3, 2]]),
    **{f"broken {n}": ([([3, 2], None, data)], [(1, 1, True)], [[]]) for n, data in enumerate(BROKEN)},
}


def rows(losses: Iterable[float]) -> list[dict[str, Any]]:
    return [{"epoch": n, "train_loss": loss, "best": False} for n, loss in enumerate(losses, 1)]


class StageFolder:
    """A stage's folder, written attempt by attempt."""

    def __init__(self, store: Store, kind: str = "train", key: str = KEY) -> None:
        self.store, self.kind, self.key, self.path, self.attempts = store, kind, key, store.path(kind, key), 0
        self.path.mkdir(parents=True)

    def attempt(self, losses: Iterable[float] = (), end: Any = None, saved: Any = None) -> StageFolder:
        self.attempts += 1
        attempt = self.path / f"attempt-{self.attempts:04d}"
        attempt.mkdir()
        (self.path / f"claim-{self.attempts:04d}").touch()
        (attempt / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(losses)))
        if end:
            (attempt / "end.json").write_text(json.dumps(end))
        if saved is not None:
            name, data = pack(20, Position(rows=rows(saved)), {}, {})
            (attempt / name).write_bytes(saved if isinstance(saved, bytes) else data)
        return self.publish() if end is PUBLISHED else self

    def publish(self, **parents: str) -> StageFolder:
        edition = self.folder.edition + 1
        result = Result(edition, Artifact(str(edition) * 64, 1), parents, {}, {}, {"generation": self.attempts})
        (self.path / f"result-{edition:04d}.json").write_bytes(result.dump())
        (self.path / result.artifact.file).write_bytes(b"x")
        return self

    @property
    def folder(self) -> Folder:
        return self.store.folder(self.kind, self.key)

    def records(self, builder: RecordBuilder | None = None, **words: Any) -> list[RunRecord]:
        stage = Stage(self.key, self.kind, {}, {}, "label")
        info = replace(StageInfo(stage, "cell", "name", "group", {}, Facts(), ("a command",), ("tiny",)), **words)
        state = None if self.folder.edition else state_of(self.folder, Observer())
        return (builder or RecordBuilder(self.store, "reference", PAGE)).records(info, state)


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    return StageFolder(Store(tmp_path))


@pytest.fixture
def mask(stage: StageFolder) -> StageFolder:
    """A mask that was made twice, and another each time."""
    return StageFolder(stage.store, "mask", MASK).attempt(end=PUBLISHED).attempt(end=PUBLISHED)


class Planned:
    """A store of made-up results, its plan, and what runs say of it, each by a builder of its own."""

    def __init__(self, folder: Path) -> None:
        self.store, self.saved = write_fixture_store(folder)
        self.infos, states = stage_infos([self.saved]), stand(self.saved.plan, self.store, Observer()).states
        self.stages = [(info, states.get(key)) for key, info in self.infos.items()]
        self.records = [r for s in self.stages for r in RecordBuilder(self.store, "reference", PAGE).records(*s)]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    return Planned(tmp_path_factory.mktemp("fixture"))


@pytest.mark.parametrize(("attempts", "runs", "shown"), CHAINS.values(), ids=CHAINS)
def test_attempts_that_continue_one_another_are_a_run(stage: StageFolder, attempts: Any, runs: Any, shown: Any) -> None:
    for attempt in attempts:
        stage.attempt(*attempt)
    chains = attempt_chains(stage.folder)
    assert [(chain.first, chain.last, chain.current) for chain in chains] == runs
    assert [run_record.settled_rows(stage.folder, chain) for chain in chains] == [rows(losses) for losses in shown]


def test_another_edition_is_another_run_and_the_old_one_superseded(mask: StageFolder) -> None:
    old, new = mask.records()
    assert [old.id, new.id] == [f"{MASK}-1", f"{MASK}-2"]
    assert [old.name, new.name] == ["name (from attempt 1)", "name (from attempt 2)"]
    assert [(r.config["status"], r.config["attempt"]) for r in (old, new)] == [("superseded", 1), ("current", 2)]
    assert ["superseded" in record.tags for record in (old, new)] == [True, False]


def test_a_result_counts_without_an_end_and_without_claims(stage: StageFolder) -> None:
    (record,) = stage.attempt([3]).attempt([3, 2]).publish().records()
    assert (record.state, record.config["attempt"], len(record.rows)) == ("finished", 1, 2)
    stage.folder.claim_path(2).unlink()
    assert stage.records() == [record]


@pytest.mark.parametrize(("end", "state"), ENDS)
def test_only_a_final_record_is_sent_with_its_digest(stage: StageFolder, end: Any, state: str) -> None:
    (record,) = stage.attempt([3, 2], end, saved=[3]).records()
    assert (record.state, record.final) == (state, state in ("finished", "failed"))
    assert (EARLY in record.tags) == (end is SEARCHED)
    digests = [record.payload[part].get("digest") for part in ("config", "summary")]
    assert digests == [record.digest if record.final else None] * 2


def test_a_rerun_is_named_by_itself_and_by_what_is_made_from_it(stage: StageFolder, mask: StageFolder) -> None:
    builder = RecordBuilder(mask.store, "none", PAGE, lambda run: f"{run}-3" if run == f"{MASK}-1" else run)
    assert [record.id for record in mask.records(builder)] == [f"{MASK}-1-3", f"{MASK}-2"]
    stage.attempt([3], FAILURE).attempt([3]).publish(**{MASK: "1" * 64})
    failed, made = stage.records(builder, parents={"mask": MASK})
    assert failed.config["uses"] == {"mask": {"key": MASK, "run": f"{MASK}-2"}}
    assert made.config["uses"] == {"mask": {"key": MASK, "run": f"{MASK}-1-3", "sha256": "1" * 64}}


def test_an_artifact_is_told_of_where_its_file_is_and_somebody_reads_it(stage: StageFolder, mask: StageFolder) -> None:
    path, metadata = mask.path / f"{'2' * 64}.safetensors", {"sha256": "2" * 64, "bytes": 1, "stage": MASK}
    said = {"name": f"mask-{MASK[:16]}", "type": "mask", "path": str(path), "metadata": metadata}
    wanted = {"reference": said | {"upload": False}, "upload": said | {"upload": True}, "none": None}
    assert {mode: mask.records(RecordBuilder(mask.store, mode, PAGE))[-1].artifact for mode in wanted} == wanted
    path.unlink()
    assert [record.artifact is None for record in mask.records()] == [False, True]
    stage.attempt([3], PUBLISHED)
    artifacts = [stage.records(is_read=read)[0].artifact for read in (False, True)]
    assert [artifact and artifact["type"] for artifact in artifacts] == [None, "ticket"]


def test_every_stage_but_data_has_a_run_of_its_own(planned: Planned) -> None:
    infos, runs = planned.infos, {record.id: record for record in planned.records}
    assert list(infos) == [key for key, stage in planned.saved.plan.stages.items() if stage.kind != "data"]
    assert {info.role for info in infos.values()} == {"cell", "dense", "training", "mask", "rescale"}
    assert {key for key, info in infos.items() if info.is_read} == planned.saved.plan.inner & set(infos)
    for record in planned.records:
        key = record.config["key"]
        assert (record.id, record.job_type) == (f"{key}-1", infos[key].stage.kind)
        assert (record.config["status"], record.config["attempt"]) == ("current", 1)
        assert f"harness status synthetic --why {key}\ntables and curves: {PAGE}" in record.notes
        result = planned.store.folder(record.job_type, key).result()
        assert record.config.get("environment", {}) == (result.stamp if result else {})
        for used in record.config.get("uses", {}).values():
            assert used["run"] == f"{used['key']}-1"
            assert used.get("sha256") == (runs[used["run"]].summary["artifact"] if result else None)
    builder = RecordBuilder(planned.store, "reference", PAGE)
    assert [r.digest for s in planned.stages for r in builder.records(*s)] == [r.digest for r in planned.records]


def test_a_group_is_a_cell_without_its_seed(planned: Planned) -> None:
    groups: dict[tuple[str, ...], set[str]] = {}
    for place, key in planned.saved.places():
        known = (place["arch"], place["mask"], place["mask"] == "dense" or place["sparsity"], place["recipe"])
        groups.setdefault(tuple(map(str, known)), set()).add(planned.infos[key].group)
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == len(groups)
    rounds = [info for info in planned.infos.values() if info.role == "training"]
    seeds = {info.labels["ticket_seed"] for info in rounds}
    assert len({info.group for info in rounds}) * len(seeds) == len(rounds)


def test_a_summary_has_every_number_that_a_table_can_show(planned: Planned) -> None:
    cells = [record for record in planned.records if record.rows and record.state == "finished"]
    result = planned.store.folder("train", cells[0].config["key"]).result()
    assert result is not None
    numbers = {name: value for name, value in result.metrics.items() if isinstance(value, int | float)}
    said: dict[str, Any] = {run_record.metric_name(name): value for name, value in numbers.items()}
    said |= {"accuracy": numbers["test@last"], "provenance": result.provenance, "artifact": result.artifact.sha256}
    assert {name: cells[0].summary[name] for name in said} == said
    assert cells[0].config["protocol"]["epochs"] == len(cells[0].rows) == 12
    assert all(re.fullmatch(r"[A-Za-z_]\w*", name) for r in cells for name in (*r.summary, *r.rows[0]))


def test_a_failure_is_told_with_its_cause(planned: Planned) -> None:
    failed = [record for record in planned.records if record.state == "failed"]
    assert failed
    for record in failed:
        folder = planned.store.folder(record.job_type, record.config["key"])
        end = folder.end(1) or {}
        assert record.summary == {"failure": {"cause": end["cause"], "message": end["message"]}}
        assert f"\nfailed ({end['cause']}): {end['message']}\nlog: {folder.attempt(1)}/log" in record.notes


def test_a_stage_of_two_sweeps_is_one_run_with_both_their_names(planned: Planned) -> None:
    saved = planned.saved
    infos = stage_infos([saved, replace(saved, plan=replace(saved.plan, name="other"))])
    assert infos == {key: replace(info, sweeps=("synthetic", "other")) for key, info in planned.infos.items()}
    assert all({"synthetic", "other"} <= set(info.tags) for info in infos.values())


def test_names_keep_to_what_a_server_takes_and_stay_apart(planned: Planned) -> None:
    saved, at, long = planned.saved, planned.saved.axes.index("mask"), f"file:./{'deep/' * 60}"
    labels = [(*c.labels[:at], f"{long}{n}/mask.pt", *c.labels[at + 1 :]) for n, c in enumerate(saved.cells)]
    cells = [cell._replace(labels=new) for cell, new in zip(saved.cells, labels, strict=True)]
    infos = [info for info in stage_infos([replace(saved, cells=cells)]).values() if info.role in ("cell", "dense")]
    assert {len(info.name) for info in infos} | {len(info.group) for info in infos} == {128}
    assert {max(map(len, info.tags)) for info in infos} == {64}
    assert len({info.name for info in infos}) == len({info.group for info in infos}) == len(infos)


RECORD = RunRecord("k-1", "n", "g", "train", ["t"], "", {"a": {"b": 1}}, [{"x": 1}, {"x": 2}], {"c": 1}, "failed", True)
OTHER = RunRecord("k-2", "m", "h", "mask", [], "!", {"a": {}}, [{"x": 1}, {"x": 3}], {"c": 2}, "", False, {"d": 1})


@pytest.mark.parametrize("name", [field.name for field in fields(RunRecord)])
def test_the_digest_is_of_everything_but_the_notes(name: str) -> None:
    other = replace(RECORD, **{name: getattr(OTHER, name)})
    assert (other.digest == RECORD.digest) is (name == "notes")
    assert (other.prefix(2) == RECORD.prefix(2)) is (name != "rows")
    assert other.prefix(1) == RECORD.prefix(1) != RECORD.prefix(2)


@pytest.mark.parametrize("rerun", [0, 1, 12])
@pytest.mark.parametrize("run", [f"{KEY}-2", f"{KEY}-12"])
def test_a_rerun_has_an_id_that_says_so(run: str, rerun: int) -> None:
    assert run_record.split_run_id(run_record.rerun_id(run, rerun)) == (run, rerun)
    assert (run_record.rerun_id(run, rerun) == run) is (rerun == 0)
