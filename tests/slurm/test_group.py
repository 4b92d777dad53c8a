"""Processes on several nodes: they train as one does, and a rank or a node that falls is taken up again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from harness.train.order import Order
from tests.conftest import results, until
from tests.harness.ranks import trained
from tests.harness.test_group import STEPS, assert_alike, order  # noqa: F401 - a fixture
from tests.harness.test_together import DENSE, checkpoints, ends, write_wide
from tests.harness.test_training import orders  # noqa: F401 - a fixture
from tests.slurm.conftest import ONCE, Cluster, write_profile

pytestmark = pytest.mark.slurm


@ONCE
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-9), pytest.param("float32", 1e-4, marks=pytest.mark.long)]
)
def test_four_processes_on_two_nodes_train_as_one_does(
    cluster: Cluster,
    order: Order,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    tolerance: float,
) -> None:
    monkeypatch.setitem(os.environ, "SLURM_CONF", cluster.environment["SLURM_CONF"])

    def place(rank: int) -> Sequence[str]:
        node = f"n{1 + rank // 2}"
        return ("srun", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "--mem=1500M", "--chdir", str(Path.cwd()))

    (alone,) = trained(order, 1, STEPS, dtype, tmp_path)
    assert_alike(trained(order, 4, STEPS, dtype, tmp_path, place, meet=socket.gethostname()), alone, dtype, tolerance)


def processes(rank: int, folder: Path) -> list[int]:
    """Return the tasks that are a rank of a training in a folder, as this machine numbers them."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            own = (place / "environ").read_bytes().split(b"\0")
            here = (place / "cwd").resolve() == folder and b"be_task" in (place / "cmdline").read_bytes()
            srun = (place / "comm").read_text().startswith("srun")
        except OSError:
            continue
        if here and not srun and f"SLURM_PROCID={rank}".encode() in own:
            found.append(int(place.name))
    return found


@ONCE
@pytest.mark.parametrize("what", ["rank", pytest.param("node", marks=pytest.mark.long)])
def test_a_rank_and_a_node_that_fall_end_the_attempt_and_the_training_goes_on(
    cluster: Cluster, project: Path, following: Callable[..., subprocess.Popen[str]], what: str
) -> None:
    write_wide(project, epochs=200)
    write_profile(project, more="requeue: null\n")
    driver = following(project, *DENSE, "--via", "dev.yaml", "--checkpoint-every", "0.5")
    until(lambda: checkpoints(project) and processes(1, project), 240, every=0.2)
    if what == "rank":
        (rank,) = processes(1, project)
        os.kill(rank, signal.SIGKILL)
    else:
        nodes = cluster.ask("squeue", "--noheader", "--format", "%N").strip()
        assert nodes == "n[1-2]"
        cluster.control("kill-node", "n2")
    until(lambda: ends(project), 240, every=0.2)
    if what == "node":
        cluster.control("start-node", "n2")
    fallen = ends(project)[0]
    if what == "rank":
        assert (fallen["outcome"], fallen["rank"], fallen["host"]) == ("died", 1, "n2")
        assert "rank 1 of 2 on n2" in str(fallen["message"])
        own = next(project.glob("runs/stages/train/*/*/attempt-0001/rank-0.json"))
        assert json.loads(own.read_text())["peer"]
    else:
        assert fallen["outcome"] == "stopped"
    assert driver.wait(400) == 0, (project / "log").read_text()
    (trained,) = [r for (r,) in results(project / "runs").values() if "epochs" in r["metrics"]]
    assert trained["provenance"]["resumed_at_step"] > 0
