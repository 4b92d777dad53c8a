"""What runs say of stages: attempts that are one run and the rows it may show, by hand; and the records of a plan."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from harness.claims import Observer
from harness.facts import Facts
from harness.index import stand
from harness.plan import Stage
from harness.states import EARLY, state_of
from harness.store import Store
from harness.tracking import run_record
from harness.tracking.run_record import RunRecord, StageInfo, run_records, stage_infos
from tests.harness.synthetic import write_fixture_store
from tests.harness.test_attempts import DIED, FAILURE, KEY, PUBLISHED, RELEASED, SEARCHED, STOPPED, StageFolder

MASK = "fedcba9876543210fedcba9876543210"
ENDS = [(None, "running"), (STOPPED, "stopped"), (DIED, "stopped"), (SEARCHED, "finished"), (FAILURE, "failed")]
PAGE = "https://wandb.ai/lab/p/reportlist"


class RecordedStage(StageFolder):
    """A stage's folder, and what runs say of it."""

    def records(self, newest: Callable[[str], str] = str, **words: Any) -> list[RunRecord]:
        stage = Stage(self.key, self.kind, {}, {}, "label")
        info = replace(StageInfo(stage, "cell", "name", "group", {}, Facts(), ("a command",), ("tiny",)), **words)
        state = None if self.folder.edition else state_of(self.folder, Observer())
        return run_records(self.store, info, state, PAGE, newest)


@pytest.fixture
def stage(tmp_path: Path) -> RecordedStage:
    return RecordedStage(Store(tmp_path))


@pytest.fixture
def mask(stage: RecordedStage) -> RecordedStage:
    """A mask that was made twice, and another each time."""
    return RecordedStage(stage.store, "mask", MASK).attempt(end=PUBLISHED).attempt(end=PUBLISHED)


class Planned:
    """A store of made-up results, its plan, and what runs say of it."""

    def __init__(self, folder: Path) -> None:
        self.store, self.saved = write_fixture_store(folder)
        self.infos, states = stage_infos([self.saved]), stand(self.saved.plan, self.store, Observer()).states
        self.stages = [(info, states.get(key)) for key, info in self.infos.items()]
        self.records = [r for s in self.stages for r in run_records(self.store, *s, PAGE, str)]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    return Planned(tmp_path_factory.mktemp("fixture"))


def test_another_edition_is_another_run_and_the_old_one_superseded(mask: RecordedStage) -> None:
    old, new = mask.records()
    assert [old.id, new.id] == [f"{MASK}-1", f"{MASK}-2"]
    assert [old.name, new.name] == ["name (from attempt 1)", "name (from attempt 2)"]
    assert [(r.config["status"], r.config["attempt"]) for r in (old, new)] == [("superseded", 1), ("current", 2)]
    assert ["superseded" in record.tags for record in (old, new)] == [True, False]


def test_a_result_counts_without_an_end_and_without_claims(stage: RecordedStage) -> None:
    (record,) = stage.attempt([3]).attempt([3, 2]).publish().records()
    assert (record.state, record.config["attempt"], len(record.rows)) == ("finished", 1, 2)
    stage.folder.claim_path(2).unlink()
    assert stage.records() == [record]


@pytest.mark.parametrize(("end", "state"), ENDS)
def test_only_a_final_record_is_sent_with_its_digest(stage: RecordedStage, end: Any, state: str) -> None:
    (record,) = stage.attempt([3, 2], end, saved=[3]).records()
    assert (record.state, record.final) == (state, state in ("finished", "failed"))
    assert (EARLY in record.tags) == (end is SEARCHED)
    digests = [record.payload[part].get("digest") for part in ("config", "summary")]
    assert digests == [record.digest if record.final else None] * 2


def test_a_rerun_is_named_and_what_is_made_from_a_stage_names_its_artifact(
    stage: RecordedStage, mask: RecordedStage
) -> None:
    newest = {f"{MASK}-1": f"{MASK}-1-3"}
    assert [record.id for record in mask.records(lambda run: newest.get(run, run))] == [f"{MASK}-1-3", f"{MASK}-2"]
    stage.attempt([3], FAILURE).attempt([3]).publish(**{MASK: "1" * 64})
    failed, made = stage.records(parents={"mask": MASK})
    assert failed.config["uses"] == {"mask": {"key": MASK}}
    assert made.config["uses"] == {"mask": {"key": MASK, "sha256": "1" * 64}}


def test_a_failure_keeps_its_message_when_it_is_to_be_tried_again(stage: RecordedStage) -> None:
    (failed,) = stage.attempt([3, 2], FAILURE).records()
    (released,) = stage.attempt(end=RELEASED).records()
    assert failed.summary == released.summary == {"failure": {"cause": "code", "message": "boom"}}


def test_a_stage_that_is_given_up_has_a_run_with_all_its_rows(stage: RecordedStage, mask: RecordedStage) -> None:
    out_of_time = {"outcome": "stopped", "limit": 60.0}
    (record,) = stage.attempt([3, 2], out_of_time).attempt([3, 2], out_of_time).records()
    assert (record.state, record.final, len(record.rows), record.summary["failure"]["cause"]) == (
        "failed",
        True,
        2,
        "time",
    )
    tried_again = stage.attempt(end=RELEASED).attempt([4]).records()
    assert [(record.id, record.final) for record in tried_again] == [(f"{KEY}-1", True), (f"{KEY}-4", False)]
    other = RecordedStage(stage.store, "mask", KEY).attempt(end=out_of_time).attempt(end=out_of_time)
    assert [record.state for record in other.records()] == ["failed"]


def test_names_and_tags_stay_within_what_a_server_takes(mask: RecordedStage) -> None:
    for record in mask.records(name="x" * 128, sweeps=("superseded",)):
        assert len(record.name) <= 128
        assert len(set(record.tags)) == len(record.tags)


def test_every_stage_but_data_has_a_run_of_its_own(planned: Planned) -> None:
    infos, runs = planned.infos, {record.id: record for record in planned.records}
    assert list(infos) == [key for key, stage in planned.saved.plan.stages.items() if stage.kind != "data"]
    assert {info.role for info in infos.values()} == {"cell", "dense", "training", "mask", "rescale"}
    for record in planned.records:
        key = record.config["key"]
        assert (record.id, record.job_type) == (f"{key}-1", infos[key].stage.kind)
        assert (record.config["status"], record.config["attempt"]) == ("current", 1)
        assert f"harness status synthetic --why {key}\n" in record.notes
        assert record.notes.endswith(f"\ntables and curves: {PAGE}")
        result = planned.store.folder(record.job_type, key).result()
        assert record.config.get("environment", {}) == (result.stamp if result else {})
        for used in record.config.get("uses", {}).values():
            assert used.get("sha256") == (runs[f"{used['key']}-1"].summary["artifact"] if result else None)
    again = [r.digest for s in planned.stages for r in run_records(planned.store, *s, "another page", str)]
    assert again == [r.digest for r in planned.records]


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
OTHER = RunRecord("k-2", "m", "h", "mask", [], "!", {"a": {}}, [{"x": 1}, {"x": 3}], {"c": 2}, "", False)


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
