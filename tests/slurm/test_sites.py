"""A site that enforces wckeys, where jobs ask for as little as they may and are given no environment."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import results
from tests.slurm.conftest import Cluster, write_profile

pytestmark = [pytest.mark.slurm, pytest.mark.long]
BARE = "gpus: 1\ngpu_option: gres\nrequeue: null\n"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    found = Cluster(folder, "linuxproc")
    done = found.control("start", "--wckeys")
    if done.returncode:
        found.control("stop")
        pytest.skip(done.stderr.strip())
    found.ask("sacctmgr", "--immediate", "add", "user", "root", "account=root", "wckeys=own,ours", "defaultwckey=own")
    yield found
    found.control("stop")


@pytest.mark.parametrize(("more", "wckey"), [("", "*own"), ("sbatch: {wckey: ours}\n", "ours")])
def test_a_job_has_its_users_own_wckey_or_the_profiles(cluster: Cluster, project: Path, more: str, wckey: str) -> None:
    write_profile(project, more=BARE + more)
    done = cluster.sweep(project, "tiny.yaml", "--via", "dev.yaml", "--detach")
    assert done.returncode == 0, done.stderr
    assert set(cluster.ask("squeue", "--noheader", "--format", "%w").split()) == {wckey}


def test_a_wckey_that_its_user_does_not_have_is_told_of_by_its_line(cluster: Cluster, project: Path) -> None:
    write_profile(project, more="sbatch: {wckey: theirs}\n")
    done = cluster.sweep(project, "tiny.yaml", "--via", "dev.yaml", "--detach")
    assert done.returncode == 2
    assert " sbatch.wckey: theirs: the scheduler refuses: " in done.stderr


def test_processes_on_two_nodes_train_where_jobs_are_given_no_environment(cluster: Cluster, project: Path) -> None:
    text = (project / "tiny.yaml").read_text().replace("  seed: 0..1", "  seed: 0\n  world: 2")
    (project / "tiny.yaml").write_text(text)
    bare = "requeue: null\nsetup: ['export OMP_NUM_THREADS=1']\nsbatch: {export: NONE}\n"
    profile = write_profile(project, more=bare)
    profile.write_text(profile.read_text().replace("memory: 1500M", "memory: null"))
    done = cluster.sweep(project, "tiny.yaml", "--only", "mask=dense,seed=0", "--via", "dev.yaml")
    assert done.returncode == 0, done.stderr
    (trained,) = [r for (r,) in results(project / "runs").values() if "epochs" in r["metrics"]]
    assert trained["stamp"]["world"] == 2
