"""Weights & Biases: a server that is gone, slow or refuses, a clerk that is killed, a full disk below it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.store import Store
from tests.chaos.conftest import FULL, Record, amount
from tests.conftest import descendants, kill_tree, results, until
from tests.harness.synthetic import write_store
from tests.track.mirrored import assert_mirrors, left_over, pages_of, rows_of, surroundings, wandb
from tests.track.server import FAULTS, Server
from tests.track.test_publish import done, small
from tests.track.test_storms import MANY, start_sweep

AREA = "Weights & Biases"
pytestmark = pytest.mark.chaos

SAID = {
    "dead": "it does not answer",
    "hang": "it takes requests and never answers",
    "slow": "it takes 10 s for every answer",
    "drop": "it closes every connection",
    "lost": "it takes what is sent, and its answers are lost",
}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def compare(server: Server, store: Store) -> tuple[int, int]:
    """Return how many runs a server lacks, and of how many it has other rows than the store."""
    remote = {run.id: run for run in server.runs.values()}
    pages = pages_of(store)
    there = {name: page for name, page in pages.items() if name in remote}
    return len(pages) - len(there), sum(rows_of(remote[n]) != [dict(r) for r in p.rows] for n, p in there.items())


@pytest.mark.parametrize("fault", amount(["401"], [*FAULTS]))
def test_a_sweep_ends_whatever_its_server_does(fault: str, tmp_path: Path, server: Server, record: Record) -> None:
    store, server.delay = Store(tmp_path / "runs"), 10.0
    server.fault = None if FULL else fault  # in full, once it has taken some runs
    sweep = start_sweep(tmp_path, server)
    try:
        if FULL:
            server.until(lambda: server.runs, 120)
            server.fault = fault
        _, said = sweep.communicate(timeout=600)
        met, finished = server.faulted, len(results(store.root))
        assert sweep.returncode == 0, said
        server.fault = None
        until(lambda: not left_over(tmp_path), 600, every=0.1)
    finally:
        kill_tree(sweep.pid)
        sweep.communicate()
    sent = wandb(tmp_path, server.url, "sync")
    missing, other = compare(server, store)
    found = "the sweep ends, its results in the store; what was not sent is sent by `harness wandb sync`"
    fault_said = SAID.get(fault, f"it answers every request with {fault}")
    record.note(f"the server: {fault_said}", max(1, met), found, lost=7 - finished + missing, wrong=other)
    assert (finished, missing, other) == (7, 0, 0), said
    assert "Traceback" not in said
    assert sent.returncode == 0, sent.stderr
    assert_mirrors(server, store)


def clerks(pid: int, word: bytes) -> list[int]:
    """Return the processes below one whose command has a word in it."""
    found = []
    for below in descendants(pid)[1:]:
        try:
            if word in Path(f"/proc/{below}/cmdline").read_bytes():
                found.append(below)
        except OSError:
            continue
    return found


@pytest.mark.long
@pytest.mark.parametrize("word", amount([b"harness.track.clerk"], [b"harness.track.clerk", b"wandb-core"]))
def test_a_killed_clerk_is_replaced(word: bytes, tmp_path: Path, server: Server, record: Record) -> None:
    kills, draw, killed = amount(2, 10), random.Random(11), 0
    if FULL:
        (tmp_path / "many.yaml").write_text(MANY)
        store, _ = write_store(tmp_path, tmp_path / "many.yaml", done())
    else:
        store, _ = small(tmp_path)
    argv = [sys.executable, "-m", "harness.cli", "wandb", "publish"]
    environment = surroundings(tmp_path, server.url)
    while killed < kills:
        process = subprocess.Popen(
            argv, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            while process.poll() is None and killed < kills:
                wanted = server.requests.total() + draw.randrange(2, amount(20, 120))
                until(lambda p=process, w=wanted: p.poll() is not None or server.requests.total() >= w, 300)
                for pid in clerks(process.pid, word)[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            said = process.communicate(timeout=600)[1]
        finally:
            kill_tree(process.pid)
            process.communicate()
        assert "Traceback" not in said
        if process.returncode == 0:
            break
    last = wandb(tmp_path, server.url, "publish")
    missing, other = compare(server, store)
    what = "wandb's own process" if word == b"wandb-core" else "the publisher's process with wandb in it"
    found = "another takes its place; every row is there once"
    record.note(f"SIGKILL to {what}", killed, found, lost=missing, wrong=other)
    assert killed > 0
    assert (missing, other) == (0, 0)
    assert last.returncode == 0, last.stderr
    assert_mirrors(server, store)
    until(lambda: not left_over(tmp_path), 60, every=0.1)


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own, of so many MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    words = ["-t", "tmpfs", "-o", f"size={request.param}m", "tmpfs", place]
    if not mount or not umount or subprocess.run([mount, *words], capture_output=True).returncode:
        pytest.skip("needs the right to mount file systems (root)")
    yield place
    subprocess.run([umount, "--lazy", place], check=True)


def fill(disk: Path) -> None:
    """Take all the space there is, whoever else takes some meanwhile."""
    with (disk / "full").open("wb", buffering=0) as file:
        for size in (2**20, 2**12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


@pytest.mark.long
@pytest.mark.skipif(not FULL, reason="part of the full form")
@pytest.mark.parametrize("disk", [32], indirect=True)
def test_where_nothing_at_all_can_be_written_another_folder_is_taken(
    tmp_path: Path, disk: Path, server: Server, record: Record
) -> None:
    store, _ = small(tmp_path)
    fill(disk)
    said = wandb(tmp_path, server.url, "publish", TMPDIR=str(disk))
    missing, other = compare(server, store)
    fault = "the disk is full where wandb keeps what is not sent, to the last byte"
    record.note(fault, 1, "Python takes another folder for temporary files; all is sent", lost=missing, wrong=other)
    assert (missing, other, said.returncode) == (0, 0, 0), said.stderr
    assert_mirrors(server, store)


@pytest.mark.parametrize("disk", [32], indirect=True)
def test_too_little_space_is_seen_before_anything_is_sent(
    tmp_path: Path, disk: Path, server: Server, record: Record
) -> None:
    store, _ = small(tmp_path)
    said = wandb(tmp_path, server.url, "publish", TMPDIR=str(disk))
    assert "Traceback" not in said.stderr
    assert "space" in said.stderr, said.stderr
    assert said.returncode == 1
    assert not server.runs
    last = wandb(tmp_path, server.url, "publish")
    missing, other = compare(server, store)
    record.note(
        "little space is left where wandb keeps what is not sent",
        1,
        "the publisher says so and sends nothing; the next one sends all",
        lost=missing,
        wrong=other,
    )
    assert (missing, other, last.returncode) == (0, 0, 0), last.stderr
    assert_mirrors(server, store)


@pytest.mark.skipif(not FULL, reason="part of the full form")
@pytest.mark.parametrize("disk", [640], indirect=True)
def test_a_disk_that_fills_up_on_the_way_costs_no_row(
    tmp_path: Path, disk: Path, server: Server, record: Record
) -> None:
    (tmp_path / "many.yaml").write_text(MANY)
    store, _ = write_store(tmp_path, tmp_path / "many.yaml", done())
    server.faults_on = {"file_stream"}
    server.fault = "hang"
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "wandb", "publish"],
        cwd=tmp_path,
        env=surroundings(tmp_path, server.url, TMPDIR=str(disk)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        server.until(lambda: len(server.runs) > 3, 120)
        fill(disk)
        server.fault = None
        said = process.communicate(timeout=900)[1]
    finally:
        kill_tree(process.pid)
        process.communicate()
    assert "Traceback" not in said
    last = wandb(tmp_path, server.url, "publish")
    missing, other = compare(server, store)
    found = "what wandb has dropped is missed on the server, and sent again"
    record.note("the disk fills up while runs are sent", 1, found, lost=missing, wrong=other)
    assert (missing, other, last.returncode) == (0, 0, 0), last.stderr
    assert_mirrors(server, store)
