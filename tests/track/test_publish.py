"""The mirror as people use it: the real wandb client and the real command, against the fake server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.planfile import SavedPlan
from harness.store import Artifact, Result, Store, forget_index
from harness.track.ledger import Entry, Ledger
from tests.conftest import kill_tree, until, write_project
from tests.harness.synthetic import SWEEP, write_fixture_store, write_store
from tests.track.mirrored import ROOT, WANDB, assert_mirrors, left_over, surroundings, wandb
from tests.track.server import KEY, Server

SMALL = """
name: small
protocol: {preset: quick, epochs: 12}
grid:
  dataset: digits
  arch: resnet20
  mask: [random, snip]
  sparsity: 90%
  recipe: [default, ls]
  seed: 0..1
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server
    assert server.unknown == []


def done(value: str = "90.5") -> Callable[..., dict[str, str]]:
    return lambda place: {"state": "done", "test": value, "dev": value, "cause": ""}


def small(folder: Path, more: str = WANDB) -> tuple[Store, SavedPlan]:
    (folder / "small.yaml").write_text(SMALL + more)
    return write_store(folder, folder / "small.yaml", done())


@pytest.mark.slow
def test_the_store_is_mirrored_whole_with_holes_and_failures(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.harness.synthetic.SWEEP", SWEEP + WANDB)
    store, _ = write_fixture_store(tmp_path)
    said = wandb(tmp_path, server.url, "publish", "synthetic")
    assert said.returncode == 0, said.stderr
    pages = assert_mirrors(server, store)
    assert {page.state for page in pages.values()} == {"finished", "failed"}
    assert f"{len(pages)} of {len(pages)} runs sent" in said.stderr
    assert_no_more_is_sent(tmp_path, server)


def entries(store: Store) -> dict[str, Entry]:
    """Return what the newest ledger of the only mirror says."""
    (path,) = (store.root / "wandb").glob("*/sent-*")
    number = int(path.stem.removeprefix("sent-"))
    copy = path.parent.parent / "copy"
    shutil.copytree(path.parent, copy)
    found = Ledger(copy, "sent", number + 1).entries
    shutil.rmtree(copy)
    return found


def assert_no_more_is_sent(folder: Path, server: Server) -> None:
    before = server.requests["UpsertBucket"]
    assert wandb(folder, server.url, "publish").returncode == 0
    assert server.requests["UpsertBucket"] == before


@pytest.mark.slow
def test_what_changes_is_sent_and_what_was_replaced_is_told_as_superseded(tmp_path: Path, server: Server) -> None:
    store, saved = small(tmp_path)
    assert wandb(tmp_path, server.url, "publish").returncode == 0
    cell = saved.cells[0]
    folder = store.folder("train", cell.key)
    old = folder.result()
    assert old is not None
    (folder.path / "claim-0002").write_bytes(b"")
    (folder.path / "attempt-0002").mkdir()
    row = {"epoch": 1, "train_loss": 9.0, "best": False}
    (folder.path / "attempt-0002" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    told = {**old.provenance, "generation": 2}
    new = Result(2, Artifact("f" * 64, 3), old.parents, {**old.metrics, "test@last": 91.0}, old.stamp, told)
    (folder.path / "result-0002.json").write_bytes(new.dump())
    forget_index(store)
    assert wandb(tmp_path, server.url, "publish").returncode == 0
    pages = assert_mirrors(server, store)
    runs = {run.id: run for run in server.runs.values() if run.id.startswith(cell.key)}
    assert set(runs) == {f"{cell.key}-1", f"{cell.key}-2"}
    assert "superseded" in runs[f"{cell.key}-1"].tags
    assert "superseded" not in runs[f"{cell.key}-2"].tags
    assert pages[f"{cell.key}-2"].summary["accuracy"] == 91.0


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("verb", ["publish", "sync"])
def test_whoever_sends_the_new_run_tags_the_old_one(verb: str, tmp_path: Path, server: Server) -> None:
    store, saved = small(tmp_path)
    assert wandb(tmp_path, server.url, "publish").returncode == 0
    folder = store.folder("train", saved.cells[0].key)
    made = folder.result()
    assert made is not None
    shutil.rmtree(folder.path)
    for number in (1, 2):
        (folder.path / f"attempt-{number:04d}").mkdir(parents=True)
        (folder.path / f"claim-{number:04d}").write_bytes(b"")
    (folder.path / "attempt-0001" / "end.json").write_text('{"outcome": "stopped", "released": true}')
    rows = [{"epoch": 1, "train_loss": 9.0, "best": False}]
    (folder.path / "attempt-0002" / "metrics.jsonl").write_text(json.dumps(rows[0]) + "\n")
    told = {**made.provenance, "generation": 2}
    new = Result(1, Artifact("f" * 64, 3), made.parents, made.metrics, made.stamp, told)
    (folder.path / "result-0001.json").write_bytes(new.dump())
    forget_index(store)
    assert wandb(tmp_path, server.url, verb).returncode == 0
    assert_mirrors(server, store, superseded=1)


@pytest.mark.long
@pytest.mark.slow
def test_a_stage_behind_a_failure_is_not_waited_for(tmp_path: Path, server: Server) -> None:
    (tmp_path / "small.yaml").write_text(SMALL + WANDB)
    broken = "mask digits resnet20 snip 90% ticket seed 0"
    store, saved = write_store(tmp_path, tmp_path / "small.yaml", done(), broken)
    said = wandb(tmp_path, server.url, "publish", "--follow")
    assert said.returncode == 0, said.stderr
    assert_mirrors(server, store)
    held = [cell.key for cell in saved.cells if not store.folder("train", cell.key).generation]
    assert held


@pytest.mark.long
@pytest.mark.slow
def test_artifacts_that_were_left_out_come_once_they_are_wanted(tmp_path: Path, server: Server) -> None:
    small(tmp_path, "wandb: {project: mine, artifacts: none}\n")
    assert wandb(tmp_path, server.url, "publish").returncode == 0
    assert not server.artifacts
    store, _ = small(tmp_path)
    said = wandb(tmp_path, server.url, "publish")
    assert said.returncode == 0, said.stderr
    assert server.artifacts
    assert_mirrors(server, store)


@pytest.mark.slow
def test_a_lost_ledger_costs_a_look_and_no_row(tmp_path: Path, server: Server) -> None:
    store, _ = small(tmp_path)
    assert wandb(tmp_path, server.url, "publish").returncode == 0
    (mirror,) = (store.root / "wandb").iterdir()
    for path in mirror.glob("sent-*"):
        path.unlink()
    assert_no_more_is_sent(tmp_path, server)
    assert_mirrors(server, store)


@pytest.mark.long
@pytest.mark.slow
def test_another_sweep_of_the_same_cells_adds_its_name_to_their_runs(tmp_path: Path, server: Server) -> None:
    store, saved = small(tmp_path)
    assert wandb(tmp_path, server.url, "publish").returncode == 0
    other = (tmp_path / "small.yaml").read_text().replace("name: small", "name: also")
    (tmp_path / "also.yaml").write_text(other)
    write_store(tmp_path, tmp_path / "also.yaml", done())
    assert wandb(tmp_path, server.url, "publish", "also").returncode == 0
    assert_mirrors(server, store)
    (run,) = [run for run in server.runs.values() if run.id == f"{saved.cells[0].key}-1"]
    assert {"small", "also"} <= set(run.tags)
    assert run.config["sweeps"] == ["also", "small"]


def test_masks_are_references_with_lineage_and_copies_only_if_asked_for(tmp_path: Path, server: Server) -> None:
    store, saved = small(tmp_path)
    assert wandb(tmp_path, server.url, "publish").returncode == 0
    masks = [stage for stage in saved.plan.stages.values() if stage.kind == "mask"]
    versions = {versions[-1].name: versions[-1] for versions in server.artifacts.values()}
    assert set(versions) == {f"mask-{stage.key[:16]}" for stage in masks}
    for stage in masks:
        version = versions[f"mask-{stage.key[:16]}"]
        result = store.folder("mask", stage.key).result()
        assert result is not None
        (entry,) = version.entries.values()
        assert entry["ref"] == (store.path("mask", stage.key) / result.artifact.file).as_uri()
        assert version.metadata["sha256"] == result.artifact.sha256
        assert [run for _, _, run in version.logged_by] == [f"{stage.key}-1"]
        users = {f"{cell.key}-1" for cell in saved.cells if stage.key in saved.plan.stages[cell.key].parents.values()}
        assert {run for _, _, run in version.used_by} == users
    assert not any(name.endswith(".safetensors") for name in server.blobs)


@pytest.mark.long
@pytest.mark.slow
def test_masks_are_uploaded_where_that_is_asked_for(tmp_path: Path, server: Server) -> None:
    small(tmp_path, "wandb: {project: mine, artifacts: upload}\n")
    assert wandb(tmp_path, server.url, "publish").returncode == 0
    assert any(name.endswith(".safetensors") for name in server.blobs)


@pytest.mark.long
@pytest.mark.slow
def test_a_project_is_cut_where_the_file_says_so(tmp_path: Path, server: Server) -> None:
    store, _ = small(tmp_path, "wandb: {project: mine, shard_by: [dataset, arch]}\n")
    assert wandb(tmp_path, server.url, "publish").returncode == 0
    assert {project for _, project, _ in server.runs} == {"mine-digits-resnet20"}
    assert_mirrors(server, store)


@pytest.mark.slow
def test_what_is_wrong_on_the_server_is_found_and_put_right(tmp_path: Path, server: Server) -> None:
    store, _ = small(tmp_path)
    assert wandb(tmp_path, server.url, "publish").returncode == 0
    trained = [run for run in server.runs.values() if run.job_type == "train"]
    del server.runs[trained[0].key]
    trained[1].lines.popitem()
    trained[2].summary["page"] = "other"
    trained[3].tags.append("odd")
    first = min(trained[4].lines)
    trained[4].lines[first] = trained[4].lines[first].replace('"epoch":1', '"epoch":7')
    before = entries(store)
    dry = wandb(tmp_path, server.url, "reconcile", "--dry")
    assert dry.returncode == 1
    assert "1 missing on the server" in dry.stdout
    assert "3 incomplete there" in dry.stdout
    assert "1 with other rows there" in dry.stdout
    (found,) = json.loads(wandb(tmp_path, server.url, "reconcile", "--dry", "--json").stdout).values()
    assert set(found) == {"same", "missing", "short", "spoilt", "stages", "strangers"}
    assert [len(found[name]) for name in ("missing", "short", "spoilt")] == [1, 3, 1]
    assert not list((store.root / "wandb").glob("*/turns.json")), "it only looked"
    assert entries(store) == before
    mended = wandb(tmp_path, server.url, "reconcile")
    assert mended.returncode == 0, mended.stderr
    assert_mirrors(server, store, superseded=1)
    assert "superseded" in trained[4].tags
    again = wandb(tmp_path, server.url, "reconcile")
    assert again.returncode == 0
    assert again.stdout.endswith(" 0 not\n")


@pytest.mark.slow
def test_without_a_server_runs_are_kept_for_browsing_and_sent_later(tmp_path: Path, server: Server) -> None:
    store, saved = small(tmp_path)
    server.fault = "dead"
    kept = wandb(tmp_path, server.url, "publish")
    assert kept.returncode == 1, "nothing was sent, and that was not asked for"
    assert "does not answer" in kept.stderr
    assert "`harness wandb sync small` sends it later" in kept.stderr
    folders = sorted((store.root / "wandb" / "offline--mine" / "offline" / "wandb").glob("offline-run-*"))
    assert len(folders) == sum(stage.kind != "data" for stage in saved.plan.stages.values())
    (file,) = next(path for path in folders if f"{saved.cells[0].key}-1" in path.name).glob("*.wandb")
    seen = subprocess.run(
        [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", file],
        env=surroundings(tmp_path, server.url),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert seen.returncode == 0, seen.stderr
    assert "dev_accuracy" in seen.stdout
    refused = wandb(tmp_path, server.url, "sync")
    assert refused.returncode == 2
    assert "nothing can be sent now" in refused.stderr
    server.fault = None
    sent = wandb(tmp_path, server.url, "sync", "small")
    assert sent.returncode == 0, sent.stderr
    assert_mirrors(server, store)
    left = (store.root / "wandb" / "offline--mine" / "offline" / "wandb").glob("offline-run-*")
    assert not list(left), "`wandb sync` of them would double every row"


@pytest.mark.slow
def test_without_a_key_it_says_so_and_goes_offline(tmp_path: Path, server: Server) -> None:
    small(tmp_path)
    said = wandb(tmp_path, server.url, "publish", WANDB_API_KEY="")
    assert said.returncode == 1, "nothing was sent, and that was not asked for"
    assert "no API key is there" in said.stderr
    assert not server.runs


def test_where_online_is_demanded_and_impossible_that_is_an_error_with_a_way_out(
    tmp_path: Path, server: Server
) -> None:
    small(tmp_path, "wandb: {project: mine, mode: online}\n")
    said = wandb(tmp_path, server.url, "publish", WANDB_API_KEY="local-" + "1" * 40)
    assert said.returncode == 2
    assert "wandb: mode is online, but" in said.stderr
    assert "harness wandb sync small" in said.stderr
    assert "Traceback" not in said.stderr


def test_nothing_is_mirrored_where_that_is_disabled(tmp_path: Path, server: Server) -> None:
    store, _ = small(tmp_path, "wandb: {project: mine, mode: disabled}\n")
    said = wandb(tmp_path, server.url, "publish")
    assert said.returncode == 2
    assert "no sweep of" in said.stderr
    assert not (store.root / "wandb").exists()


@pytest.mark.slow
def test_a_second_publisher_of_a_store_is_refused(tmp_path: Path, server: Server) -> None:
    small(tmp_path)
    server.fault = "hang"
    server.faults_on = {"file_stream"}
    argv = [sys.executable, "-m", "harness.cli", "wandb", "publish"]
    first = subprocess.Popen(
        argv, cwd=tmp_path, env=surroundings(tmp_path, server.url), stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        server.until(lambda: server.faulted)
        second = wandb(tmp_path, server.url, "publish")
        assert second.returncode == 2
        assert f"process {first.pid} on" in second.stderr
        assert "publishes this store to this project already" in second.stderr
    finally:
        os.kill(first.pid, signal.SIGINT)
        kill_tree(first.pid)
        first.wait()


@pytest.mark.slow
def test_a_sweep_is_mirrored_while_it_trains_and_its_key_is_nowhere(tmp_path: Path, server: Server) -> None:
    write_project(tmp_path)
    with (tmp_path / "tiny.yaml").open("a") as file:
        file.write(WANDB)
    planned = subprocess.run(
        [sys.executable, "-m", "harness.sweep", "tiny.yaml", "--plan", "--via", str(ROOT / "slurm" / "a100.yaml")],
        cwd=tmp_path,
        env=surroundings(tmp_path, server.url),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "#SBATCH" in planned.stdout, planned.stderr
    assert KEY not in planned.stdout + planned.stderr
    said = subprocess.run(
        [sys.executable, "-m", "harness.sweep", "tiny.yaml", "--checkpoint-every", "0"],
        cwd=tmp_path,
        env=surroundings(tmp_path, server.url),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert said.returncode == 0, said.stderr
    assert f"wandb: mirrored to {server.url}/lab/mine" in said.stderr
    assert "26 of 26 runs sent" in said.stderr
    store = Store(tmp_path / "runs")
    assert_mirrors(server, store)
    for path in [*store.root.rglob("*"), *tmp_path.glob("*.yaml")]:
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    shutil.rmtree(store.root / "wandb")
    until(lambda: not left_over(tmp_path), 30, every=0.1)
