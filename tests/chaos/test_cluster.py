"""Cluster: a real Slurm whose nodes, controller, accounts and administrators do what they do to sixty cells."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.conftest import Record, amount
from tests.chaos.working import astray
from tests.conftest import results, run_sweep, until, write_project
from tests.slurm.conftest import ONCE, Cluster, _empty, cluster, following, write_profile  # noqa: F401 - fixtures

pytestmark = [pytest.mark.chaos, pytest.mark.slurm]

SWEEP = f"""
name: sixty
protocol: {{preset: quick, epochs: 8, batch: 128}}
use: {{thin: "./thin.py:build"}}
grid:
  dataset: digits
  arch: thin
  mask: [random, snip, lth]
  sparsity: [50%, 80%]
  recipe: [default, ls]
  seed: 0..{amount(4, 9)}
when:
  - {{if: "mask == 'snip' and seed == 0", set: {{world: 2}}}}
tables: [any-mask]
"""
SOME = ("--only", "mask=random,recipe=default")
COMMAND = ("sixty.yaml", "--via", "dev.yaml", "--lease", "10", "--checkpoint-every", "0.5")

FOUND = {
    "scontrol requeue": "the worker saves and leaves; the same job takes its stage up again at once",
    "a node falls": "the lease runs out, and the next worker goes on from the last checkpoint",
    "pre-emption": "the worker is told, saves and leaves, and comes back with the requeued job",
    "the controller dies": "what runs goes on; the command says so, waits for it, and goes on when it answers",
    "the sweep command is killed": "workers go on; the same command follows them again",
    "scancel": "another worker is submitted, and goes on from the last checkpoint",
    "a time limit is shortened": "the worker leaves before it; others do the rest",
}
"""What comes of each fault of a storm."""


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep by the local launcher."""
    folder = write(tmp_path_factory.mktemp("calm"))
    done = run_sweep(folder, "sixty.yaml", "--via", "local", "--workers", "2", "--threads", "1", timeout=1200)
    assert done.returncode == 0, done.stderr
    return folder


def write(folder: Path, partition: str = "main", workers: int = 3) -> Path:
    """Write the sweep and a profile."""
    write_project(folder)
    (folder / "sixty.yaml").write_text(SWEEP)
    write_profile(folder, partition=partition, workers=workers)
    return folder


class Storm:
    """A sweep followed on a cluster, and what has been done to it."""

    def __init__(self, cluster: Cluster, folder: Path, follow: Callable[..., subprocess.Popen[str]]) -> None:  # noqa: F811
        self.cluster, self.folder, self.follow = cluster, folder, follow
        self.met = Counter[str]()
        self.process = follow(folder, *COMMAND)

    def goes_on(self, more: int, workers: int = 1) -> None:
        """Wait until so many more attempts at trainings have begun, and so many workers run."""
        seen = self._begun()
        until(lambda: self._begun() >= seen + more and len(self.cluster.jobs("RUNNING")) >= workers, 120, every=0.5)

    def _begun(self) -> int:
        return len(list(self.folder.glob("runs/stages/train/*/*/attempt-*")))

    def blow(self) -> None:
        """Let everything happen once."""
        self.goes_on(6)
        for job in self.cluster.jobs("RUNNING")[:3]:
            self.cluster.ask("scontrol", "requeue", job)
            self.met["scontrol requeue"] += 1
        self.goes_on(9, workers=3)
        self.cluster.control("kill-node", "n2")
        self.met["a node falls"] += 1
        for node in ("n1", "n3"):  # these jobs take a node whole, and pre-empt what runs there
            own = ("--partition=main", "--exclusive", f"--nodelist={node}", "--time=1", "--wrap=sleep 2")
            self.cluster.ask("sbatch", *own)
            self.met["pre-emption"] += 1
        self.goes_on(4)
        self.cluster.control("kill-controller")
        self.met["the controller dies"] += 1
        self.process.kill()
        self.process.wait()
        self.met["the sweep command is killed"] += 1
        self.cluster.control("start-controller")
        self.process = self.follow(self.folder, *COMMAND)
        self.goes_on(6)
        first, *others = self.cluster.jobs("RUNNING")
        self.cluster.ask("scancel", first)
        self.met["scancel"] += 1
        for other in others[:1]:
            self.cluster.ask("scontrol", "update", f"jobid={other}", "TimeLimit=1")
            self.met["a time limit is shortened"] += 1
        self.cluster.control("start-node", "n2")


@pytest.mark.parametrize("cluster", amount(["linuxproc"], ["linuxproc", "cgroup"]), indirect=True)
def test_a_sweep_through_a_storm_has_the_local_launchers_table(
    cluster: Cluster,  # noqa: F811
    following: Callable[..., subprocess.Popen[str]],  # noqa: F811
    calm: Path,
    tmp_path: Path,
    record: Record,
) -> None:
    storm = Storm(cluster, write(tmp_path, partition="scavenge"), following)
    for _ in range(amount(1, 2)):
        storm.blow()
    assert storm.process.wait(900) == 0, (tmp_path / "log").read_text()
    lost, wrong = astray(tmp_path / "runs", calm / "runs")
    for fault, found in FOUND.items():
        record.note(fault, storm.met[fault], found, lost=lost, wrong=wrong)
    assert (lost, wrong) == (0, 0)
    table = "runs/sweeps/sixty/report/any-mask.csv"
    assert (tmp_path / table).read_text() == (calm / table).read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    again = cluster.sweep(tmp_path, *COMMAND)
    assert again.returncode == 0
    assert "submitted" not in again.stderr


@pytest.mark.long
@ONCE
def test_a_refused_submission_is_told_and_the_same_command_does_it_later(
    cluster: Cluster,  # noqa: F811
    calm: Path,
    tmp_path: Path,
    record: Record,
) -> None:
    write(tmp_path)
    cluster.ask("scontrol", "update", "partitionname=main", "state=INACTIVE")
    try:
        refused = cluster.sweep(tmp_path, *COMMAND, *SOME)
    finally:
        cluster.ask("scontrol", "update", "partitionname=main", "state=UP")
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
    assert "dev.yaml:" in refused.stderr, refused.stderr
    assert not list(tmp_path.glob("runs/stages/train/*/*/attempt-*"))
    done = cluster.sweep(tmp_path, *COMMAND, *SOME, timeout=600)
    lost, wrong = astray(tmp_path / "runs", calm / "runs", planned(tmp_path / "runs"))
    found = "told with the line of the profile; the same command does it later"
    record.note("a submission is refused", 1, found, lost=lost, wrong=wrong)
    assert (lost, wrong) == (0, 0)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@ONCE
def test_without_accounting_what_became_of_a_killed_job_is_found_out(
    cluster: Cluster,  # noqa: F811
    following: Callable[..., subprocess.Popen[str]],  # noqa: F811
    calm: Path,
    tmp_path: Path,
    record: Record,
) -> None:
    process = following(write(tmp_path), *COMMAND, *SOME)
    until(lambda: list(tmp_path.glob("runs/stages/train/*/*/attempt-*/checkpoint-*")), 120, every=0.1)
    os.kill(int((cluster.folder / "run" / "slurmdbd.pid").read_text()), signal.SIGKILL)
    assert cluster.ask("sacct", "--noheader") == "", "nobody answers"
    jobs = cluster.jobs("RUNNING")
    cluster.ask("scancel", "--signal=KILL", "--full", *jobs)
    assert process.wait(600) == 0, (tmp_path / "log").read_text()
    lost, wrong = astray(tmp_path / "runs", calm / "runs", planned(tmp_path / "runs"))
    found = "the controller is asked instead of sacct; others are submitted and go on from the last checkpoint"
    record.note("accounting is down, and running jobs are killed", len(jobs), found, lost=lost, wrong=wrong)
    assert (lost, wrong) == (0, 0)
    assert len(results(tmp_path / "runs")) == len(planned(tmp_path / "runs"))


def planned(store: Path) -> set[str]:
    """Return the stages of the newest plan."""
    from harness.planfile import find_plan, read_plan
    from harness.store import Store

    return set(read_plan(find_plan(Store(store), "sixty")).plan.stages)
