"""`harness wandb` and the mirror beside a sweep, as people use them: real commands, real trainings, the fake server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.store import Store
from tests.conftest import descendants, kill_tree, results, until, write_project
from tests.harness.synthetic import SWEEP, write_fixture_store
from tests.tracking.mirrored import (
    ROOT,
    WANDB,
    assert_mirrors,
    processes_of,
    small_store,
    start_wandb,
    surroundings,
    wandb,
)
from tests.tracking.server import KEY, Server


def test_a_store_is_sent_and_its_status_told(tmp_path: Path, server: Server) -> None:
    store, _ = small_store(tmp_path)
    before = wandb(tmp_path, server.url, "status", "small")
    assert before.returncode == 1
    assert before.stdout.startswith("mine: 0 of 12 finished runs there\n  12 not on the server:")
    said = wandb(tmp_path, server.url, "sync", "small")
    assert said.returncode == 0, said.stderr
    assert f"wandb: mirrored to {server.url}/lab/mine\nwandb: lab/mine has 12 of 12 runs\n" in said.stderr
    assert_mirrors(server, store)
    after = wandb(tmp_path, server.url, "status", "--json")
    assert after.returncode == 0
    assert json.loads(after.stdout)["mine"] | {"last_message": ""} == {
        "sent": 12,
        "unfinished": 0,
        "missing": {},
        "last_message": "",
    }


@pytest.mark.slow
def test_a_store_with_holes_and_failures_is_mirrored_whole(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.harness.synthetic.SWEEP", SWEEP + WANDB)
    store, _ = write_fixture_store(tmp_path)
    said = wandb(tmp_path, server.url, "sync", "synthetic")
    assert said.returncode == 0, said.stderr
    assert {record.state for record in assert_mirrors(server, store).values()} == {"finished", "failed"}


@pytest.mark.parametrize(
    ("block", "more", "said"),
    [
        (WANDB, {"WANDB_API_KEY": ""}, "no API key is there; `wandb login` asks for one"),
        (WANDB, {"WANDB_API_KEY": "local-" + "1" * 40}, "Failed to verify credentials"),
        (WANDB, {"WANDB_BASE_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer"),
        (WANDB, {"WANDB_MODE": "offline"}, "nothing can be sent: WANDB_MODE=offline is set"),
        ("wandb: {project: mine, mode: disabled}\n", {}, "no sweep of "),
    ],
)
def test_what_keeps_it_from_sending_is_said(
    block: str, more: dict[str, str], said: str, tmp_path: Path, server: Server
) -> None:
    small_store(tmp_path, seeds=1, wandb=block)
    answer = wandb(tmp_path, server.url, "sync", **more)
    assert answer.returncode == 2
    assert said in answer.stderr
    assert not server.runs


def start_sweep(folder: Path, server: Server, *options: str, **more: str) -> subprocess.Popen[str]:
    """Start the tiny sweep's random masks, six runs, mirrored to a server."""
    write_project(folder)
    with (folder / "tiny.yaml").open("a") as file:
        file.write(WANDB)
    return subprocess.Popen(
        [sys.executable, "-m", "harness.sweep", "tiny.yaml", "--only", "mask=random", *options],
        cwd=folder,
        env=surroundings(folder, server.url, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def child_of(sweep: subprocess.Popen[str]) -> int:
    """Return the process with wandb beside a sweep command, 0 where there is none now."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(sweep.pid)}
    return next((pid for pid, command in commands.items() if b"harness.tracking.wandb_process" in command), 0)


@pytest.mark.slow
def test_a_sweep_is_mirrored_while_it_trains_though_its_child_is_killed(tmp_path: Path, server: Server) -> None:
    sweep = start_sweep(tmp_path, server, "--checkpoint-every", "0")
    try:
        server.until(lambda: any(run.state == "running" for run in server.runs.values()), 120)
        assert not results(tmp_path / "runs").get("train"), "seen before it has ended"
        os.kill(until(lambda: child_of(sweep)), signal.SIGKILL)
        _, said = sweep.communicate(timeout=300)
        assert sweep.returncode == 0, said
        assert "Traceback" not in said
        assert "the process with wandb ended; trainings go on" in said
        assert "wandb: lab/mine has 6 of 6 runs" in said
        store = Store(tmp_path / "runs")
        assert_mirrors(server, store)
        for path in store.root.rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
        until(lambda: not processes_of(tmp_path), 30, every=0.1)
    finally:
        kill_tree(sweep.pid)
        sweep.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", *(pytest.param(fault, marks=pytest.mark.long) for fault in ("429", "dead"))])
def test_a_failing_server_holds_up_no_training_and_gets_everything_later(
    fault: str, tmp_path: Path, server: Server
) -> None:
    sweep = start_sweep(tmp_path, server)
    try:
        server.until(lambda: server.runs, 120)
        server.fault = fault
        until(lambda: len(results(tmp_path / "runs")) == 7, 120, every=0.1)
        _, said = sweep.communicate(timeout=300)
        assert sweep.returncode == 0, said
        assert "Traceback" not in said
        assert "`harness wandb sync tiny` sends what is missing later" in said
        until(lambda: not processes_of(tmp_path), 30, every=0.1)
        server.fault = None
        assert wandb(tmp_path, server.url, "sync").returncode == 0
        assert_mirrors(server, Store(tmp_path / "runs"))
    finally:
        kill_tree(sweep.pid)
        sweep.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said", "ends"),
    [
        ({"WANDB_MODE": "offline"}, "wandb: nothing is sent, WANDB_MODE=offline is set; ", "sends it later"),
        (
            {"WANDB_API_KEY": ""},
            "wandb: nothing is mirrored: no API key is there; `wandb login` asks for one; ",
            "sends what is missing later",
        ),
    ],
)
def test_without_a_server_a_sweep_says_so_in_one_line(
    more: dict[str, str], said: str, ends: str, tmp_path: Path, server: Server
) -> None:
    sweep = start_sweep(tmp_path, server, "--limit", "1", **more)
    _, text = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, text
    lines = [line for line in text.splitlines() if line.startswith("wandb:")]
    assert lines == [f"{said}`harness wandb sync tiny` {ends}"]
    assert not (tmp_path / "runs" / "wandb").exists()


def test_a_cluster_is_told_how_to_mirror_and_no_key(tmp_path: Path, server: Server) -> None:
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


# Faults, kills, a full disk: thirty stages


def _thirty(folder: Path, server: Server) -> tuple[Store, subprocess.Popen[str]]:
    store, saved = small_store(folder, seeds=5)
    assert sum(stage.kind != "data" for stage in saved.plan.stages.values()) == 30
    return store, start_wandb(folder, server.url, "sync")


def _everything_comes(folder: Path, server: Server, store: Store, process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=300)
    assert "Traceback" not in said
    if process.returncode:
        assert process.returncode in (1, 2), said
        again = wandb(folder, server.url, "sync")
        assert again.returncode == 0, again.stderr
    assert len(assert_mirrors(server, store)) == 30
    until(lambda: not processes_of(folder), 30, every=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["401", "429", "500", "slow", "hang", "drop", "lost", "dead"])
def test_a_fault_in_the_midst_loses_nothing(fault: str, tmp_path: Path, server: Server) -> None:
    store, process = _thirty(tmp_path, server)
    server.until(lambda: len(server.runs) >= 5)
    server.fault = fault
    if fault != "dead":
        server.until(lambda: server.faulted >= 5)
    server.fault = None
    _everything_comes(tmp_path, server, store, process)


@pytest.mark.slow
def test_a_server_that_forgets_is_told_again(tmp_path: Path, server: Server) -> None:
    store, process = _thirty(tmp_path, server)
    server.until(lambda: len(server.runs) >= 20)
    server.forget()
    process.communicate(timeout=300)
    assert wandb(tmp_path, server.url, "sync").returncode == 0
    assert len(assert_mirrors(server, store)) == 30


@pytest.mark.slow
@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.long)])
def test_a_mirror_killed_again_and_again_leaves_every_row_once(kills: int, tmp_path: Path, server: Server) -> None:
    seeds = 5 if kills == 5 else 20
    store, _ = small_store(tmp_path, seeds=seeds, epochs=60)
    for kill in range(kills):
        process = start_wandb(tmp_path, server.url, "sync")
        wanted = server.requests.total() + 3 + (kill * 37) % 90  # from the first questions to the midst of a batch
        until(lambda p=process, w=wanted: p.poll() is not None or server.requests.total() >= w, 180)
        assert process.poll() is None, "it was done before it could be killed often enough"
        victims = [process.pid, *descendants(process.pid)]
        os.kill(victims[kill % 2], signal.SIGKILL)  # the mirror, or its child
        process.communicate(timeout=300)
    said = wandb(tmp_path, server.url, "sync")
    assert said.returncode == 0, said.stderr
    assert len(assert_mirrors(server, store)) == 6 * seeds
    until(lambda: not processes_of(tmp_path), 30, every=0.1)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_loses_nothing(tmp_path: Path, server: Server) -> None:
    store, _ = small_store(tmp_path, seeds=5)
    full = tmp_path / "full"
    full.mkdir()
    if subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=256k", "none", full], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (full / "fill").write_bytes(b"x" * 200_000)
        said = wandb(tmp_path, server.url, "sync", TMPDIR=str(full))
        assert "No space left on device" in said.stderr
    finally:
        subprocess.run(["/bin/umount", "--lazy", full], check=True)
    assert wandb(tmp_path, server.url, "sync").returncode == 0
    assert len(assert_mirrors(server, store)) == 30
