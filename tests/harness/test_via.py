"""Launchers of this machine beside the local one: in this process, and trials of a real Ray Tune."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.costs import Place
from harness.driver import Driver
from harness.errors import FileError, UserError
from harness.options import Options
from harness.outlook import Outlook
from tests.conftest import environment, hashes, kill_tree, results, run_sweep, save_whole_plan, until, write_project

Start = Callable[..., subprocess.Popen[bytes]]
FEW = ("tiny.yaml", "--only", "seed=0,mask=random")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some cells by the local launcher, one thread a worker."""
    folder = write_project(tmp_path_factory.mktemp("calm"))
    done = run_sweep(folder, *FEW, "--via", "local", "--threads", "1")
    assert done.returncode == 0, done.stderr
    return folder


def table(folder: Path) -> str:
    return (folder / "runs/sweeps/tiny/report.part/any-mask.csv").read_text()


def test_in_this_process_the_numbers_are_the_same_and_prints_are_seen(project: Path, calm: Path) -> None:
    text = (project / "thin.py").read_text()
    done = run_sweep(project, *FEW, "--via", "debug", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert table(project) == table(calm)
    assert hashes(project / "runs") == hashes(calm / "runs")
    (project / "thin.py").write_text(text.replace("return nn", "print('seen'); raise KeyError('oops'); return nn"))
    done = run_sweep(project, *FEW, "--via", "debug")
    assert done.returncode == 1
    assert "seen" in done.stdout
    assert "Traceback" in done.stderr
    assert "KeyError: 'oops'" in done.stderr


def test_a_plan_by_a_profile_is_forecast_for_its_workers_and_a_faulty_profile_leaves_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    profile = project / "gpu.yaml"
    profile.write_text("partition: gpu\ngpus: 1\ncpus: 8\nworkers: 3\n")
    driver = Driver(project / "tiny.yaml", project / "runs", None, Options("gpu.yaml", told=True))
    driver.load()
    outlook = Outlook(driver.frontier, driver.frontier.survey(), driver.workers_machine())
    assert (outlook.forecast().slots, outlook.costs.place) == (3, Place("cuda", 8))
    assert outlook.compute(7200) == "2.0 GPU-hours"
    with pytest.raises(
        UserError, match="--pilot times steps on this machine, which has no GPU, and the workers of gpu"
    ):
        driver.pilot()
    profile.write_text("gpu: 1\n")
    with pytest.raises(FileError, match="gpu: unknown key"):
        driver.run()
    assert not (project / "runs" / "sweeps").exists()


@pytest.mark.slow
def test_ray_killed_in_the_middle_and_run_again_has_the_local_table(project: Path, start: Start, calm: Path) -> None:
    process = start("harness.sweep", *FEW, "--via", "ray", "--threads", "1")
    until(lambda: len(results(project / "runs")) > 1)
    kill_tree(process.pid)
    process.wait()
    assert len(results(project / "runs")) < 4
    done = run_sweep(project, *FEW, "--via", "ray", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert table(project) == table(calm)
    assert hashes(project / "runs") == hashes(calm / "runs")


@pytest.mark.long
@pytest.mark.slow
def test_a_group_that_no_node_of_ray_can_hold_is_told(project: Path) -> None:
    text = (project / "tiny.yaml").read_text().replace("  seed: 0..1", "  seed: 0\n  world: 64")
    (project / "tiny.yaml").write_text(text)
    done = run_sweep(project, *FEW, "--via", "ray")
    assert done.returncode == 2
    assert "world: 64 needs 64 CPU on one node" in done.stderr
    assert "Slurm profile" in done.stderr


LOSE = """
import sys, threading
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from harness.plan import Plan
from harness.planfile import find_plan, read_plan
from harness.ray_run import Share, run_with_ray
from harness.store import Store
from harness.supervisor import Setup

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
store = Store(Path("runs"))
saved = read_plan(find_plan(store, "tiny"))


def lose() -> None:
    pause = threading.Event()
    while len(list(Path("runs/stages").glob("*/*/*/result-*"))) < 3:
        pause.wait(0.1)
    cluster.remove_node(second, allow_graceful=False)


threading.Thread(target=lose, daemon=True).start()
run_with_ray(saved.plan, saved.path, store, Setup(lease=5.0), Share(1, 0.0, cluster.address), None, Path("cancelled"))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_node_removed_from_rays_cluster_loses_nothing(project: Path) -> None:
    (project / "lose.py").write_text(LOSE)
    save_whole_plan(project)
    done = subprocess.run(
        [sys.executable, "lose.py"], cwd=project, env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    again = run_sweep(project, "tiny.yaml", "--via", "local")
    assert again.returncode == 0, again.stderr
    assert " stages run in " not in again.stderr, "nothing was left to do"
    assert all(len(editions) == 1 for editions in results(project / "runs").values())
