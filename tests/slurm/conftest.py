"""A real Slurm of four nodes on this machine, in both ways of tracking processes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.allocation import scheduler_environment
from tests.conftest import environment, kill_tree, until

DEVCLUSTER = Path(__file__).resolve().parents[2] / "slurm" / "devcluster"

PROFILE = """
partition: {partition}
cpus: 1
memory: 1500M
time: 30
workers: {workers}
per_node: 1
idle: 15s
nodes_submit: true
"""


@dataclass
class Cluster:
    """The cluster as tests use it."""

    folder: Path
    tracking: str

    @property
    def environment(self) -> dict[str, str]:
        return scheduler_environment(environment()) | {"SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}

    def control(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run slurm/devcluster."""
        given = [sys.executable, str(DEVCLUSTER), *command, "--folder", str(self.folder)]
        return subprocess.run(given, capture_output=True, text=True, timeout=400)

    def ask(self, *command: str) -> str:
        """Run one of Slurm's commands; return what it prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout

    def jobs(self, *states: str) -> list[str]:
        """Return the numbers of all jobs in some states, or of all."""
        chosen = ["--states", ",".join(states)] if states else []
        return self.ask("squeue", "--noheader", "--array", "--format", "%i", *chosen).split()

    def sweep(
        self, folder: Path, *arguments: str, timeout: float = 300, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the sweep command to its end, with more variables in its environment."""
        command = [sys.executable, "-m", "harness.sweep", *arguments]
        given = {**self.environment, **more}
        return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=timeout)


ONCE = pytest.mark.parametrize("cluster", ["linuxproc"], indirect=True)
"""For tests to which the way of tracking makes no difference."""
MAINLY = pytest.mark.parametrize(
    "cluster", ["linuxproc", pytest.param("cgroup", marks=pytest.mark.long)], indirect=True
)
"""For tests to which it makes little."""


@pytest.fixture(scope="module", params=["linuxproc", "cgroup"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Start a cluster, or skip with the reason why none can be here."""
    yield from started("--tracking", request.param, tracking=request.param)


def started(*options: str, tracking: str) -> Iterator[Cluster]:
    """Start a cluster, and stop it; skip where this machine cannot have one, fail where one does not come up."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # not pytest's: a socket's path must be short
    found = Cluster(folder, tracking)
    done = found.control("start", *options)
    try:
        if done.returncode == 1:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        yield found
    finally:
        found.control("stop")


@pytest.fixture(autouse=True)
def _empty(cluster: Cluster) -> Iterator[None]:
    """Leave no job to the next test."""
    yield
    cluster.ask("scancel", "--user", "root")
    until(lambda: not cluster.jobs(), 120, every=0.5)


@pytest.fixture
def following(cluster: Cluster) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the sweep command in the background; what is left of it is ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def run(folder: Path, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "harness.sweep", *arguments]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, cwd=folder, env=cluster.environment, stdout=log, stderr=log, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        kill_tree(process.pid)
        process.wait()


def write_profile(
    folder: Path, name: str = "dev.yaml", partition: str = "main", workers: int = 4, more: str = ""
) -> Path:
    """Write a profile of the cluster."""
    path = folder / name
    path.write_text(PROFILE.format(partition=partition, workers=workers) + more)
    return path
