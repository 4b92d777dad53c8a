"""One sweep through all that happens on a cluster, one thing after another: its numbers are those of a calm day."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.allocation import scheduler_environment
from harness.presence import present
from harness.store import Store
from tests.conftest import environment, hashes, kill_tree, results, until, write_project
from tests.slurm.conftest import Cluster
from tests.tracking.mirrored import WANDB, assert_mirrors, processes_of, surroundings, wandb
from tests.tracking.server import Server
from tests.tracking.test_command import child_of

pytestmark = pytest.mark.slurm

PROFILE = """
partition: scavenge
memory: 5000M
time: 30
workers: 4
idle: 30s
nodes_submit: true
setup: ['[ "$SLURMD_NODENAME" != n4 ] || exit 7']
"""
"""A job has a node of its own, and on n4 every worker dies at its start."""
COMMAND = ("--via", "storm.yaml", "--lease", "15", "--checkpoint-every", "2")
SQUEUE = """\
#!/bin/sh
rm {flag} 2>/dev/null && echo "slurm_load_jobs error: Unable to contact slurm controller" >&2 && exit 1
exec {squeue} "$@"
"""


class Storm:
    """The sweep's folder, its cluster and its mirror."""

    def __init__(self, cluster: Cluster, folder: Path, server: Server) -> None:
        self.cluster, self.folder, self.server = cluster, folder, server
        self.store, self.flag = Store(folder / "runs"), folder / "squeue-fails"
        self.started: list[subprocess.Popen[str]] = []
        (folder / "bin").mkdir()
        wrapper = folder / "bin" / "squeue"
        wrapper.write_text(SQUEUE.format(flag=self.flag, squeue=shutil.which("squeue")))
        wrapper.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        own = {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
        conf = {"SLURM_CONF": self.cluster.environment["SLURM_CONF"]}
        return {**scheduler_environment(surroundings(self.folder, self.server.url)), **own, **conf}

    def start(self, folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start the sweep command; its words go to a file of the sweep's name."""
        with (folder / f"{Path(arguments[0]).stem}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "harness.sweep", *arguments],
                cwd=folder,
                env=environment or self.environment,
                stdout=log,
                stderr=log,
                text=True,
            )
        self.started.append(process)
        return process

    def at_work(self, done: int, *nodes: str) -> tuple[str, str] | None:
        """Return a job whose worker has signed in on one of some nodes, and that node, once so many stages are done."""
        if len(results(self.store.root)) < done:
            return None
        ready = {worker.owner.job.partition(".")[0] for worker in present(self.store, "tiny")}
        asked = ("squeue", "--noheader", "--states", "RUNNING", "--nodelist", ",".join(nodes), "--format", "%A %N")
        jobs = [line.split() for line in self.cluster.ask(*asked).splitlines()]
        return next(((job, node) for job, node in jobs if job in ready), None)

    def state(self, job: str) -> str:
        """Return a job's state and why it waits."""
        return self.cluster.ask("squeue", "--noheader", "--jobs", job, "--format", "%T %r").strip()


@pytest.fixture
def storm(cluster: Cluster, tmp_path: Path) -> Iterator[Storm]:
    (tmp_path / "here").mkdir()
    (tmp_path / "calm").mkdir()
    for folder in (tmp_path / "here", tmp_path / "calm"):
        write_project(folder)
        tiny = (folder / "tiny.yaml").read_text().replace("epochs: 2}", "epochs: 30}")
        (folder / "tiny.yaml").write_text(tiny)
    (tmp_path / "here" / "storm.yaml").write_text(PROFILE)
    (tmp_path / "here" / "second.yaml").write_text(
        tiny.replace("name: tiny", "name: second").replace("mask: [random, lth]", "mask: [random]")
    )
    with (tmp_path / "here" / "tiny.yaml").open("a") as file:
        file.write(WANDB)
    with Server() as server:
        found = Storm(cluster, tmp_path / "here", server)
        yield found
        for process in found.started:
            kill_tree(process.pid)
            process.wait()


def test_a_sweep_goes_through_a_storm_and_ends_with_the_numbers_of_a_calm_day(storm: Storm, cluster: Cluster) -> None:
    calm = storm.folder.parent / "calm"
    reference = storm.start(calm, "tiny.yaml", "--via", "local", "--workers", "1", "--threads", "1", **environment())
    first = storm.start(storm.folder, "tiny.yaml", *COMMAND)

    requeued, _ = until(lambda: storm.at_work(3, "n1", "n2", "n3"), 300, every=0.5)
    cluster.ask("scontrol", "requeue", requeued)
    second = storm.start(storm.folder, "second.yaml", *COMMAND)

    held, _ = until(lambda: storm.at_work(5, "n1", "n2", "n3"), 300, every=0.5)
    cluster.ask("scontrol", "requeuehold", held)
    until(lambda: "held" in storm.state(held).lower(), 120, every=0.5)
    storm.flag.touch()
    os.kill(until(lambda: child_of(first), 120), signal.SIGKILL)
    cluster.ask("scontrol", "release", held)

    _, node = until(lambda: storm.at_work(8, "n1", "n3"), 300, every=0.5)
    pre_empting = ("sbatch", "--parsable", "--partition", "main", "--exclusive", "--nodelist", node)
    urgent = cluster.ask(*pre_empting, "--output", "/dev/null", "--wrap", "sleep 600").strip()
    until(lambda: storm.state(urgent).startswith("RUNNING"), 120, every=0.5)
    cluster.ask("scancel", urgent)

    until(lambda: storm.at_work(10, "n2"), 300, every=0.5)
    cluster.control("kill-node", "n2")
    cluster.control("kill-controller")
    cluster.control("start-controller")
    cluster.control("start-node", "n2")
    until(lambda: not storm.flag.exists(), 120, every=0.5)

    until(lambda: storm.at_work(13, "n1", "n2", "n3"), 300, every=0.5)
    assert len(results(storm.store.root)) < 27, "the storm is over before the sweep"
    assert first.poll() is None, (storm.folder / "tiny.log").read_text()
    cancelled = cluster.sweep(storm.folder, "tiny.yaml", *COMMAND, "--cancel")
    assert cancelled.returncode in (0, 1), cancelled.stderr  # 1: another sweep's workers have stages of it in hand
    assert first.wait(300) == 1, (storm.folder / "tiny.log").read_text()

    again = storm.start(storm.folder, "tiny.yaml", *COMMAND)
    assert again.wait(900) == 0, (storm.folder / "tiny.log").read_text()
    assert second.wait(300) == 0, (storm.folder / "second.log").read_text()
    assert reference.wait(600) == 0, (calm / "tiny.log").read_text()
    assert hashes(storm.store.root) == hashes(calm / "runs")
    assert all(len(editions) == 1 for editions in results(storm.store.root).values())
    ours, theirs = (folder / "runs/sweeps/tiny/report/any-mask.csv" for folder in (storm.folder, calm))
    assert ours.read_text() == theirs.read_text()
    log = (storm.folder / "tiny.log").read_text() + (storm.folder / "second.log").read_text()
    assert "Traceback" not in log
    assert "failed: " not in log
    until(lambda: not processes_of(storm.folder), 300, every=0.2)
    assert wandb(storm.folder, storm.server.url, "sync", "tiny").returncode == 0
    assert_mirrors(storm.server, storm.store)
