"""Sixty cells on four nodes with everything going wrong that can: the table is the local launcher's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import hashes, run_sweep, until, write_project
from tests.slurm.conftest import Cluster, write_profile

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SIXTY = """
name: sixty
protocol: {preset: quick, epochs: 8, batch: 128}
use: {thin: "./thin.py:build"}
grid:
  dataset: digits
  arch: thin
  mask: [random, snip, lth]
  sparsity: [50%, 80%]
  recipe: [default, ls]
  seed: 0..4
when:
  - {if: "mask == 'snip' and seed == 0", set: {world: 2}}
tables: [any-mask]
"""


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep by the local launcher."""
    folder = write_project(tmp_path_factory.mktemp("calm"))
    (folder / "sixty.yaml").write_text(SIXTY)
    done = run_sweep(folder, "sixty.yaml", "--via", "local", "--workers", "2", "--threads", "1", timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


def started(folder: Path) -> int:
    return len(list(folder.glob("runs/stages/train/*/*/attempt-*")))


def test_a_sweep_through_a_storm_has_the_local_launchers_table(
    cluster: Cluster, calm: Path, tmp_path: Path, following: Callable[..., subprocess.Popen[str]]
) -> None:
    write_project(tmp_path)
    (tmp_path / "sixty.yaml").write_text(SIXTY)
    write_profile(tmp_path, partition="scavenge", workers=3)
    command = ("sixty.yaml", "--via", "dev.yaml", "--lease", "10", "--checkpoint-every", "0.5")
    process = following(tmp_path, *command)
    until(lambda: started(tmp_path) > 5, 120, every=0.5)
    for job in cluster.jobs("RUNNING")[:3]:
        cluster.ask("scontrol", "requeue", job)
    until(lambda: len(cluster.jobs("RUNNING")) > 2 and started(tmp_path) > 15, 120, every=0.5)
    cluster.control("kill-node", "n2")
    for node in ("n1", "n3"):  # these jobs take a node whole, and pre-empt what runs there
        cluster.ask("sbatch", "--partition=main", "--exclusive", f"--nodelist={node}", "--time=1", "--wrap=sleep 2")
    seen = started(tmp_path)
    until(lambda: started(tmp_path) > seen + 3, 120, every=0.5)
    cluster.control("kill-controller")
    process.kill()
    process.wait()
    cluster.control("start-controller")
    process = following(tmp_path, *command)
    seen = started(tmp_path)
    until(lambda: cluster.jobs("RUNNING") and started(tmp_path) > seen + 5, 120, every=0.5)
    first, *others = cluster.jobs("RUNNING")
    cluster.ask("scancel", first)
    for other in others[:1]:
        cluster.ask("scontrol", "update", f"jobid={other}", "TimeLimit=1")
    cluster.control("start-node", "n2")
    assert process.wait(400) == 0, (tmp_path / "log").read_text()
    for table in ("any-mask.csv",):
        assert (tmp_path / "runs/sweeps/sixty/report" / table).read_text() == (
            calm / "runs/sweeps/sixty/report" / table
        ).read_text()
    assert hashes(tmp_path / "runs") == hashes(calm / "runs")
    again = cluster.sweep(tmp_path, *command)
    assert again.returncode == 0
    assert "submitted" not in again.stderr
