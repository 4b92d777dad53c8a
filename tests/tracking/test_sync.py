"""Sync: the real wandb client against the fake server, whatever was there before and whatever changes meanwhile."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from harness.claims import Lease, Owner, take
from harness.errors import UserError
from harness.planfile import SavedPlan
from harness.rows import rows_of_attempt
from harness.store import Artifact, Folder, Result, Store, forget_index
from harness.tracking import sync
from harness.tracking.settings import settings_of
from harness.tracking.sync import Mirror, Progress, back_off, connected, leased
from harness.tracking.wandb_process import WandbProcess, WandbUnavailable
from harness.train.checkpoint import Position, pack
from tests.tracking.mirrored import assert_mirrors, small_store, surroundings
from tests.tracking.server import RemoteRun, Server

pytestmark = pytest.mark.slow
Open = Callable[[], AbstractContextManager[tuple[Mirror, Lease]]]


@pytest.fixture
def small(tmp_path: Path) -> tuple[Store, SavedPlan]:
    return small_store(tmp_path)


@pytest.fixture
def opened(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Return what gives the mirror of the only project of the store, in a fresh state, as a new command would."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in surroundings(tmp_path, server.url).items():
        monkeypatch.setenv(name, value)

    monkeypatch.setattr(sync, "FIRST_BACK_OFF", 0.0)

    @contextmanager
    def opened() -> Iterator[tuple[Mirror, Lease]]:
        store = Store(tmp_path / "runs")
        (settings,) = settings_of(store, [])
        with connected(store, settings, print) as mirror, leased(mirror, threading.Event()) as lease:
            yield mirror, lease

    return opened


def run_of(server: Server, name: str) -> RemoteRun:
    return next(run for run in server.runs.values() if run.id == name)


def trained(server: Server) -> list[RemoteRun]:
    return [run for run in server.runs.values() if run.job_type == "train"]


def add_attempt(store: Store, key: str, attempt: int, loss: float, test: float) -> None:
    """Make a training anew, as another attempt with other rows and another result."""
    folder = store.folder("train", key)
    old = folder.result()
    assert old is not None
    (folder.path / f"claim-{attempt:04d}").write_bytes(b"")
    (folder.path / f"attempt-{attempt:04d}").mkdir(exist_ok=True)
    row = {"epoch": 1, "train_loss": loss, "best": False}
    (folder.path / f"attempt-{attempt:04d}" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    came = {**old.provenance, "generation": attempt}
    new = Result(attempt, Artifact("f" * 64, 3), old.parents, {**old.metrics, "test@last": test}, old.stamp, came)
    (folder.path / f"result-{attempt:04d}.json").write_bytes(new.dump())
    forget_index(store)


def test_all_is_sent_once_and_nothing_again(small: tuple[Store, SavedPlan], server: Server, opened: Open) -> None:
    store, saved = small
    with opened() as (mirror, lease):
        progress = mirror.run_pass(lease)
        assert progress.complete
        assert progress.unfinished == 0
        records = assert_mirrors(server, store)
        assert set(records) == {f"{key}-1" for key, stage in saved.plan.stages.items() if stage.kind != "data"}
        sent = server.requests["UpsertBucket"]
        assert mirror.run_pass(lease) == Progress(12, 12)
    with opened() as (mirror, lease):
        assert mirror.run_pass(lease) == Progress(12, 12), "nothing but the server remembers"
        assert mirror.compare() == Progress(12, 12)
    assert server.requests["UpsertBucket"] == sent


def test_one_made_again_is_a_second_run_and_the_first_superseded(
    small: tuple[Store, SavedPlan], server: Server, opened: Open
) -> None:
    store, saved = small
    key = saved.cells[0].key
    with opened() as (mirror, lease):
        assert mirror.run_pass(lease).complete
        add_attempt(store, key, 2, 9.0, 91.0)
        assert mirror.run_pass(lease).complete
        records = assert_mirrors(server, store)
        assert "superseded" in run_of(server, f"{key}-1").tags
        assert records[f"{key}-2"].summary["accuracy"] == run_of(server, f"{key}-2").summary["accuracy"] == 91.0
        folder = store.folder("train", key).path  # cleared away and trained again: its numbers begin anew
        for path in (*folder.glob("claim-*"), *folder.glob("result-*"), folder / "attempt-0001" / "metrics.jsonl"):
            path.rename(folder / f"old-{path.name}")
        (folder / "result-0001.json").write_bytes((folder / "old-result-0001.json").read_bytes())
        (folder / "claim-0001").write_bytes(b"")
        row = {"epoch": 1, "train_loss": 7.5, "best": False}
        (folder / "attempt-0001" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        forget_index(store)
    with opened() as (mirror, lease):
        assert mirror.run_pass(lease).complete
    assert_mirrors(server, store, superseded=2)
    assert run_of(server, f"{key}-1-1").history[0]["train_loss"] == 7.5


def test_what_is_wrong_on_the_server_is_found_named_and_put_right(
    small: tuple[Store, SavedPlan], server: Server, opened: Open
) -> None:
    store, _ = small
    with opened() as (mirror, lease):
        assert mirror.run_pass(lease).complete
    gone, short, other, odd, spoilt = trained(server)[:5]
    del server.runs[gone.key]
    short.lines.popitem()
    other.summary["digest"] = "another"
    odd.tags.append("odd")
    first = min(spoilt.lines)
    spoilt.lines[first] = json.dumps(json.loads(spoilt.lines[first]) | {"epoch": 7})
    with opened() as (mirror, lease):
        older = "with an older config, summary or tags"
        found = mirror.compare().missing
        assert found == {gone.id: "not on the server", short.id: "11 of 12 rows", other.id: older, odd.id: older}
        left = mirror.run_pass(lease).missing
        assert left == {short.id: "11 of 12 rows"}, "rows that are late are not begun anew unless that is asked for"
    with opened() as (mirror, lease):
        mirror.verify = True
        assert mirror.run_pass(lease).complete
    assert_mirrors(server, store, superseded=2)
    assert "superseded" in spoilt.tags
    assert run_of(server, f"{spoilt.id}-1").history[0]["epoch"] == 1


def test_two_sweeps_of_one_project_share_their_runs(tmp_path: Path, server: Server, opened: Open) -> None:
    store, saved = small_store(tmp_path, seeds=1)
    with opened() as (mirror, lease):
        assert mirror.run_pass(lease).complete
        small_store(tmp_path, seeds=1, name="also")
        assert mirror.run_pass(lease).complete
    assert_mirrors(server, store)
    run = run_of(server, f"{saved.cells[0].key}-1")
    assert {"small", "also"} <= set(run.tags)
    assert run.config["sweeps"] == ["also", "small"]


def test_a_failure_is_sent_with_its_cause_and_what_it_blocks_is_not_waited_for(
    tmp_path: Path, server: Server, opened: Open
) -> None:
    store, _ = small_store(tmp_path, broken="mask digits resnet20 snip 90% ticket seed 0")
    with opened() as (mirror, lease):
        progress = mirror.follow(lease, threading.Event())
    assert (progress.complete, progress.unfinished) == (True, 0)
    records = assert_mirrors(server, store)
    (failed,) = [record for record in records.values() if record.state == "failed"]
    assert run_of(server, failed.id).summary["failure"]["cause"]


@pytest.mark.parametrize("status", ["401", "409"])
def test_rows_that_the_client_drops_without_a_word_are_missed_and_sent_again(
    status: str, small: tuple[Store, SavedPlan], server: Server, opened: Open
) -> None:
    store, _ = small
    with opened() as (mirror, lease):
        server.faults_on, server.fault = {"file_stream"}, status
        progress = mirror.run_pass(lease)
        assert not progress.complete
        server.fault = None
        assert mirror.run_pass(lease).complete
    assert_mirrors(server, store)


def test_a_run_that_is_refused_holds_up_no_other(
    small: tuple[Store, SavedPlan], server: Server, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, saved = small
    monkeypatch.setattr(sync, "BATCH", 2)
    refused = [stage.key for stage in saved.plan.stages.values() if stage.kind != "data"][:2]  # a batch of their own
    with opened() as (mirror, lease):
        server.refused_runs.update(f"{key}-1" for key in refused)
        progress = mirror.run_pass(lease)
        assert progress.missing.keys() == server.refused_runs
        assert progress.sent == len(server.runs) == 10
        server.refused_runs.clear()
        assert mirror.run_pass(lease).complete
    assert_mirrors(server, store)


def test_at_most_so_many_trainings_are_shown_live(
    tmp_path: Path, server: Server, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "LIVE_RUNS", 3)
    store, saved = small_store(tmp_path)
    for cell in saved.cells:  # all of them under way: their results are not there yet, and somebody holds them
        path = store.path("train", cell.key)
        (path / "result-0001.json").rename(path / "later.json")
        assert take(Folder.listed(path), 1, Owner.me(lease=600)) is not None
    forget_index(store)
    with opened() as (mirror, lease):
        assert not mirror.run_pass(lease).missing
        assert not trained(server), "one pass of a command shows what has ended"
        mirror.live = True
        progress = mirror.run_pass(lease)
        assert progress.unfinished == len(saved.cells)
        assert [run.state for run in trained(server)] == ["running"] * 3
        shown = trained(server)[0]
        path = store.path("train", shown.id.split("-")[0])
        (path / "later.json").rename(path / "result-0001.json")
        mirror.run_pass(lease)
        assert shown.state == "finished"
        mirror.run_pass(lease)
        assert len(trained(server)) == 4


def test_rows_that_were_shown_and_came_out_differently_make_a_rerun(
    tmp_path: Path, server: Server, opened: Open
) -> None:
    store, saved = small_store(tmp_path, seeds=1)
    key = saved.cells[0].key
    path, result = store.path("train", key), store.folder("train", key).result()
    assert result is not None
    lines = (path / "attempt-0001" / "metrics.jsonl").read_text().splitlines()
    rows = list(rows_of_attempt(store.folder("train", key), 1))
    (path / "result-0001.json").unlink()
    forget_index(store)
    assert take(Folder.listed(path), 1, Owner.me(lease=600)) is not None
    (path / "attempt-0002").mkdir(exist_ok=True)
    name, data = pack(20, Position(rows=rows[:10]), {}, {})
    (path / "attempt-0001" / name).write_bytes(data)
    with opened() as (mirror, lease):
        mirror.live = True
        mirror.run_pass(lease)
        server.until(lambda: len(run_of(server, f"{key}-1").lines) == 10)
        (path / "attempt-0001" / name).unlink()  # it is damaged: the next attempt goes on from an earlier one
        name, data = pack(20, Position(rows=rows[:8]), {}, {})
        (path / "attempt-0002" / name).write_bytes(data)
        other = [json.dumps({**row, "train_loss": 7.5}) for row in rows[8:]]
        (path / "attempt-0002" / "metrics.jsonl").write_text("\n".join([*lines[:8], *other]) + "\n")
        mirror.run_pass(lease)
        mirror.process.close()
        mirror.run_pass(lease)
    with opened() as (mirror, lease):
        mirror.live = True
        mirror.run_pass(lease)
        assert len(run_of(server, f"{key}-1").lines) == 10
        made = replace(result, provenance={**result.provenance, "generation": 2})
        (path / "result-0001.json").write_bytes(made.dump())
        assert mirror.run_pass(lease).complete
    assert_mirrors(server, store, superseded=1)
    assert [row["train_loss"] for row in run_of(server, f"{key}-1-1").history][8:] == [7.5] * 4


def test_a_child_that_hangs_or_dies_is_replaced(server: Server, opened: Open, small: tuple[Store, SavedPlan]) -> None:
    with opened() as (mirror, lease):
        mirror.process.timeout = 0.5
        server.fault = "hang"
        assert "no answer in" in mirror.run_pass(lease).fault
        server.fault = None
        mirror.process.timeout = 60
        list(mirror.process.call("identify", entity=None))
        assert mirror.process.process is not None
        mirror.process.process.kill()
        assert "ended" in mirror.run_pass(lease).fault
        assert mirror.run_pass(lease).complete
    assert_mirrors(server, small[0])


def test_a_child_writes_so_many_runs_and_no_more(
    server: Server, opened: Open, small: tuple[Store, SavedPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "RUNS_PER_CHILD", 4)
    monkeypatch.setattr(sync, "BATCH", 3)
    children = set()
    with opened() as (mirror, lease):
        mirror.on_progress = lambda progress: children.add(getattr(mirror.process.process, "pid", None))
        assert mirror.run_pass(lease).complete
    assert len(children) > 1
    assert_mirrors(server, small[0])


def test_a_second_mirror_is_refused_or_waits(server: Server, opened: Open, small: tuple[Store, SavedPlan]) -> None:
    with opened() as (mirror, _):
        stopped = threading.Event()
        stopped.set()
        with (
            pytest.raises(
                UserError, match=rf"process {os.getpid()} on .* sends the runs of this store to lab/mine already"
            ),
            leased(mirror, stopped),
        ):
            raise AssertionError


def test_an_operation_that_fails_says_why(server: Server, opened: Open, small: tuple[Store, SavedPlan]) -> None:
    process = WandbProcess()
    try:
        with pytest.raises(WandbUnavailable, match=r"Error: .*lab/mine/none"):
            list(process.call("read_rows", project="lab/mine", run="none"))
    finally:
        process.close()


def test_back_off_grows_to_an_end() -> None:
    assert [back_off(n) for n in range(5)] == [0.0, 2.0, 4.0, 8.0, 16.0]
    assert back_off(1000) == sync.LONGEST_BACK_OFF
