"""A cluster that keeps no accounts and forbids requeueing: what is lost is found out all the same."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import results, until
from tests.slurm.conftest import Cluster, started, write_profile

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    yield from started("--no-accounting", "--no-requeue", tracking="linuxproc")


@pytest.mark.long
def test_a_site_that_forbids_requeueing_is_told_of_by_the_profiles_line(cluster: Cluster, project: Path) -> None:
    write_profile(project)
    done = cluster.sweep(project, "tiny.yaml", "--via", "dev.yaml")
    assert done.returncode == 2
    assert "dev.yaml:" in done.stderr
    assert " requeue (not set): the scheduler refuses" in done.stderr
    assert "set requeue: false" in done.stderr


def test_without_accounts_a_fallen_job_costs_nothing_but_time(
    cluster: Cluster, project: Path, following: Callable[..., subprocess.Popen[str]]
) -> None:
    write_profile(project, workers=2, more="requeue: false\n")
    process = following(project, "tiny.yaml", "--via", "dev.yaml", "--lease", "10")
    until(lambda: results(project / "runs"), 120, every=0.2)
    assert "accounting_storage/none" in cluster.ask("scontrol", "show", "config")
    for job in cluster.jobs("RUNNING")[:1]:
        cluster.ask("scancel", "--signal=KILL", "--full", job)
    assert process.wait(240) == 0, (project / "log").read_text()
    until(lambda: not cluster.jobs(), 60, every=0.5)
