"""`--cancel`: what was submitted ends, wherever it was, and what goes on is named; with commands of a small Slurm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness import allocation
from harness.claims import Observer, Owner, Process, take
from harness.driver import Driver
from harness.launch import PROFILE, Size
from harness.launch.kept import last_used
from harness.launch.profiles import load_profile
from harness.launch.slurm import Slurm
from harness.launch.starts import OUTSTANDING
from harness.options import Options
from harness.planfile import as_saved, save_plan
from harness.presence import Presence
from harness.rounds import CANCELLED, go_round
from harness.store import Store

COMMAND = """#!{python} -S
import sys
from pathlib import Path

here, name, words = Path("{folder}"), Path(sys.argv[0]).name, sys.argv[1:]
cluster = "alpha"
if words[:1] == ["-M"]:
    cluster, words = words[1], words[2:]
with (here / "asked").open("a") as asked:
    asked.write(f"{{name}} {{cluster}}\\n")
said = {{line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in (here / "faults").read_text().splitlines()}}
if fault := said.get(name) or said.get(cluster):
    print(fault, file=sys.stderr)
    sys.exit(int("deaf" not in fault))
queue = [line.split() for line in (here / "queue").read_text().splitlines()]  # cluster, number, inner, name, state
mine = [job for job in queue if job[0] == cluster]
if name == "squeue":
    for _, number, inner, job, state in mine:
        print(f"{{number}}|{{inner}}|{{job}}|{{state}}|None")
elif name == "scancel":
    named = [word.partition("=")[2] for word in words if word.startswith("--name=")]
    ended = [job for job in mine if job[1] in words and named in ([], [job[3]])]
    (here / "queue").write_text("".join(" ".join(job) + "\\n" for job in queue if job not in ended))
elif words[:2] == ["show", "config"]:
    print("ClusterName             = alpha")
elif not [job for job in mine if job[1].partition("_")[0] == words[-1]]:
    sys.exit("Invalid job id specified")
for job in mine if name == "scontrol" else ():
    if job[1].partition("_")[0] == words[-1]:
        print(f"JobId={{job[2]}} JobName={{job[3]}} JobState={{job[4]}}")
"""


@dataclass
class Site:
    """Two clusters, alpha, which answers where none is named, and beta; and a sweep in a store."""

    folder: Path
    driver: Driver

    @property
    def store(self) -> Store:
        return self.driver.store

    @property
    def queue(self) -> list[str]:
        """The jobs there, each as its cluster and number."""
        return [":".join(line.split()[:2]) for line in (self.folder / "queue").read_text().splitlines()]

    @property
    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().splitlines()

    def fault(self, command: str, said: str) -> None:
        (self.folder / "faults").write_text(f"{command} {said}\n")

    def launcher(self, profile: str = "workers: 2\n", plan: str = "") -> Slurm:
        path = self.folder / "own.yaml"
        path.write_text(profile)
        return Slurm(*load_profile(path)[:1], self.store, "tiny", ["tiny"], load_profile(path)[1], plan=plan)

    def submit(self, launcher: Slurm, *numbers: str, state: str = "PENDING", name: str = "") -> None:
        """Put jobs into the queue as a launcher would have submitted them, and keep them as it does."""
        launcher.begin()
        size, cluster = Size(), launcher.cluster or "alpha"
        own = f"{launcher.mark}.{launcher.bound}.{size}.{launcher.tag(size)}"
        with (self.folder / "queue").open("a") as queue:
            for number in numbers:
                queue.write(f"{cluster} {number} {number.replace('_', '')} {name or own} {state}\n")
        folder = launcher.folder / f"{size}.{launcher.tag(size)}-{cluster}-{numbers[0]}"
        folder.mkdir(parents=True)
        (folder / OUTSTANDING).write_text(json.dumps({"name": own, "cluster": cluster, "jobs": numbers}))


@pytest.fixture
def site(project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Site:
    folder = tmp_path_factory.mktemp("site")
    for name in ("sbatch", "squeue", "scontrol", "sacct", "scancel"):
        (folder / name).write_text(COMMAND.format(python=sys.executable, folder=folder))
        (folder / name).chmod(0o755)
    for name in ("queue", "asked"):
        (folder / name).touch()
    (folder / "faults").write_text("sacct Slurm accounting storage is disabled\n")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("harness.cancel.PAUSE", 0)
    driver = Driver(project / "tiny.yaml", project / "runs", None, Options())
    driver.load()
    save_plan(driver.plan, driver.store, driver.sweep, whole=True)
    return Site(folder, driver)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def test_jobs_of_every_profile_cluster_and_plan_end_without_via(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.submit(site.launcher("cluster: beta\nmemory: 2G\n"), "7_0", "7_1", state="RUNNING")
    site.submit(site.launcher(), "7_0", "8")
    site.submit(site.launcher(plan="plan-part.json"), "9")
    (site.folder / "own.yaml").unlink()
    with (site.folder / "queue").open("a") as queue:
        queue.write("alpha 10 10 another.sweep RUNNING\nbeta 8 8 another.sweep RUNNING\n")
    assert site.driver.cancel() == 0
    assert capsys.readouterr().err == "5 jobs ended\n"
    assert site.queue == ["alpha:10", "beta:8"]
    assert (site.store.sweep("tiny") / CANCELLED).exists()
    assert site.driver.cancel() == 0
    assert capsys.readouterr().err == "nothing was running\n"


def test_jobs_end_whose_profile_this_version_does_not_take(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = site.launcher("cluster: beta\n")
    site.submit(launcher, "7", "8")
    (site.store.sweep("tiny") / PROFILE).write_text("cluster: beta\nof_another_version: 1\n")
    assert site.driver.cancel() == 0
    assert capsys.readouterr().err == "2 jobs ended\n"
    assert site.queue == []


@pytest.mark.parametrize(
    ("where", "fault", "said"),
    [
        ("scancel", "error: 7_0: Access denied", "job 7_0: error: 7_0: Access denied; to end it: scancel 7_0"),
        ("scancel", "deaf", "job 7_0: it is still running; to end it: scancel 7_0"),
        ("squeue", "Unable to contact slurm controller", "jobs on the cluster: .*scheduler does not answer.*again"),
        (
            "beta",
            "Unable to contact slurm controller",
            "job 5: not in the queue of cluster beta by name, .*; if gone, remove .*; to",
        ),
    ],
)
def test_what_goes_on_is_named_with_what_to_do(
    site: Site,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    fault: str,
    said: str,
) -> None:
    monkeypatch.setattr(allocation, "PATIENCE", 0)
    site.submit(site.launcher("cluster: beta\n"), "5", state="RUNNING")
    site.submit(site.launcher(), "7_0", state="RUNNING")
    site.fault(where, fault)
    assert site.driver.cancel() == (3 if where == "squeue" else 1)
    assert re.search(f"^not ended: {said}", capsys.readouterr().err, re.MULTILINE)
    site.fault("sacct", "Slurm accounting storage is disabled")
    assert site.driver.cancel() == 0
    assert site.queue == []


def test_a_changed_cluster_starts_no_second_crew(site: Site) -> None:
    site.submit(site.launcher("cluster: beta\n"), "7_0", state="RUNNING")
    site.submit(site.launcher(), "7_0", "7_1")
    for profile in ("cluster: beta\n", "cluster: alpha\n", "workers: 2\n"):
        launcher = site.launcher(profile)
        jobs = [(job.cluster, job.number, job.state, job.outdated) for job in launcher.poll()]
        assert sorted(jobs) == [
            ("alpha", "7_0", "pending", False),
            ("alpha", "7_1", "pending", False),
            ("beta", "7_0", "running", False),
        ]
        assert launcher.queued == (1 if "beta" in profile else 2), (
            "the limit on what a person may submit is a cluster's"
        )
    launcher.cancel([job for job in launcher.poll() if job.cluster == "beta"])
    assert site.queue == ["alpha:7_0", "alpha:7_1"]


def test_an_outdated_job_that_cannot_be_cancelled_is_not_replaced(site: Site) -> None:
    site.submit(site.launcher("workers: 1\nmemory: 2G\n"), "7")
    site.fault("scancel", "Access/permission denied")
    seen = go_round(
        as_saved(site.driver.plan, site.driver.sweep), site.store, site.launcher("workers: 1\n"), Observer()
    )
    assert ([job.number for job in seen.jobs], seen.submitted) == (["7"], [])


def test_a_job_that_nobody_tells_of_keeps_its_place_and_is_named(site: Site) -> None:
    site.submit(site.launcher("cluster: beta\nworkers: 1\n"), "5", state="RUNNING")
    site.fault("beta", "'beta' can't be reached now, or it is an invalid entry for --cluster")
    saved = as_saved(site.driver.plan, site.driver.sweep)
    for _ in range(2):
        seen = go_round(saved, site.store, site.launcher("cluster: alpha\nworkers: 1\n"), Observer())
        (record,) = seen.jobs and site.store.sweep("tiny").absolute().glob(f"slurm/*/{OUTSTANDING}")
        assert seen.submitted == []
        assert re.fullmatch(
            f"1 job not in the queue of cluster beta .*; if gone, remove {record}", *seen.notes(site.launcher())
        )
    record.unlink()
    assert site.launcher("workers: 1\n").poll() == []


def test_a_number_that_another_job_has_by_now_keeps_no_place(site: Site) -> None:
    launcher = site.launcher()
    site.submit(launcher, "7", "8", state="RUNNING", name="of-another")
    assert launcher.poll() == []
    assert not list(launcher.folder.glob(f"*/{OUTSTANDING}"))


def test_of_a_part_its_jobs_and_workers_end_and_no_others(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    part = Driver(site.driver.file, site.store.root, None, Options())
    part.load("mask=random,seed=0")
    own = save_plan(part.plan, site.store, part.sweep, whole=False).name
    other = Driver(site.driver.file, site.store.root, None, Options())
    other.load("mask=random")
    wider = save_plan(other.plan, site.store, other.sweep, whole=False).name
    site.submit(site.launcher("cluster: beta\n"), "3", state="RUNNING")
    site.submit(site.launcher(), "3", "4", state="RUNNING")
    site.submit(site.launcher(plan=own), "5_0", "5_1")
    site.submit(site.launcher(plan=wider), "6")
    stage = next(stage for stage in part.plan.stages.values() if stage.kind == "train")
    there = Owner("n1", "b", "s", (Process(1, 1),), "3.0", cluster="beta")
    assert take(site.store.folder("train", stage.key), 0, there)
    assert part.cancel() == 0
    said = capsys.readouterr().err
    assert re.match(r"3 jobs ended, \d+ stages cancelled; --retry cancelled lifts that\n", said)
    assert "has changed" not in said
    assert site.queue == ["alpha:3", "alpha:4", "alpha:6"]
    assert not (site.store.sweep("tiny") / CANCELLED).exists()
    part.file.write_text(part.file.read_text() + "# edited\n")
    assert part.cancel() == 0
    assert "tiny.yaml has changed since it was run: --only chooses cells as" in capsys.readouterr().err


def test_a_running_stage_that_other_cells_need_is_said_to_be_taken_up_again(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    part = Driver(site.driver.file, site.store.root, None, Options())
    part.load("mask=dense,seed=0")
    site.submit(site.launcher(), "3", "4", state="RUNNING")
    stage = next(stage for stage in part.plan.stages.values() if stage.kind == "data")
    assert take(site.store.folder("data", stage.key), 0, Owner("n1", "b", "s", (Process(1, 1),), "3.0"))
    assert part.cancel() == 0
    said = capsys.readouterr().err
    assert said.startswith("1 job ended"), said
    assert said.endswith("; running for other cells too, and taken up again unless --only names those: 1 stage\n")


def test_workers_of_this_machine_are_asked_and_those_out_of_reach_named(
    site: Site, sleeper: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    text = site.driver.file.read_text()
    site.driver.file.write_text(text + "launch: {via: gone.yaml}\n")
    driver = Driver(site.driver.file, site.store.root, None, Options())
    driver.load()
    here = replace(Owner.me(), processes=Owner.me(sleeper.pid).processes[1:])
    Presence(site.store, "tiny", here)
    far = Presence(site.store, "tiny", replace(here, host="far"))
    Presence(site.store, "tiny", replace(here, host="far"), trial=True)
    by_hand = Presence(site.store, "tiny", replace(here, host="n1", job="3.0", cluster="beta"))
    with (site.folder / "queue").open("a") as queue:
        queue.write("beta 3 3 of-hers RUNNING\n")
    assert driver.cancel() == 1
    assert sleeper.wait(60) == -15
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "2 workers asked to save and leave"
    assert f"process {sleeper.pid} on far: run the same command there" in said[1]
    assert str(far.path) in said[1]
    assert "a worker on n1 in job 3, which the sweep command did not submit; to end it: scancel -M beta 3" in said[2]
    assert not [line for line in site.asked if line.startswith(("squeue", "scancel"))], "nothing was ever submitted"
    far.leave()
    (site.folder / "queue").write_text("")
    assert driver.cancel() == 0, "what job 3 was is over"
    assert by_hand.path.exists()


def test_a_lost_workers_job_is_looked_up_on_its_own_cluster(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "alpha")
    assert Owner.me().cluster == "alpha"
    elsewhere = Owner("n1", "b", "s", (Process(1, 1),), "7.0", cluster="beta")
    assert not elsewhere.certainly_gone(), "the same number on another cluster"
    assert replace(elsewhere, cluster="alpha").certainly_gone()


def test_the_launcher_is_that_of_the_last_profile(site: Site) -> None:
    assert last_used(site.store, "tiny") is None
    site.launcher().begin()
    site.launcher("cluster: beta\n").begin()
    launcher = last_used(site.store, "tiny")
    assert launcher is not None
    assert launcher.cluster == "beta"
