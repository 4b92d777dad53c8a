"""What a job meets: too little memory, a fallen rank, cancelling, an edited file, faults of its profile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.planfile import find_plan, read_plan
from harness.store import Store
from tests.conftest import THIN, results, until, write_project
from tests.slurm.conftest import MAINLY, ONCE, Cluster, write_profile

pytestmark = pytest.mark.slurm
DENSE = ("--only", "mask=dense,seed=0")

HUNGRY = THIN.replace(
    "def build(classes, channels, width=6):\n",
    "def build(classes, channels, width=6):\n    import torch\n    torch.ones(700_000_000)\n",
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path)


LOGIN_SHELL = {
    "SBATCH_PARTITION": "short",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_JOB_NAME": "interactive",
    "SRUN_CPU_BIND": "none",
    "SQUEUE_STATES": "COMPLETED",
    "SQUEUE_PARTITION": "short",
    "SCANCEL_STATE": "PENDING",
    "SCANCEL_NAME": "other",
}
"""What a site's modules or a person's own habits may set."""


def ends(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("runs/stages/train/*/*/attempt-*/end.json"))]


def test_what_runs_out_of_memory_goes_to_a_larger_job(cluster: Cluster, project: Path) -> None:
    if cluster.tracking != "cgroup":
        pytest.skip("without control groups nobody enforces a job's memory")
    (project / "thin.py").write_text(HUNGRY)
    write_profile(project, more="larger:\n  - {memory: 6000M}\n")
    done = cluster.sweep(project, "tiny.yaml", *DENSE, "--via", "dev.yaml")
    assert done.returncode == 0, done.stderr
    first, last = ends(project)
    assert (first["outcome"], first["cause"], first["resource"]) == ("failed", "oom", "ram")
    assert int(str(first["memory"])) == pytest.approx(1500 * 2**20, rel=1e-3)
    assert last["outcome"] == "published"


@MAINLY
def test_a_cancelled_sweep_stays_so_until_it_is_run_again_whatever_the_shell_has_set(
    cluster: Cluster, project: Path
) -> None:
    text = (project / "tiny.yaml").read_text().replace("epochs: 2}", "epochs: 2000}")
    (project / "tiny.yaml").write_text(text)
    write_profile(project)
    assert cluster.sweep(project, "tiny.yaml", "--via", "dev.yaml", "--detach", **LOGIN_SHELL).returncode == 0
    until(lambda: list(project.glob("runs/stages/train/*/*/attempt-0001")), 120, every=0.5)
    asked = cluster.ask("squeue", "--noheader", "--array", "--format", "%P %l %.5j").splitlines()
    assert asked == ["main 30:00 tiny."] * 4
    done = cluster.sweep(project, "tiny.yaml", "--cancel", **LOGIN_SHELL)
    assert "4 jobs ended" in done.stderr
    until(lambda: not cluster.jobs(), 60, every=0.5)
    assert {end["outcome"] for end in ends(project)} == {"stopped"}
    tick = [sys.executable, "-m", "harness.cli", "tick", "tiny"]
    shell = {**cluster.environment, **LOGIN_SHELL}
    told = subprocess.run(tick, cwd=project, env=shell, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    assert not cluster.jobs(), "neither leaving workers nor ticks submit what was cancelled"
    assert cluster.sweep(project, "tiny.yaml", "--via", "dev.yaml", "--detach").returncode == 0
    assert cluster.jobs()


@ONCE
def test_a_profile_mended_replaces_the_jobs_that_waited_in_vain(cluster: Cluster, project: Path) -> None:
    profile = write_profile(project)
    profile.write_text(profile.read_text().replace("partition: main", "partition: short"))  # 30 minutes; it allows 2
    command = ("tiny.yaml", *DENSE, "--via", "dev.yaml")
    done = cluster.sweep(project, *command)
    assert done.returncode == 1
    assert "nothing that was submitted can ever start" in done.stderr
    assert f"{profile.name}:" in done.stderr
    assert "time: 30: its time is over the partition's limit" in done.stderr
    until(lambda: not cluster.jobs(), 60, every=0.5)  # they are taken back
    assert cluster.sweep(project, *command, "--detach").returncode == 0
    assert len(cluster.jobs("PENDING")) == 1
    profile.write_text(profile.read_text().replace("time: 30", "time: 2"))
    done = cluster.sweep(project, *command)
    assert done.returncode == 0, done.stderr
    until(lambda: not cluster.jobs(), 60, every=0.5)


@ONCE
def test_jobs_that_never_come_to_their_work_are_not_submitted_for_ever(cluster: Cluster, project: Path) -> None:
    write_profile(project, more="setup: ['echo this node is not fit; exit 7']\n")
    done = cluster.sweep(project, "tiny.yaml", *DENSE, "--via", "dev.yaml")
    assert done.returncode == 2
    assert "workers were submitted 3 times and ended before they were ready" in done.stderr
    assert "this node is not fit" in done.stderr


SLOW = """
import time
import numpy as np

def load(classes=4, images=200):
    time.sleep(12)
    labels = np.arange(images) % classes
    pixels = np.random.default_rng(0).integers(0, 255, (images, 16, 16)).astype("uint8")
    return (pixels, labels), (pixels[::5], labels[::5])
"""


def submitted(folder: Path, name: str = "*") -> int:
    """Return how many jobs were ever submitted."""
    return len(list(folder.glob(f"runs/sweeps/{name}/slurm/*/*_submitted.pkl")))


@ONCE
def test_workers_that_left_since_a_data_set_takes_long_come_again_when_it_is_made_and_not_before(
    cluster: Cluster, project: Path
) -> None:
    text = (project / "tiny.yaml").read_text().replace("use: {", 'use: {slow: "./slow.py:load", ')
    text = text.replace("dataset: digits", "dataset: slow").replace("[random, lth]", "random")
    (project / "tiny.yaml").write_text(text)
    (project / "slow.py").write_text(SLOW)
    profile = write_profile(project)
    profile.write_text(profile.read_text().replace("idle: 15s", "idle: 2s"))
    assert cluster.sweep(project, "tiny.yaml", "--via", "dev.yaml", "--detach").returncode == 0
    until(lambda: list(project.glob("runs/stages/data/*/*/result-*")), 120, every=0.1)
    assert submitted(project) == 4, "nobody came for what waits for the data"
    stages = len(read_plan(find_plan(Store(project / "runs"), "tiny")).plan.stages)
    until(lambda: len(results(project / "runs")) == stages, 120, every=0.5)
    assert submitted(project) == 4 + 3, "the worker that made it goes on with three others"


@ONCE
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("partition: main", "partition: gpu"), "partition: gpu: the scheduler refuses"),
        (("memory: 1500M", "memory: 900G"), "memory: 900G: the scheduler refuses"),
        (("cpus: 1", "cpus: 1\nqos: nope"), "qos: nope: the scheduler refuses"),
        (("cpus: 1", "cpus: 1\naccount: nobody"), "account: nobody: the scheduler refuses"),
        (("cpus: 1", "cpus: 1\nconstraint: a100"), "constraint: a100: the scheduler refuses"),
    ],
)
def test_a_fault_of_the_profile_is_told_with_its_line(
    cluster: Cluster, project: Path, change: tuple[str, str], said: str
) -> None:
    profile = write_profile(project)
    profile.write_text(profile.read_text().replace(*change))
    done = cluster.sweep(project, "tiny.yaml", *DENSE, "--via", "dev.yaml")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert "dev.yaml:" in done.stderr


@ONCE
def test_a_job_that_no_node_can_hold_is_reported_and_taken_back(cluster: Cluster, project: Path) -> None:
    profile = write_profile(project)
    profile.write_text(profile.read_text().replace("cpus: 1", "cpus: 100"))
    done = cluster.sweep(project, "tiny.yaml", *DENSE, "--via", "dev.yaml")
    assert done.returncode in (1, 2)
    assert f"dev.yaml:{1 + profile.read_text().splitlines().index('cpus: 100')}: cpus: 100: " in done.stderr
    assert "one process asks for 100 CPUs, a node of main has 8 at most" in done.stderr
    until(lambda: not cluster.jobs(), 60, every=0.5)


@MAINLY
def test_the_doctor_looks_from_inside_a_job(cluster: Cluster, project: Path) -> None:
    write_profile(project, more="scratch: /tmp/harness-scratch-$SLURM_JOB_ID\n")
    command = [sys.executable, "-m", "harness.cli", "doctor", "--via", "dev.yaml"]
    done = subprocess.run(command, cwd=project, env=cluster.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "ok    machine: n" in done.stdout
    for name in ("torch", "store", "scratch", "clock"):
        assert f"ok    {name}: " in done.stdout
    assert "accounting answers (sacct)" in done.stdout
    assert not list(project.glob("runs/sweeps/*")), "what went well leaves nothing behind"


@ONCE
def test_no_more_jobs_than_one_person_may_have(cluster: Cluster, project: Path) -> None:
    write_profile(project, more="submit: 2\n")
    done = cluster.sweep(project, "tiny.yaml", "--via", "dev.yaml", "--detach")
    assert done.returncode == 0, done.stderr
    assert len(cluster.jobs()) == 2


@MAINLY
def test_ranks_over_two_nodes_find_one_another(cluster: Cluster, project: Path) -> None:
    text = (project / "tiny.yaml").read_text().replace("  seed: 0..1", "  seed: 0\n  world: 4")
    (project / "tiny.yaml").write_text(text)
    own = f'stage: {{"{project}/thin.py": "{project}/own/$SLURMD_NODENAME/thin.py"}}\n'
    profile = write_profile(project, more=own)
    profile.write_text(profile.read_text().replace("per_node: 1", "per_node: 2"))
    done = cluster.sweep(project, "tiny.yaml", *DENSE, "--via", "dev.yaml")
    assert done.returncode == 0, done.stderr
    assert len(list(project.glob("own/n?/thin.py"))) == 2, "every node was given its copy"
    (trained,) = [r for (r,) in results(project / "runs").values() if "epochs" in r["metrics"]]
    assert trained["stamp"]["world"] == 4
