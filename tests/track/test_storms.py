"""The mirror under fire: a publisher killed again and again, a server that fails in every way during a sweep."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.store import Store
from tests.conftest import descendants, kill_tree, results, send, until, write_project
from tests.harness.synthetic import write_store
from tests.track.mirrored import WANDB, assert_mirrors, left_over, surroundings, wandb
from tests.track.server import Server

pytestmark = pytest.mark.slow

MANY = """
name: many
protocol: {preset: tost, epochs: 180}
grid:
  dataset: digits
  arch: resnet20
  mask: [random, snip]
  sparsity: 90%
  recipe: [default, ls]
  seed: 0..49
wandb: {project: mine}
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.long)])
def test_a_publisher_killed_again_and_again_leaves_every_row_once(kills: int, tmp_path: Path, server: Server) -> None:
    (tmp_path / "many.yaml").write_text(MANY)
    store, saved = write_store(
        tmp_path, tmp_path / "many.yaml", lambda place: {"state": "done", "test": "90", "dev": "90", "cause": ""}
    )
    assert len(saved.cells) == 200
    draw = random.Random(7)
    argv = [sys.executable, "-m", "harness.cli", "wandb", "publish"]
    killed = 0
    while killed < kills:
        process = subprocess.Popen(
            argv,
            cwd=tmp_path,
            env=surroundings(tmp_path, server.url),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wanted = server.requests.total() + draw.randrange(2, 240)
            until(lambda p=process, w=wanted: p.poll() is not None or server.requests.total() >= w, 180)
            if process.poll() is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        finally:
            kill = process.poll() is None
            process.wait() if not kill else (process.kill(), process.wait())
    assert killed == kills, "it was done before it could be killed often enough"
    said = wandb(tmp_path, server.url, "publish")
    assert said.returncode == 0, said.stderr
    assert_mirrors(server, store)
    until(lambda: not left_over(tmp_path), 60, every=0.1)


def start_sweep(folder: Path, server: Server) -> subprocess.Popen[str]:
    """Start the tiny sweep's random masks, mirrored to a server."""
    write_project(folder)
    with (folder / "tiny.yaml").open("a") as file:
        file.write(WANDB)
    return subprocess.Popen(
        [sys.executable, "-m", "harness.sweep", "tiny.yaml", "--only", "mask=random", "--checkpoint-every", "0"],
        cwd=folder,
        env=surroundings(folder, server.url),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def publisher_of(sweep: subprocess.Popen[str]) -> int:
    """Return the process that publishes beside a sweep command, 0 where there is none now."""
    for pid in descendants(sweep.pid):
        with contextlib.suppress(OSError):
            if b"\0--beside\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return 0


def test_a_publisher_that_is_killed_is_started_again(tmp_path: Path, server: Server) -> None:
    sweep = start_sweep(tmp_path, server)
    try:
        server.until(lambda: server.runs, 120)
        os.kill(until(lambda: publisher_of(sweep)), signal.SIGKILL)
        _, said = sweep.communicate(timeout=300)
        assert sweep.returncode == 0, said
        assert "wandb: the publisher was ended by SIGKILL; it is started again" in said
        assert "wandb: 6 of 6 runs sent" in said
        assert_mirrors(server, Store(tmp_path / "runs"))
    finally:
        kill_tree(sweep.pid)
        sweep.communicate()


def test_a_publisher_that_is_killed_every_time_is_given_up_and_what_is_missing_told(
    tmp_path: Path, server: Server
) -> None:
    sweep, killed = start_sweep(tmp_path, server), set[int]()
    try:
        while sweep.poll() is None:
            if pid := publisher_of(sweep):
                send([pid], signal.SIGKILL)
                killed.add(pid)
        _, said = sweep.communicate(timeout=300)
        assert sweep.returncode == 0, said
        assert len(results(tmp_path / "runs")) == 7
        assert len(killed) == 4
        assert "ended by SIGKILL 4 times and is not started again; trainings go on" in said
        assert "wandb: 0 of 6 runs sent; `harness wandb publish tiny` sends the rest" in said
        assert wandb(tmp_path, server.url, "publish", "tiny").returncode == 0
        assert_mirrors(server, Store(tmp_path / "runs"))
    finally:
        kill_tree(sweep.pid)
        sweep.communicate()


@pytest.mark.long
def test_a_publisher_that_hangs_is_not_waited_for_and_what_is_missing_told(tmp_path: Path, server: Server) -> None:
    sweep = start_sweep(tmp_path, server)
    try:
        server.until(lambda: any(run.state == "finished" for run in server.runs.values()), 120)
        os.kill(until(lambda: publisher_of(sweep)), signal.SIGSTOP)
        _, said = sweep.communicate(timeout=300)
        assert sweep.returncode == 0, said
        assert re.search(r"wandb: \d of 6 runs sent by now; the publisher is left to itself", said)
        assert "wandb: later, `harness wandb publish tiny` sends what is missing" in said
    finally:
        kill_tree(sweep.pid)
        send([int(pid) for pid in left_over(tmp_path)], signal.SIGKILL)
        sweep.communicate()


FAULTS = ["hang", *(pytest.param(fault, marks=pytest.mark.long) for fault in ("429", "dead"))]
"""Of the ten that the server has."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_server_holds_up_no_training_and_gets_everything_later(
    fault: str, tmp_path: Path, server: Server
) -> None:
    sweep, store = start_sweep(tmp_path, server), Store(tmp_path / "runs")
    try:
        server.until(lambda: server.runs, 120)
        server.fault = fault
        until(lambda: len(results(store.root)) == 7, 120, every=0.1)
        server.until(lambda: server.faulted or fault == "dead", 120)
        server.fault = None
        _, said = sweep.communicate(timeout=300)
        assert sweep.returncode == 0, said
        assert "Traceback" not in said
        until(lambda: not left_over(tmp_path), 300, every=0.2)
        assert_mirrors(server, store)
    finally:
        kill_tree(sweep.pid)
        sweep.communicate()


@pytest.mark.long
def test_a_publisher_that_the_command_leaves_behind_goes_on(tmp_path: Path, server: Server) -> None:
    sweep = start_sweep(tmp_path, server)
    try:
        server.until(lambda: server.runs, 120)
        server.fault = "hang"
        _, said = sweep.communicate(timeout=300)
        assert "the publisher is left to itself" in said
        assert left_over(tmp_path)
        server.fault = None
        until(lambda: not left_over(tmp_path), 300, every=0.2)
        assert_mirrors(server, Store(tmp_path / "runs"))
    finally:
        kill_tree(sweep.pid)
        sweep.communicate()


@pytest.mark.long
def test_a_server_that_counts_requests_gets_everything_in_its_time(tmp_path: Path, server: Server) -> None:
    (tmp_path / "many.yaml").write_text(MANY.replace("0..49", "0..1").replace("180", "12"))
    store, _ = write_store(
        tmp_path, tmp_path / "many.yaml", lambda place: {"state": "done", "test": "90", "dev": "90", "cause": ""}
    )
    server.rate = 240
    said = wandb(tmp_path, server.url, "sync")
    assert said.returncode == 0, said.stderr
    server.rate = None
    assert_mirrors(server, store)
