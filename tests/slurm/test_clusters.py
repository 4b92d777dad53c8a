"""Two real clusters of one site: what was submitted to one is counted, and cancelled, where it is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import until, write_project
from tests.slurm.conftest import ONCE, Cluster, write_profile

pytestmark = [pytest.mark.slurm, pytest.mark.long]


@pytest.fixture
def beta(cluster: Cluster) -> Iterator[Cluster]:
    """A second cluster, with the accounting of the first."""
    found = Cluster(Path(tempfile.mkdtemp(prefix="slurm-")), cluster.tracking)
    conf = (cluster.folder / "etc" / "slurm.conf").read_text()
    port = int(conf.partition("SlurmctldPort=")[2].split()[0]) + 20
    given = ("--name", "beta", "--join", str(cluster.folder), "--port", str(port), "--nodes", "1")
    done = found.control("start", *given)
    try:
        assert done.returncode == 0, done.stderr
        yield found
    finally:
        found.control("stop")


@ONCE
def test_a_changed_cluster_starts_no_second_crew_and_all_is_cancelled(
    cluster: Cluster, beta: Cluster, tmp_path: Path
) -> None:
    project = write_project(tmp_path)
    (project / "tiny.yaml").write_text((project / "tiny.yaml").read_text().replace("epochs: 2}", "epochs: 2000}"))
    write_profile(project, workers=1)
    write_profile(project, "two.yaml", workers=2, more="cluster: beta\n")
    assert cluster.sweep(project, "tiny.yaml", "--via", "dev.yaml", "--detach").returncode == 0
    done = cluster.sweep(project, "tiny.yaml", "--via", "two.yaml", "--detach")
    assert ": 1 worker\n" in done.stderr, "the other one is there already"
    assert (len(cluster.jobs()), len(beta.jobs())) == (1, 1)
    until(lambda: len(list(project.glob("runs/stages/train/*/*/attempt-0001"))) == 2, 120, every=0.5)
    done = cluster.sweep(project, "tiny.yaml", "--cancel")
    assert (done.returncode, done.stderr) == (0, "2 jobs ended\n")
    until(lambda: not cluster.jobs() and not beta.jobs(), 60, every=0.5)
