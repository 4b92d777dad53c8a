"""Ranks and their leader: whose fault a failed training is told to be, and processes that die or wait for ever."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.train import ranks
from harness.train.order import Order
from harness.train.ranks import Step, first_cause
from harness.trainer import Trainer, leader
from tests.conftest import until
from tests.harness.test_training import orders  # noqa: F401 - a fixture

PEER = {"outcome": "died", "peer": True, "message": "connection closed by peer"}
OWN = {"outcome": "failed", "cause": "oom", "message": "out of memory"}
KILLED = {"message": "ended by SIGKILL", "signal": "SIGKILL", "host": "n2"}


@pytest.mark.parametrize(
    ("told", "fallen", "rank", "message"),
    [
        ([PEER, PEER, OWN], {}, 2, "rank 2 of 3: out of memory"),
        ([PEER, None, PEER], {1: KILLED, 0: KILLED}, 1, "rank 1 of 3 on n2: ended by SIGKILL"),
        ([OWN | {"time": 2.0}, OWN | {"time": 1.0, "host": "n1"}], {2: KILLED}, 1, "rank 1 of 3 on n1: out of memory"),
        ([PEER], {2: KILLED, 1: KILLED}, 2, "rank 2 of 3 on n2: ended by SIGKILL"),
        ([PEER], {}, 0, "rank 0 of 3: connection closed by peer"),
    ],
)
def test_the_first_cause_is_told_not_its_consequences(
    tmp_path: Path, told: list[dict[str, Any] | None], fallen: dict[int, dict[str, Any]], rank: int, message: str
) -> None:
    for number, said in enumerate(told):
        if said:
            (tmp_path / f"rank-{number}.json").write_text(json.dumps(said))
    found = first_cause(tmp_path, 3, fallen)
    assert found
    assert (found["rank"], found["message"]) == (rank, message)


def test_where_no_rank_says_anything_there_is_no_cause(tmp_path: Path) -> None:
    assert first_cause(tmp_path, 2) is None


SRUN = """#!/bin/sh
echo "srun: error: Node failure on n3" >&2
printf 'a library \\377\\n'
{said}
exit 1
"""


@pytest.mark.parametrize(
    ("said", "fallen"),
    [
        ("srun: error: n2: tasks 2-3,5: Killed", dict.fromkeys((2, 3, 5), ("n2", "SIGKILL", "died"))),
        ("srun: error: n2: task 1: Segmentation fault (core dumped)", {1: ("n2", "SIGSEGV", "died")}),
        ("srun: error: n2: task 1: Out Of Memory", {1: ("n2", None, "failed")}),
        ("srun: error: n1: task 0: Exited with exit code 1", {0: ("n1", None, "died")}),
        ("srun: error: Unable to create step for job 7: Invalid job id specified", {}),
    ],
)
def test_what_srun_says_of_a_tasks_end_is_understood(
    said: str, fallen: dict[int, tuple[str, str | None, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "srun").write_text(SRUN.format(said=f'echo "{said}" >&2'))
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    step = Step({"threads": 1}, {}, 6, 3)
    assert list(step.words()) == []
    until(step.over)
    found = {rank: (end["host"], end.get("signal"), end.get("outcome", "died")) for rank, end in step.fallen.items()}
    assert found == fallen
    assert said in step.said
    assert step.complaints.closed


RANK = """
import json, sys
from harness.train.process import prepare_process
from harness.train.ranks import run_rank
from harness.train.watch import Desk

prepare_process()
told = []
end = run_rank(json.load(sys.stdin), Desk(told.append))
print(json.dumps({"outcome": end["outcome"], "told": len(told)}))
"""


def test_a_rank_runs_from_the_standard_variables_alone(orders: Callable[..., dict[str, Order]]) -> None:  # noqa: F811
    order = orders(", batch: 323")["train"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    running = []
    for rank in range(2):
        own = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        given = {**os.environ, **own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        pipe = subprocess.PIPE
        running.append(subprocess.Popen([sys.executable, "-c", RANK], stdin=pipe, stdout=pipe, env=given, text=True))
    for process in running:
        assert process.stdin
        process.stdin.write(json.dumps(vars(order)))
        process.stdin.close()
    said = []
    for process in running:
        with process:
            assert process.stdout
            said.append(json.loads(process.stdout.read()))
    assert [one["outcome"] for one in said] == ["made", "made"]
    assert said[0]["told"]
    assert not said[1]["told"], "only the first rank tells"


def heard(trainer: Trainer, *kinds: str) -> dict[str, Any]:
    """Return a trainer's next message of some kinds."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        message = trainer.hear(0.2)
        assert message is None or message["at"] != "died", message
        found.extend([message] if message and message["at"] in kinds else [])
        return bool(found)

    until(look, 240)
    return found[0]


@pytest.fixture
def pair() -> Iterator[Trainer]:
    """A leader of two ranks on this machine, which is ready; at the test's end it is killed, and its ranks are gone."""
    trainer = leader("cpu", 2)
    try:
        heard(trainer, "ready")
        yield trainer
    finally:
        trainer.kill()
    assert all(rank.gone() for rank in trainer.ranks)


@pytest.mark.slow
def test_a_leader_stops_all_its_ranks_and_has_them_tell_where_they_hang(
    orders: Callable[..., dict[str, Order]],  # noqa: F811
    pair: Trainer,
) -> None:
    order = orders(", batch: 76")["train"]
    pair.send(vars(order))
    heard(pair, "step", "epoch")
    pair.send({"stop": True})
    assert heard(pair, "end")["outcome"] in ("stopped", "made")
    pair.send(vars(order))
    heard(pair, "step", "epoch")
    stuck = pair.ranks[1]
    os.kill(stuck.pid, signal.SIGSTOP)
    pair.dump()
    os.kill(stuck.pid, signal.SIGCONT)
    until(lambda: pair.ranks[0].gone() and stuck.gone())
    for log in ("log", "log-1"):
        assert "Thread 0x" in (Path(order.attempt) / log).read_text()


def test_a_leader_that_is_killed_takes_its_ranks_along(
    orders: Callable[..., dict[str, Order]],  # noqa: F811
    pair: Trainer,
) -> None:
    pair.send(vars(orders(", batch: 76")["train"]))
    heard(pair, "step", "epoch", "end")
    os.kill(pair.pid, signal.SIGKILL)
    until(lambda: all(rank.gone() for rank in pair.ranks))


def test_ranks_whose_fork_server_is_killed_end_and_so_does_the_attempt(
    orders: Callable[..., dict[str, Order]],  # noqa: F811
    pair: Trainer,
) -> None:
    order = orders(", batch: 3")["train"]
    pair.send(vars(order))
    heard(pair, "step")
    server = int(Path(f"/proc/{pair.ranks[0].pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    assert heard(pair, "end")["outcome"] == "died"
    until(lambda: all(rank.gone() for rank in pair.ranks))
    pair.send({**vars(order), "kind": "data", "spec": {}})
    assert heard(pair, "end")["outcome"] == "failed", "a server of its own is started again"


LOCAL = """#!/bin/sh
while [ "$1" != {python} ]; do shift; done
SLURM_LOCALID=0 exec "$@"
"""


@pytest.mark.parametrize(
    ("srun", "device", "said"),
    [
        ("", "cpu", "needs srun on the PATH"),
        ("echo 'srun: error: Unable to create step for job 7: Busy' >&2; exit 1", "cpu", "create step for job 7: Busy"),
        ("exit 3", "cpu", "srun ended with code 3"),
        (LOCAL.format(python=sys.executable), "nowhere", f"{socket.gethostname()}: "),
        (LOCAL.format(python=sys.executable), "cpu", ""),
    ],
)
def test_a_node_that_cannot_run_ranks_is_told_before_a_stage_is_taken(
    srun: str, device: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if srun:
        (tmp_path / "srun").write_text(srun if srun.startswith("#!") else f"#!/bin/sh\n{srun}\n")
        (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}" if srun else str(tmp_path))
    found = ranks._unfit_nodes(device, 2, 2)
    assert said in found
    assert bool(found) == bool(said)
