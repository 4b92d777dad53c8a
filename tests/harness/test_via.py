"""Launchers of this machine beside the local one: in this process, and trials of a real Ray Tune."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from harness.costs import Place
from harness.driver import Driver
from harness.errors import FileError, UserError
from harness.options import Options
from harness.outlook import Outlook
from harness.ray_group import RayGroup
from harness.ray_run import Share, start_ray
from harness.train.order import Order
from tests.conftest import (
    THIN,
    environment,
    hashes,
    kill_tree,
    results,
    run_sweep,
    save_whole_plan,
    until,
    write_project,
)
from tests.harness.test_training import orders  # noqa: F401 - a fixture

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
def test_a_group_that_rays_cluster_cannot_hold_is_told(project: Path) -> None:
    text = (project / "tiny.yaml").read_text().replace("  seed: 0..1", "  seed: 0\n  world: 64")
    (project / "tiny.yaml").write_text(text)
    done = run_sweep(project, *FEW, "--via", "ray")
    assert done.returncode == 2
    assert "world: 64 needs 1 CPU for each of its processes; 1 node of Ray has room for" in done.stderr


RUN = """
import json, os, signal, threading
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from harness.planfile import find_plan, read_plan
from harness.ray_run import Share, run_with_ray
from harness.store import Store
from harness.supervisor import Setup

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS})
second = cluster.add_node(num_cpus=CPUS)
cluster.wait_for_nodes()
store, pause = Store(Path("runs")), threading.Event()
saved = read_plan(find_plan(store, "tiny"))


def wait(pattern, count=1):
    while len(found := list(Path("runs/stages").glob(pattern))) < count:
        pause.wait(0.1)
    return found[0]


def kill_writer(log):
    for file in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            if file.readlink() == log.absolute():
                os.kill(int(file.parts[2]), signal.SIGKILL)
        except OSError:
            pass


def kill_holder(claim):
    os.kill(json.JSONDecoder().raw_decode(claim.read_text())[0]["processes"][0]["pid"], signal.SIGKILL)


def disturb():
    DISTURB


threading.Thread(target=disturb, daemon=True).start()
setup, share = Setup(lease=5.0, checkpoint_every=0.1), Share(1, 0.0, cluster.address)
run_with_ray(saved.plan, saved.path, store, setup, share, None, Path("cancelled"))
ray.shutdown()
cluster.shutdown()
"""
LOSE_A_NODE = """
    wait("*/*/*/result-*", 3)
    cluster.remove_node(second, allow_graceful=False)
"""
KILL_A_RANK_THEN_THE_TRIAL = """
    kill_writer(wait("train/*/*/attempt-0001/checkpoint-*").with_name("log-1"))
    kill_holder(wait("train/*/*/attempt-0002/checkpoint-*").parent.with_name("claim-0002"))
"""


def run_on_two_nodes(folder: Path, cpus: int, disturb: str) -> None:
    """Run what a plan lacks on a Ray of two nodes, disturbed on the way."""
    (folder / "run.py").write_text(RUN.replace("CPUS", str(cpus)).replace("DISTURB", disturb.strip()))
    save_whole_plan(folder)
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=folder, env=environment(), capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.slow
def test_a_node_removed_from_rays_cluster_loses_nothing(project: Path) -> None:
    run_on_two_nodes(project, 1, LOSE_A_NODE)
    again = run_sweep(project, "tiny.yaml", "--via", "local")
    assert again.returncode == 0, again.stderr
    assert " stages run in " not in again.stderr, "nothing was left to do"
    assert all(len(editions) == 1 for editions in results(project / "runs").values())


DOUBLE = """
class Double(nn.Module):
    def forward(self, x):
        return x.double()


def build"""


def write_double(folder: Path, world: int) -> Path:
    """Write one training of a network that computes in float64, the last of four batches of an epoch three images."""
    folder.mkdir()
    write_project(folder)
    thin = THIN.replace("def build", DOUBLE.lstrip()).replace("Sequential(", "Sequential(Double(),")
    (folder / "thin.py").write_text(thin.replace("classes),\n    )", "classes),\n    ).double()"))
    text = (folder / "tiny.yaml").read_text().replace("epochs: 2}", "epochs: 100, batch: 323}")
    few = {"[random, lth]": "random", "[default, ls]": "default", "seed: 0..1": f"seed: 0\n  world: {world}"}
    for old, new in few.items():
        text = text.replace(old, new)
    (folder / "tiny.yaml").write_text(text.replace("also:\n  - {mask: dense, recipe: default}\n", ""))
    return folder


def trained(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the weights of the one training in a folder, and its result."""
    (weights,) = folder.glob("runs/stages/train/*/*/*.safetensors")
    (result,) = folder.glob("runs/stages/train/*/*/result-*.json")
    return load_file(weights), json.loads(result.read_text())["result"]


@pytest.mark.slow
def test_four_ranks_on_two_nodes_of_ray_train_as_one_does_though_a_rank_and_the_trial_are_killed(
    tmp_path: Path,
) -> None:
    one, two = write_double(tmp_path / "one", 1), write_double(tmp_path / "two", 4)
    done = run_sweep(one, "tiny.yaml", "--via", "local", "--threads", "1")
    assert done.returncode == 0, done.stderr
    run_on_two_nodes(two, 2, KILL_A_RANK_THEN_THE_TRIAL)
    (alone, _), (together, result) = trained(one), trained(two)
    assert result["stamp"]["world"] == 4
    assert result["provenance"]["generation"] == 3
    assert result["provenance"]["resumed"] == 2
    (first,) = two.glob("runs/stages/train/*/*/attempt-0001/end.json")
    assert json.loads(first.read_text())["message"].startswith("rank 1 of 4: ")
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert_close(together[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_group_that_is_no_longer_heard_of_has_died_and_leaves_its_share_to_another(
    orders: Callable[..., dict[str, Order]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    start_ray(Share())
    import ray

    def ends(group: RayGroup, order: Order, disturb: bool) -> str:
        assert group.hear(1) == {"at": "ready"}
        group.send(vars(order))
        while True:
            message = group.hear(0.5) or {"at": ""}
            if disturb and message["at"] in ("step", "epoch"):
                ray.kill(group.line)
            if message["at"] in ("end", "died"):
                return str(message.get("outcome", message["at"]))

    try:
        first, second = RayGroup("cpu", 2, 1), RayGroup("cpu", 2, 1)
        assert ends(first, orders(", batch: 76")["train"], True) == "died"
        assert not first.alive
        assert ends(second, orders(", batch: 323")["train"], False) == "made"
    finally:
        ray.shutdown()
