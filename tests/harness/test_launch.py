"""What launchers write and conclude: profiles, sbatch files, queues, records of lost jobs. No Slurm needed."""

from __future__ import annotations

import contextlib
import grp
import itertools
import json
import math
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import allocation
from harness.allocation import (
    SETTINGS,
    TimeLimit,
    job,
    nodes,
    scheduler_environment,
    shell,
    time_limit,
    worker_environment,
)
from harness.claims import LEASE, Observer, Owner, Process, end_attempt, take
from harness.driver import Driver
from harness.errors import FileError, SchedulerUnavailable, UserError
from harness.launch import Job, Size
from harness.launch.kept import kept
from harness.launch.local import Machine, slots
from harness.launch.profiles import FIELDS, FOLDER, OURS, Profile, find_profile, load_profile
from harness.launch.remedies import explain, hopeless
from harness.launch.slurm import IN_VAIN, Slurm
from harness.launch.starts import NODE, OUTSTANDING, SIGNED_IN, shell_line
from harness.options import Options
from harness.planfile import as_saved
from harness.records import ENDED, Fate, ended, fate, tell_loss
from harness.rounds import Round, go_round, round_in_turn
from harness.soundness import convolutions, look, shared
from harness.states import state_of
from harness.store import Folder, Store
from tests.conftest import environment, save_whole_plan, until, write_project

PROFILE = """
partition: gpu
gpus: 1
gpu_type: a100
cpus: 8
memory: 32G
time: 1-00:00:00
per_node: 4
workers: 10
sbatch: {mail-type: END}
larger:
  - {memory: 64G}
"""


def slurm(folder: Path, text: str = PROFILE, answers: dict[str, str] | None = None, name: str = "grid") -> Slurm:
    """A launcher whose shell answers as told, and fails for every other command."""
    (folder / "p.yaml").write_text(text)
    profile, document = load_profile(folder / "p.yaml")

    def run(command: Sequence[str]) -> str:
        if command[0] not in (answers or {}):
            raise FileNotFoundError(command[0])
        return (answers or {})[command[0]]

    return Slurm(profile, Store(folder / "runs"), name, [name, "--store", "/runs"], document, run)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_profiles_that_come_with_the_project_are_sound(path: Path) -> None:
    profile, document = load_profile(path)
    launcher = Slurm(profile, Store(Path("runs")), "grid", ["grid"], document)
    for step in range(len(profile.larger) + 1):
        assert f".w4m{step}." in launcher.text(Size(4, step), 3)


def test_a_group_of_processes_asks_for_as_many_times_as_much(tmp_path: Path) -> None:
    text = slurm(tmp_path).text(Size(8), 20)
    for line in (
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=a100:4",
        "--cpus-per-task=32",
        "--mem=131072M",
        "--time=1440",
        "--array=0-19%10",
        "--mail-type=END",
        "--requeue",
        "--kill-on-bad-exit=1",
        "--wait=0",
    ):
        assert line in text
    larger = slurm(tmp_path).text(Size(1, 1), 1)
    assert "--mem=65536M" in larger
    assert "--array" not in larger


def test_a_larger_step_is_found_whatever_was_asked_before(tmp_path: Path) -> None:
    profile = slurm(tmp_path).profile
    assert profile.bytes == 32 * 2**30
    assert profile.at(1).bytes == 64 * 2**30
    assert [profile.step_for(gib * 2**30, "ram") for gib in (0, 16, 32, 64)] == [None, 0, 1, None]


def test_workers_are_told_what_they_have(tmp_path: Path) -> None:
    argv = slurm(tmp_path).command(Size(4, 1))
    told = dict(itertools.pairwise(argv))
    assert (told["--world"], told["--memory"], told["--threads"]) == ("4", "64.000", "8")
    assert (told["--device"], "--large" in argv) == ("cuda", True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cluster: a,b", "cluster: workers are submitted to one cluster; write `cluster: a`, and another profile"),
        ("time: '0:30'", "time: '0:30' is no time limit; write 4:00:00, 1-12:00:00, minutes, or UNLIMITED"),
        ("memory: 100K", "memory: '100K' is no amount of memory"),
        ("memory: true", "memory: True is not allowed"),
        ("gpu_memory: 0", "gpu_memory: '0' is no amount of memory"),
        ('sbatch: {gres: "gpu:a100:1"}', "sbatch: gres goes into the profile's own key gpus"),
        ("sbatch: {mem_per_cpu: 4G}", "sbatch: mem_per_cpu goes into the profile's own key memory, what one process"),
        ("larger: [{memory: null}]", "larger: memory: null does not say whether it is more"),
        ("gpu_option: gpus", "gpu_option: 'gpus' is not allowed"),
        ("sbatch: {arr: 1-3}", "sbatch: arr is set by the harness itself"),
        ("sbatch: {N: 2}", "sbatch: N: 'N' is no option's long name; write it without its dashes"),
        ("sbatch: {--nice: 2}", "sbatch: --nice: '--nice' is no option's long name"),
        ('sbatch: {comment: "a\\nb"}', "sbatch: comment: "),
        (
            "sbatch: {exclude: [[n1]]}",
            "sbatch: exclude: [['n1']] is not allowed; write a text, a number, a list or true",
        ),
        ("sbatch: {mail-type: END, mail_type: FAIL}", "sbatch: mail_type: given twice; write it once"),
        ("memory: lots", "memory: 'lots' is no amount of memory; write 16G or 64000M"),
        ("time: 10", ""),
        ("time: never", "time: 'never' is no time"),
        ("gpu: 1", "gpu: unknown key; allowed are partition"),
        ("clusters: [a, b]", "clusters: unknown key; allowed are"),
        ("workers: 0", "workers: 0 is not allowed"),
        ("sbatch: {array: 1-3}", "sbatch: array is set by the harness itself"),
        ("larger: [{memry: 3G}]", "larger.0.memry: unknown key"),
        ("cpus: many", "cpus: 'many' is not allowed; write a whole number"),
    ],
)
def test_a_profile_is_checked_line_by_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"partition: gpu\n{line}\n")
    if not said:
        load_profile(path)
        return
    with pytest.raises(FileError) as raised:
        load_profile(path)
    assert str(raised.value).startswith(f"{path}:2: {said}")


# Slurm's own ways


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("time: 90", "--time=90"),
        ("time: 90:00", "--time=90"),
        ("time: 1:30:00", "--time=90"),
        ("time: 1-0", "--time=1440"),
        ("time: 1-12:30", "--time=2190"),
        ("time: 1-12:30:00", "--time=2190"),
        ("time: 1d12h", "--time=2160"),
        ("time: 0", "--time=0"),
        ("time: UNLIMITED", "--time=0"),
        ("memory: 64000", "--mem=64000M"),
        ("memory: 1.5T", "--mem=1572864M"),
        ("memory: 32GiB", "--mem=32768M"),
        ("memory: 0", "--mem=0"),
        ("partition: [gpu, long]", "--partition=gpu,long"),
        ("partition: gpu,long", "--partition=gpu,long"),
        ("cluster: beta", "--clusters=beta"),
        ("sbatch: {exclusive: true}", "--exclusive"),
        ("sbatch: {gres: 'nvme:1'}", "--gres=nvme:1"),
        ("sbatch: {mail_type: END}", "--mail-type=END"),
        ("sbatch: {wckey: ours}", "--wckey=ours"),
        ("sbatch: {exclude: [n1, n2]}", "--exclude=n1,n2"),
        ("sbatch: {nice: 0}", "--nice=0"),
        ("requeue: false", "--no-requeue"),
        ("cpus: 3\nmemory: 4G\nmemory_option: mem-per-cpu", "--mem-per-cpu=1366M"),
        ("memory: 0\nmemory_option: mem-per-cpu", "--mem=0"),
        ("gpus: 2\ngpu_type: a100", "--gpus-per-node=a100:2"),
        ("gpus: 2\ngpu_option: gres", "--gres=gpu:2"),
        ("gpus: 2\ngpu_type: a100\ngpu_option: gres\nsbatch: {gres: 'nvme:1'}", "--gres=gpu:a100:2,nvme:1"),
    ],
)
def test_requests_are_read_as_slurm_spells_them(tmp_path: Path, line: str, written: str) -> None:
    lines = slurm(tmp_path, f"{line}\n").text(Size(), 1).splitlines()
    assert f"#SBATCH {written}" in lines
    options = [each.removeprefix("#SBATCH --").partition("=")[0] for each in lines if each.startswith("#SBATCH")]
    assert len(set(options)) == len(options), "no option twice"
    assert len({"mem", "mem-per-cpu", "mem-per-gpu"} & set(options)) == 1, "Slurm takes one of them alone"


def test_nothing_is_submitted_that_nobody_asked_for(tmp_path: Path) -> None:
    launcher = slurm(tmp_path, "memory: null\nrequeue: null\ntime: null\nsbatch: {exclusive: false, comment: null}\n")
    options = re.findall(r"^#SBATCH --([a-z-]+)", launcher.text(Size(), 1), re.MULTILINE)
    always = ["cpus-per-task", "job-name", "nodes", "ntasks-per-node", "open-mode", "output", "signal"]
    assert options == always, "nothing but what makes it the harness's own job"
    assert "--memory" not in launcher.command(Size())


@pytest.mark.usefixtures("_commands")
@pytest.mark.parametrize("folder", ["plain", """50% a b'c"d[1]$HOME#~ä"""])
def test_the_plan_prints_the_file_that_is_submitted(tmp_path: Path, folder: str) -> None:
    (tmp_path / "p.yaml").write_text("workers: 5\narray: 2\nsetup: [hostname]\n")
    profile, document = load_profile(tmp_path / "p.yaml")
    launcher = Slurm(profile, Store(tmp_path / folder / "runs"), "grid", ["grid"], document)
    assert launcher.arrays(5) == [2, 2, 1]
    for tasks in (1, 2):
        launcher.submit_argv(Size(), tasks, launcher.command(Size()))
        (file,) = launcher.folder.glob("*/7_submission.sh")
        printed = launcher.text(Size(), tasks)
        assert printed.strip() == re.sub(r"(w1m0\.\w+)-[\d.]+-\w+", r"\1-WHEN", file.read_text()).strip()
        shutil.rmtree(file.parent)


@pytest.mark.parametrize("folder", ["a%jb", "a%2b", "a%%b", "a\\b", "a\nb"])
def test_a_log_goes_nowhere_that_slurm_would_read_otherwise(tmp_path: Path, folder: str) -> None:
    launcher = Slurm(Profile(), Store(tmp_path / folder / "runs"), "grid", ["grid"])
    with pytest.raises(UserError, match=r"Slurm cannot write a log where .* give --store a path without it"):
        launcher.text(Size(), 1)


@pytest.mark.parametrize("option", sorted({*OURS, *FIELDS}))
def test_an_option_that_the_harness_or_another_key_decides_on_is_refused_with_where_it_goes(option: str) -> None:
    for name in (option, option.replace("-", "_")):
        with pytest.raises(ValueError, match=f"{name} (is set by the harness itself|goes into the profile's own key)"):
            Profile(sbatch={name: "1"})
    assert FIELDS.get(option, "sbatch") in Profile.model_fields


def test_a_step_has_its_jobs_cpus_before_anything_else_runs(tmp_path: Path) -> None:
    """Of Slurm 22.05 to 23.02, a step takes them from SRUN_CPUS_PER_TASK alone; and it has what the lines have set."""
    lines = slurm(tmp_path, f"{PROFILE}setup: [hostname]\n").text(Size(8), 2).splitlines()
    (at,) = [number for number, line in enumerate(lines) if line == "export SRUN_CPUS_PER_TASK=32 SRUN_EXPORT_ENV=ALL"]
    assert "#SBATCH --cpus-per-task=32" in lines
    assert at < lines.index("hostname") < next(n for n, line in enumerate(lines) if line.startswith("srun "))


def test_what_the_site_decides_is_not_known_to_be_more(tmp_path: Path) -> None:
    profile = slurm(tmp_path, "memory: null\ntime: null\nlarger: [{time: 3:00:00}, {memory: 64G}]\n").profile
    assert (profile.step_for(3600, "time"), profile.step_for(2**30, "ram")) == (1, 2)


def test_a_job_has_all_memory_of_its_node_where_the_profile_says_so(tmp_path: Path) -> None:
    assert "--memory" not in slurm(tmp_path, "memory: 0\n").command(Size())
    assert slurm(tmp_path, "memory: 0\nlarger: [{memory: 64G}]\n").profile.step_for(32 * 2**30, "ram") == 1


HOSTILE = {
    "SBATCH_PARTITION": "batch",
    "SBATCH_JOB_NAME": "interactive",
    "SQUEUE_STATES": "RUNNING",
    "SACCT_FORMAT": "JobID",
    "SCANCEL_STATE": "PENDING",
    "SCONTROL_ALL": "1",
    "SINFO_PARTITION": "debug",
    "SALLOC_TIMELIMIT": "1",
    "SRUN_CPUS_PER_TASK": "1",
    "SLURM_MEM_PER_CPU": "100",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SLURM_CLUSTERS": "alpha",
    "SLURM_JOB_ID": "7",
    "SLURMD_DEBUG": "4",
    "SUBMITIT_EXECUTOR": "slurm",
}
PLACES = {"SLURM_CONF": "/etc/slurm/slurm.conf", "SLURM_JWT": "token"}


def test_what_a_shell_has_set_for_slurms_commands_does_not_reach_them() -> None:
    assert {next(prefix for prefix in SETTINGS if name.startswith(prefix)) for name in HOSTILE} == set(SETTINGS)
    others = {"PATH": "/bin", "LC_SLURM": "x", "MY_SBATCH_PARTITION": "y", "SLURMACCOUNT": "z", "CUDA_HOME": "/cuda"}
    assert scheduler_environment({**HOSTILE, **PLACES, **others}) == {**PLACES, **others}


TIMES = {"SLURM_TIME_FORMAT": "%s"}
COMMAND = """#!/bin/sh
env > "$0.env"
echo "$@" > "$0.argv"
case "${0##*/}" in sbatch) echo "Submitted batch job 7";; scontrol) echo "MaxArraySize = 11";; esac
"""


NAMES = ("sbatch", "squeue", "scontrol", "sacct", "scancel", "srun")
"""Of which submitit looks for srun, no more."""


@pytest.fixture
def _commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's commands: they write down what they are given, take every job in, and show none."""
    for name in NAMES:
        (tmp_path / name).write_text(COMMAND)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


@pytest.mark.usefixtures("_commands")
def test_every_command_is_given_the_same_environment_and_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**HOSTILE, **PLACES}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "p.yaml").write_text("cluster: beta\n")
    profile, document = load_profile(tmp_path / "p.yaml")
    launcher = Slurm(profile, Store(tmp_path / "runs"), "grid", ["grid"], document)
    launcher.folder.mkdir(parents=True)
    launcher.begin()
    assert list(launcher.submit(Size(), 2)) == ["job 7: 2 workers"]
    assert [(each.number, each.state) for each in launcher.poll()] == [("7_0", "pending"), ("7_1", "pending")]
    launcher.cancel(launcher.poll())
    for name in NAMES[:-1]:
        lines = (tmp_path / f"{name}.env").read_text().splitlines()
        seen = dict(line.split("=", 1) for line in lines if line.startswith(SETTINGS))
        assert seen == PLACES | ({} if name == "sbatch" else TIMES), name
        assert name == "sbatch" or (tmp_path / f"{name}.argv").read_text().startswith("-M beta "), name
    assert "#SBATCH --clusters=beta\n" in next(launcher.folder.glob("*/*.sh")).read_text()
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "beta")
    assert kept(launcher.store, "grid").cluster == "", "within a job of it, the next controller answers"


def test_a_refusal_of_a_kept_profile_names_the_file_to_change(tmp_path: Path) -> None:
    launcher, file, error = slurm(tmp_path, "qos: nope\n"), tmp_path / "p.yaml", "Invalid qos specification"
    copy = launcher.store.sweep("grid") / "profile.yaml"
    copy.parent.mkdir(parents=True)
    launcher.begin()

    def refuse(command: Sequence[str]) -> str:
        raise subprocess.CalledProcessError(1, command, stderr=error)

    def refusal() -> str:
        later = kept(launcher.store, "grid")
        later.run = refuse
        with pytest.raises(UserError) as found:
            later.poll()
        return str(found.value)

    again = f"; once {file} is changed, run the sweep command with --via again"
    assert refusal().startswith(f"{file}:1: qos: nope: the scheduler refuses")
    assert refusal().endswith(again)
    file.write_text("\nqos: other\n")
    assert refusal().startswith(f"{file}: qos: nope: the scheduler refuses"), "its lines are others by now"
    assert refusal().endswith(again)
    file.unlink()
    assert refusal().startswith(f"{copy}:1: qos: nope: the scheduler refuses")
    (copy.parent / "launch.json").write_text('{"argv": ["grid"]}')
    assert refusal().startswith(f"{copy}:1: "), "as the version before wrote it"
    assert "--via" not in refusal()


@pytest.mark.usefixtures("_commands")
def test_there_are_never_more_workers_than_the_profile_says_whatever_the_queue_shows(tmp_path: Path) -> None:
    driver = Driver(write_project(tmp_path) / "tiny.yaml", tmp_path / "runs", None, Options("p.yaml"))
    driver.load()
    saved = as_saved(driver.plan, driver.sweep)
    launcher = Slurm(Profile(workers=2), Store(tmp_path / "runs"), saved.plan.name, ["tiny"])
    for number in range(6):
        seen = go_round(saved, driver.store, launcher, Observer(), by_hand=number == 0)
        assert sum(seen.wanted.values()) > 2
        assert (len(seen.submitted), len(seen.jobs)) == ((0, 2) if number else (1, 0))
        for folder in launcher.folder.iterdir():  # as workers do whose trainer is ready
            (folder / f"{SIGNED_IN}{number}").touch()


def test_a_printed_crontab_line_works_as_cron_runs_it(tmp_path: Path) -> None:
    folder, programs = tmp_path / "my 50% folder", tmp_path / "slurm 22%"
    programs.mkdir()
    folder.mkdir()
    write_project(folder)
    (folder / "profile.yaml").write_text("partition: main\n")
    save_whole_plan(folder, "dense")
    for name, does in {
        "sbatch": 'echo "$SLURM_CONF" >> asked; echo Submitted batch job 7',
        **dict.fromkeys(("squeue", "srun", "scontrol", "sacct", "sinfo"), ""),
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    profile, document = load_profile(folder / "profile.yaml")
    Slurm(profile, Store(folder / "runs"), "tiny", ["tiny", "--store", str(folder / "runs")], document).begin()
    known = environment() | {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_CONF": "/a b/slurm.conf"}
    command = [sys.executable, "-m", "harness.cli", "tick", "tiny", "--cron"]
    line = subprocess.run(
        command, cwd=folder, env=known, umask=0o002, capture_output=True, text=True, check=True
    ).stdout
    assert not (folder / "asked").exists()
    asked = re.split(r"(?<!\\)%", line.strip().split(" ", 5)[5])[0].replace("\\%", "%")  # as cron reads its table
    few = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
    done = subprocess.run(["/bin/sh", "-c", asked], cwd="/", env=few, umask=0o022, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "started job 7: 2 workers" in done.stdout
    assert "0 workers at work or waiting before\n" in done.stdout
    assert (folder / "asked").read_text() == "/a b/slurm.conf\n"
    (kept_file,) = (folder / "runs" / "sweeps" / "tiny" / "slurm").glob("*/outstanding.json")
    assert kept_file.stat().st_mode & 0o777 == 0o664


@pytest.mark.usefixtures("_commands")
def test_a_worker_submits_others_for_what_it_has_made_ready_and_goes_on(tmp_path: Path) -> None:
    grid = (write_project(tmp_path) / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(grid.replace("seed: 0..1", "seed: 0").replace("50%", "20%"))
    save_whole_plan(tmp_path, mask="lth")
    slurm(tmp_path, "nodes_submit: true\n", name="tiny").begin()
    printed = run_worker(tmp_path, 7, "--idle", "60s", "--submits")[1].splitlines()
    (submitted,) = [number for number, line in enumerate(printed) if line == "submitted job 7: 2 workers"]
    starts = [number for number, line in enumerate(printed) if line.startswith("start ")]
    assert sum(number < submitted for number in starts) == 2, "the data and the dense network: nothing else takes long"
    assert sum(number > submitted for number in starts) == 3, "a mask, and two trainings with it"


def test_the_cluster_that_the_shell_names_is_kept_for_cron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", "beta")
    launcher = slurm(tmp_path)
    launcher.folder.mkdir(parents=True)
    launcher.begin()
    monkeypatch.setenv("SLURM_CLUSTERS", "alpha")
    assert kept(Store(tmp_path / "runs"), "grid").cluster == "beta"
    assert slurm(tmp_path, "cluster: gamma\n").cluster == "gamma"
    monkeypatch.setenv("SLURM_CLUSTERS", "alpha,beta")
    with pytest.raises(
        UserError, match="SLURM_CLUSTERS=alpha,beta: a profile's workers are submitted to one cluster; write"
    ):
        slurm(tmp_path)


def test_a_profile_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_profile("a100", tmp_path) == FOLDER / "a100.yaml"
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "a100.yaml").write_text("partition: own\n")
    for named in ("a100", "a100.yaml", "slurm/a100.yaml"):
        assert find_profile(named, tmp_path) == tmp_path / "slurm" / "a100.yaml"
    with pytest.raises(UserError, match=r"'a10' is no launcher and no profile; .*did you mean 'a100'"):
        find_profile("a10", tmp_path)


def test_a_sweep_files_project_has_its_profile_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps, elsewhere = tmp_path / "clone" / "sweeps" / "old", tmp_path / "elsewhere"
    for folder in (sweeps, elsewhere, tmp_path / "clone" / "slurm", tmp_path / "slurm"):
        folder.mkdir(parents=True)
    (tmp_path / "clone" / "slurm" / "ours.yaml").write_text("partition: clone\n")
    (tmp_path / "slurm" / "ours.yaml").write_text("partition: outside\n")
    monkeypatch.chdir(elsewhere)
    with pytest.raises(UserError, match="no launcher and no profile"):
        find_profile("slurm/ours.yaml", sweeps)
    (tmp_path / "clone" / ".git").write_text("")
    assert find_profile("slurm/ours.yaml", sweeps) == tmp_path / "clone" / "slurm" / "ours.yaml"
    monkeypatch.chdir(tmp_path)
    assert find_profile("slurm/ours.yaml", sweeps) == tmp_path / "slurm" / "ours.yaml"


def test_the_queue_is_read_by_name_and_old_requests_are_known(tmp_path: Path) -> None:
    launcher = slurm(tmp_path)
    own = f"{launcher.mark}.{launcher.bound}.w4m1.{launcher.tag(Size(4, 1))}"
    launcher.run = lambda command: (
        f"7_0|8|{own}|RUNNING|None\n7_[1]|7|{own}|PENDING|(Priority)\n9|9|{launcher.mark}.{launcher.bound}.w1m0.beef|PENDING|QOSMaxCpuPerJobLimit\n"
        "10|10|another|RUNNING|None\n"
    )
    running, waiting, old = launcher.poll()
    assert (running.number, running.inner, running.size, running.state) == ("7_0", "8", Size(4, 1), "running")
    assert (waiting.reason, waiting.outdated, old.outdated) == ("Priority", False, True)
    assert not launcher.never(waiting)
    assert "cpus: 8: one job of this kind is over a limit" in launcher.never(old)


@pytest.mark.parametrize(
    ("told", "means"),
    [
        ("PENDING", "pending"),
        ("CONFIGURING", "pending"),
        ("SUSPENDED", "pending"),
        ("RESV_DEL_HOLD", "pending"),
        ("SPECIAL_EXIT", "pending"),
        ("A_STATE_OF_TOMORROW", "pending"),
        ("RUNNING", "running"),
        ("COMPLETING", "leaving"),
        *((state, "") for state in sorted(ENDED)),
    ],
)
def test_a_job_in_the_queue_that_has_not_ended_waits_or_runs(tmp_path: Path, told: str, means: str) -> None:
    launcher = slurm(tmp_path)
    own = f"{launcher.mark}.{launcher.bound}.w1m0.{launcher.tag(Size())}"
    launcher.run = lambda command: f"CLUSTER: beta\n\nslurm_load_jobs: odd\n7_0|8|{own}|{told}|None\n9|9|a|b|c|d|e\n"
    assert [job.state for job in launcher.poll()] == ([means] if means else [])


def outstanding(launcher: Slurm, *jobs: str, size: Size | None = None, order: int = 0) -> Path:
    """A submission as it is kept."""
    size = size or Size()
    folder = launcher.folder / f"{size}.{launcher.tag(size)}-{order}"
    folder.mkdir(parents=True)
    name = f"{launcher.mark}.{launcher.bound}.{size}.{launcher.tag(size)}"
    (folder / OUTSTANDING).write_text(json.dumps({"name": name, "jobs": jobs}))
    return folder


ARRAY = "JobId={0} ArrayJobId=7 ArrayTaskId={1} JobName=x JobState={2} Reason=None\n"


@pytest.mark.parametrize(
    ("answers", "left"),
    [
        ({}, {"7_0", "7_1", "7_2", "8"}),
        ({"sacct": "", "scontrol": ""}, {"7_0", "7_1", "7_2", "8"}),
        ({"sacct": "7_0|COMPLETED\n7_[1-2%4]|CANCELLED by 0\n8|RUNNING\n"}, {"8"}),
        ({"sacct": "7_0|REQUEUED\n7_[1,2]|PENDING\n8|RESV_DEL_HOLD\n"}, {"7_0", "7_1", "7_2", "8"}),
        ({"sacct": "8|NODE_FAIL\n", "scontrol": ARRAY.format(7, "1-2%4", "PENDING")}, {"7_1", "7_2"}),
        ({"scontrol": ARRAY.format(9, 0, "COMPLETED") + ARRAY.format(7, 2, "SPECIAL_EXIT")}, {"7_2"}),
    ],
)
def test_jobs_end_when_somebody_who_knows_says_so(answers: dict[str, str], left: set[str]) -> None:
    def run(command: Sequence[str]) -> str:
        if command[0] not in answers or (command[0] == "scontrol" and command[-1] != "7"):
            raise subprocess.CalledProcessError(1, command, stderr="Unable to contact slurm controller")
        return answers[command[0]]

    jobs = {"7_0", "7_1", "7_2", "8"}
    assert jobs - ended(jobs, run) == left | ({"8"} if "sacct" not in answers else set())


def test_a_job_that_the_controller_no_longer_knows_has_ended() -> None:
    def run(command: Sequence[str]) -> str:
        said = "Slurm accounting storage is disabled" if command[0] == "sacct" else "Invalid job id specified"
        raise subprocess.CalledProcessError(1, command, stderr=f"slurm_load_jobs error: {said}")

    assert ended({"7_0", "7_1", "8"}, run) == {"7_0", "7_1", "8"}


def test_a_worker_that_the_queue_does_not_show_counts_until_it_is_known_to_have_ended(tmp_path: Path) -> None:
    answers = {"squeue": "7_0|8|renamed by the site|RUNNING|None\n", "scancel": ""}
    launcher = slurm(tmp_path, answers=answers)
    folders = [outstanding(launcher, f"{n}_0", f"{n}_1", order=n) for n in (7, 9, 11)]
    assert len(folders) == IN_VAIN
    hidden = launcher.poll()
    assert {(job.number, job.size, job.state) for job in hidden} == {
        (f"{n}_{task}", Size(), "pending") for n in (7, 9, 11) for task in (0, 1)
    }
    assert launcher.queued == 1 + 6
    assert launcher.in_vain(Size()) == "", "nobody says that they have ended"
    asked: list[Sequence[str]] = []
    launcher.run, run = (lambda command: asked.append(command) or run(command)), launcher.run
    launcher.cancel(hidden[:1])
    assert asked == [["scancel", f"--name={hidden[0].name}", hidden[0].number]], "the number may be another's by now"
    answers["sacct"] = "7_0|COMPLETED\n7_1|RUNNING\n9_0|FAILED\n9_1|FAILED\n11_0|FAILED\n11_1|TIMEOUT\n"
    assert [job.number for job in launcher.poll()] == ["7_1"]
    assert [(folder / OUTSTANDING).exists() for folder in folders] == [True, False, False]
    answers["sacct"] = answers["sacct"].replace("RUNNING", "OUT_OF_MEMORY")
    assert launcher.poll() == []
    assert "submitted 3 times and ended before they were ready" in launcher.in_vain(Size())


@pytest.mark.parametrize(
    ("signed_in", "said"),
    [
        (
            [{}, {}, {}],
            "ended before they were ready; no more are, until the sweep command is run again. The last said",
        ),
        ([{}, {"8": ""}, {}], ""),
        ([{"7": ""}, {"8": ""}, {"9": ""}], ""),
        ([{"7": "too long"}, {}, {"9": "too long"}], "found no stage that they could take; .* The last said: too long"),
        ([{"7": "too long"}, {}, {"9": "too long", "10": ""}], ""),
        ([{}, {}], ""),
    ],
    ids=["no-sign-in", "one", "all", "refused", "one-idle", "two-submissions"],
)
def test_a_worker_that_signed_in_and_left_idle_is_no_failure(
    tmp_path: Path, signed_in: list[dict[str, str]], said: str
) -> None:
    launcher = slurm(tmp_path, answers={"squeue": "", "sacct": "1_0|COMPLETED\n"})
    for order, files in enumerate(signed_in):
        folder = outstanding(launcher, "1_0", order=order)
        for number, text in files.items():
            (folder / f"{SIGNED_IN}{number}").write_text(text)
    assert launcher.poll() == []
    assert re.search(said, launcher.in_vain(Size())) if said else launcher.in_vain(Size()) == ""


class Nodes:
    """A cluster of nodes n1 and n2 whose jobs end as told, and the launcher of a sweep there."""

    def __init__(self, folder: Path, text: str = PROFILE) -> None:
        self.launcher = slurm(folder, text)
        self.launcher.run = self.run
        self.there = "n1\nn2\n"
        self.states: dict[str, str] = {}
        self.asked: list[Sequence[str]] = []

    def run(self, command: Sequence[str]) -> str:
        if command[0] == "sacct":
            return "".join(f"{job}|{state}|4G\n" for job, state in self.states.items())
        if command[0] == "sinfo":
            return self.there
        self.asked.append(command)
        return ""

    def started(
        self, job: str, node: str, state: str = "FAILED", log: str = "no python here", size: Size | None = None
    ) -> None:
        """A job that has begun on a node, signed in where it runs (RUNNING), else ended."""
        where = outstanding(self.launcher, *([job] if state == "RUNNING" else ()), size=size, order=len(self.states))
        self.states[job] = state
        (where / f"{job}_0_log.out").write_text(f"first words\n{log}\n")
        (where / f"{NODE}{job}").write_text(f"{node} {2 if size else 1} {job} 0\n")
        os.utime(where / f"{NODE}{job}", (int(job), int(job)))
        if state == "RUNNING":
            (where / f"{SIGNED_IN}{job}").touch()
        else:
            (where / OUTSTANDING).unlink()


def test_a_node_on_which_two_workers_in_a_row_failed_at_their_start_is_excluded(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, PROFILE.replace("mail-type: END", "exclude: 'n[7-8]'"))
    launcher = nodes.launcher
    nodes.started("1", "n1")
    assert launcher.exclude([]) == []
    assert launcher.request(Size()).parameters()["additional_parameters"]["exclude"] == "n[7-8]"
    nodes.started("2", "n1", log="execve(): python: No such file")
    jobs = [Job("9", Size(), "pending"), Job("8", Size(), "running"), Job("7", Size(4), "pending")]
    (said,) = launcher.exclude(jobs)
    assert re.match(
        r"node n1 is excluded: 2 workers in a row ended there before they were ready, the last, job 2: ", said
    )
    assert "execve(): python: No such file; to use it again, remove " in said
    assert nodes.asked == [["scontrol", "update", "JobId=9", "ExcNodeList=n[7-8],n1"]]
    assert launcher.request(Size()).parameters()["additional_parameters"]["exclude"] == "n[7-8],n1"
    assert "#SBATCH --exclude='n[7-8],n1'" in launcher.text(Size(), 1)
    assert launcher.exclude(jobs) == [said]
    assert len(nodes.asked) == 1, "those that wait know it"
    Path(said.rpartition("remove ")[2]).unlink()
    assert launcher.exclude(jobs) == []


@pytest.mark.parametrize("state", ["CANCELLED", "PREEMPTED", "TIMEOUT", "NODE_FAIL"])
def test_what_ended_a_job_from_outside_is_no_fault_of_its_node(tmp_path: Path, state: str) -> None:
    nodes = Nodes(tmp_path)
    for number in ("1", "2", "3"):
        nodes.started(number, "n1", state)
    assert nodes.launcher.exclude([]) == []


def test_a_worker_that_signs_in_clears_its_node_and_no_submission_is_in_vain_while_a_node_is_good(
    tmp_path: Path,
) -> None:
    nodes = Nodes(tmp_path)
    nodes.started("1", "n1")
    nodes.started("2", "n1", "RUNNING")
    nodes.started("3", "n1")
    assert nodes.launcher.exclude([]) == [], "two, but not in a row"
    for number in ("4", "5", "6"):
        nodes.started(number, "n1")
    assert len(nodes.launcher.exclude([])) == 1
    for folder in nodes.launcher.folder.glob(f"*/{OUTSTANDING}"):
        folder.unlink()
    assert "submitted 3 times" in nodes.launcher.in_vain(Size())
    nodes.started("7", "n2", "RUNNING")
    for number in ("8", "9", "10"):
        nodes.started(number, "n1")
    nodes.launcher.exclude([])
    for folder in nodes.launcher.folder.glob(f"*/{OUTSTANDING}"):
        folder.unlink()
    assert nodes.launcher.in_vain(Size()) == "", "n2 is good"


def test_what_a_requeued_job_did_before_clears_no_node(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    for number in ("1", "2"):
        nodes.started(number, "n1")
        (signed_in,) = (
            path.with_name(f"{SIGNED_IN}{number}") for path in nodes.launcher.folder.glob(f"*/{NODE}{number}")
        )
        signed_in.touch()
        os.utime(signed_in, (0, 0))
    assert len(nodes.launcher.exclude([])) == 1
    assert not nodes.launcher.starts(Size()).good


def test_failures_that_no_node_is_blamed_for_are_counted_beside_a_good_node(tmp_path: Path) -> None:
    """As where the store is not there: such a job writes nothing down."""
    nodes = Nodes(tmp_path)
    nodes.started("1", "n2", "RUNNING")
    nodes.started("2", "n1")
    nodes.launcher.exclude([])
    for order in range(10, 10 + IN_VAIN):
        (outstanding(nodes.launcher, order=order) / OUTSTANDING).unlink()
        said = nodes.launcher.in_vain(Size())
        assert said == "" or order == 9 + IN_VAIN
    assert "workers were submitted 4 times and ended before they were ready" in said


@pytest.mark.parametrize("silent", ["sacct", ""])
def test_nodes_are_judged_without_accounting(tmp_path: Path, silent: str) -> None:
    nodes = Nodes(tmp_path)

    def run(command: Sequence[str]) -> str:
        if command[0] == "sacct":
            said = "Connection refused" if silent else "Slurm accounting storage is disabled"
            raise subprocess.CalledProcessError(1, command, stderr=f"sacct: error: {said}")
        if command[0] == "scontrol":
            raise subprocess.CalledProcessError(1, command, stderr="slurm_load_jobs error: Invalid job id specified")
        return nodes.there

    nodes.launcher.run = run
    for number in ("1", "2"):
        nodes.started(number, "n1")
        said = "slurmstepd-n2: error: *** JOB 3 ON n2 CANCELLED AT 2026-11-30T17:47:44 ***"
        nodes.started(f"3{number}", "n2", log=said)
    (sentence,) = nodes.launcher.exclude([])
    assert sentence.startswith("node n1 is excluded"), "what was cancelled is no node's fault"


def test_a_shell_that_holds_a_job_of_another_cluster_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JOB_ID": "7", "JOB_NODELIST": "b1", "CLUSTER_NAME": "beta"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert slurm(tmp_path, "cluster: beta\n").cluster == "beta", "the controller next to it is not beta's"
    monkeypatch.setenv("SLURMD_NODENAME", "b1")
    assert slurm(tmp_path, "cluster: beta\n").cluster == ""


def test_what_becomes_ready_while_a_round_is_under_way_has_a_round_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.rounds.APART", 0.0)
    driver = Driver(write_project(tmp_path) / "tiny.yaml", tmp_path / "runs", None, Options("p.yaml"))
    driver.load()
    saved, asked, looked = as_saved(driver.plan, driver.sweep), list[str](), threading.Event()
    launcher = slurm(tmp_path, name="tiny")

    def look(command: Sequence[str]) -> str:
        if command[0] == "squeue":
            asked.append("squeue")
            if len(asked) == 1:  # the round has looked; a worker then frees others
                thread.start()
                until(looked.is_set)
        return ""

    def go(*given: Any) -> Round:
        seen = go_round(*given)
        looked.set()
        return seen

    def free() -> None:
        tell, stop = (lambda **said: None), threading.Event()
        round_in_turn(saved, driver.store, Observer(), lambda: launcher, tell, stop)

    thread = threading.Thread(target=free)
    launcher.run = look
    monkeypatch.setattr(Slurm, "submit", lambda self, size, number: [])
    monkeypatch.setattr("harness.rounds.go_round", go)
    go_round(saved, driver.store, launcher, Observer())
    thread.join()
    assert asked == ["squeue"] * 2


def test_of_two_ticks_on_two_hosts_one_submits_and_a_lost_hosts_round_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.rounds.LENGTH", 0.3)
    driver = Driver(write_project(tmp_path) / "tiny.yaml", tmp_path / "runs", None, Options("p.yaml"))
    driver.load()
    saved, launcher, said = as_saved(driver.plan, driver.sweep), slurm(tmp_path, name="tiny"), list[str]()
    submitted, others = list[str](), list[Round]()

    def tick() -> Round:
        return go_round(saved, driver.store, launcher, Observer(), wait=said.append)

    def submit(self: Slurm, size: Size, number: int) -> list[str]:
        submitted.append(str(size))
        if len(submitted) == 1:
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr("harness.claims.machine", lambda: ("another", "boot", "space"))
                others.append(tick())
        return [f"job {len(submitted)}"]

    monkeypatch.setattr(Slurm, "submit", submit)
    launcher.run = lambda command: ""
    seen = tick()
    assert (seen.submitted, len(submitted)) == (["job 1"], 1)
    assert [(other.elsewhere, other.submitted) for other in others] == [(True, [])]
    (sentence,) = said
    assert sentence.startswith(f"waiting for process {os.getpid()} on ")
    folder = Folder.listed(driver.store.sweep("tiny") / "rounds")
    assert take(folder, folder.generation, replace(Owner.me(lease=0.3), host="lost"))
    assert tick().submitted == ["job 2"]
    assert said[1].startswith(f"waiting for process {os.getpid()} on lost")


@pytest.mark.usefixtures("_commands")
def test_a_refused_submission_is_none_whose_workers_failed(tmp_path: Path) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: Invalid qos specification' >&2; exit 1\n")
    launcher = slurm(tmp_path, "qos: nope\n")
    for _ in range(IN_VAIN):
        with pytest.raises(UserError, match=r"qos: nope: the scheduler refuses"):
            launcher.submit_argv(Size(), 1, launcher.command(Size()))
    assert not launcher.in_vain(Size())
    assert not list(launcher.folder.glob(f"*/{OUTSTANDING}")), "there is no job to wait for"


@pytest.mark.parametrize("answer", ["echo Submitted batch job 7", "echo 'Socket timed out' >&2; exit 1"])
@pytest.mark.usefixtures("_commands")
def test_a_submission_is_written_down_though_the_scheduler_falls_silent_then(tmp_path: Path, answer: str) -> None:
    """A node is excluded, so that each request asks for those there are."""
    launcher = slurm(tmp_path)
    launcher.run = shell
    starts = launcher.starts(Size())
    starts.folder.mkdir(parents=True)
    (starts.folder / "n1").write_text(json.dumps({"failed": ["one", "two"]}))
    silent = "if [ -e fell ]; then echo 'Unable to contact slurm controller' >&2; exit 1; fi\n"
    for name, does in {"sinfo": f"{silent}echo n1; echo n2", "sbatch": f"touch fell; {answer}"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\ncd {tmp_path}\n{does}\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(SchedulerUnavailable, match="sbatch") if "exit 1" in answer else contextlib.nullcontext():
        launcher.submit_argv(Size(), 1, ["harness.worker"])
    (path,) = launcher.folder.glob(f"*/{OUTSTANDING}")
    assert json.loads(path.read_text())["jobs"] == ([] if "exit 1" in answer else ["7"])


def test_a_round_that_was_overtaken_while_it_asked_submits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(write_project(tmp_path) / "tiny.yaml", tmp_path / "runs", None, Options("p.yaml"))
    driver.load()
    launcher, submitted, overtaken = slurm(tmp_path, name="tiny"), list[str](), [True]

    def look(command: Sequence[str]) -> str:
        if command[0] == "squeue" and overtaken[0]:
            folder = Folder.listed(driver.store.sweep("tiny") / "rounds")
            assert take(folder, folder.generation, Owner.me())
            end_attempt(folder, folder.generation + 1, {"outcome": "released"})
        return ""

    launcher.run = look
    monkeypatch.setattr(Slurm, "submit", lambda self, size, number: submitted.append(str(size)) or ["job 1"])
    for overtaken[0], jobs in ((True, []), (False, ["job 1"])):
        seen = go_round(as_saved(driver.plan, driver.sweep), driver.store, launcher, Observer())
        assert (seen.submitted, len(submitted)) == (jobs, len(jobs))


def test_where_no_node_would_be_left_none_is_excluded(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    for number, node in zip("1234", ("n1", "n1", "n2", "n2"), strict=True):
        nodes.started(number, node)
    assert nodes.launcher.exclude([]) == []
    nodes.there += "n3\n"
    assert len(nodes.launcher.exclude([])) == 2


def test_of_several_nodes_the_one_is_blamed_on_which_srun_says_that_it_failed(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    said = "srun: error: n2: task 1: Exited with exit code 2\nsrun: error: n1: task 0: Terminated"
    for number in ("1", "2"):
        nodes.started(number, "n1", log=said, size=Size(8))
    (sentence,) = nodes.launcher.exclude([])
    assert sentence.startswith("node n2 is excluded")
    nodes.started("3", "n1", log="killed", size=Size(8))
    nodes.started("4", "n1", log="killed", size=Size(8))
    assert nodes.launcher.exclude([]) == [sentence], "nobody knows which"


def test_a_job_writes_down_its_node_before_anything_else(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    job = {"SLURM_JOB_ID": "9", "SLURMD_NODENAME": "n3", "SLURM_JOB_NUM_NODES": "1"}
    for number, more in (("9", {}), ("12", {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3"})):
        environment = {**job, "SLURM_JOB_ID": number, **more}
        subprocess.run(["/bin/bash", "-c", shell_line(folder)], env=environment, check=True)
    assert (folder / f"{NODE}9").read_text() == "n3 1 9 0\n"
    assert (folder / f"{NODE}12").read_text() == "n3 1 9_3 0\n"
    text = slurm(tmp_path).request(Size(), folder).text(1)
    assert next(line for line in text.splitlines() if line and not line.startswith("#")) == shell_line(folder)


def run_worker(folder: Path, number: int, *more: str) -> tuple[str, str]:
    """Run a worker as a job until it leaves; return what it has signed in with, and what it printed."""
    (folder / "submission").mkdir(exist_ok=True)
    end = str(int(time.time()) + 3600)
    told = ["--device", "cpu", "--sign-in", str(folder / "submission"), *more]
    done = subprocess.run(
        [sys.executable, "-m", "harness.worker", "tiny", *told],
        cwd=folder,
        env={**environment(), "SLURM_JOB_ID": str(number), "SLURM_JOB_END_TIME": end},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return (folder / "submission" / f"{SIGNED_IN}{number}").read_text(), done.stdout


def test_a_worker_signs_in_before_it_looks_for_work_and_says_what_it_could_not_take(tmp_path: Path) -> None:
    from PIL import Image

    for path in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "pictures" / path).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "pictures" / path / "1.png")
    grid = (write_project(tmp_path) / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(grid.replace("dataset: digits", "dataset: imagefolder:./pictures"))
    save_whole_plan(tmp_path)
    (tmp_path / "pictures").rename(tmp_path / "away")
    said, printed = run_worker(tmp_path, 7)
    assert said.endswith(f"{tmp_path / 'pictures'} is not on this machine")
    assert f"{said}; left to others" in printed
    (tmp_path / "away").rename(tmp_path / "pictures")
    assert run_worker(tmp_path, 8)[0] == "", "it took stages"
    assert run_worker(tmp_path, 9)[0] == "", "nothing was left"


@pytest.mark.parametrize(
    ("complaint", "said"),
    [
        ("sbatch: error: invalid partition specified: gpu", "p.yaml:2: partition: gpu: the scheduler refuses: invalid"),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "qos (not set): the scheduler"),
        ("Batch job submission failed: Invalid job array specification", "array (not set): "),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", "submit (not set): "),
        ("Requested operation is presently disabled for requeue", "set requeue: false"),
        ("No cluster 'beta' known by database.; an invalid entry for --cluster", "`sacctmgr show clusters format="),
    ],
)
def test_a_refusal_names_the_line_and_the_remedy(tmp_path: Path, complaint: str, said: str) -> None:
    assert said in explain(complaint, slurm(tmp_path).document)


NODES = """\
main*|1|8|8000|gpu:a100:2(S:0),nvme:1|big,ib|infinite|1-infinite
main*|2|4|8000|gpu:v100:1|(null)|infinite|1-infinite
main*|1|8|16000|(null)|(null)|infinite|1-infinite
short|1|8|8000|gpu:2|big|30:00|1-4
"""
ASKED = {
    "cpus: 9": ("cpus: 9", "one process asks for 9 CPUs, a node of main has 8 at most"),
    "cpus: 4\nworld: 4": ("cpus: 4", "4 processes on a node ask for 16 CPUs, a node of main has 8 at most"),
    "gpus: 3": ("gpus: 3", "one process asks for 3 GPUs, a node of main has 2 at most"),
    "gpus: 2\ngpu_type: v100": ("gpus: 2", "a node of main has 1 at most"),
    "gpus: 1\ngpu_type: h100": ("gpu_type: h100", "no node of main has GPUs of this type; there are a100, v100"),
    "gpus: 1\ngpu_type: a100\npartition: short": ("gpu_type: a100", "there are some without a type"),
    "memory: 20G": ("memory: 20G", "one process asks for 20480 MB of memory, a node of main has 16000 at most"),
    "memory: 9G\ngpus: 1": ("memory: 9G", "nodes of main with gpus as asked have 8000 MB of memory at most"),
    "cpus: 5\ngpus: 1\ngpu_type: v100": ("cpus: 5", "nodes of main with gpu_type as asked have 4 CPUs at most"),
    "constraint: big&fast": ("constraint: big&fast", "no node of main has such features; there are big, ib"),
    "constraint: big|fast\ncpus: 8": ("partition: main", "no node of it has so many"),
    "per_node: 1\nworld: 5": ("per_node: 1", "a job asks for 5 nodes, and main has no more than 4 of that kind"),
    "per_node: 1\nworld: 2\ngpus: 2": ("per_node: 1", "and main has no more than 1 of that kind"),
    "per_node: 1\nworld: 5\npartition: short\ntime: 9": ("per_node: 1", "one of short may have 4"),
    "time: 40\npartition: short": ("time: 40", "its time is over the partition's limit: 30 minutes"),
    "time: UNLIMITED\npartition: short": ("time: UNLIMITED", "limit: 30 minutes"),
    "time: null\npartition: short": ("partition: short", "no node of it has so many"),
    "larger: [{memory: 30G}]\nstep: 1": ("larger.0.memory: 30G", "asks for 30720 MB"),
    "larger: [{memory: 9G}]\ncpus: 9\nstep: 1": ("cpus: 9", "a node of main has 8 at most"),
    "partition: elsewhere\ncpus: 99": ("partition: elsewhere", "no node of it has so many"),
}
"""Of each profile: the line that no node satisfies, and the words for it."""


@pytest.mark.parametrize("text", ASKED)
def test_what_no_node_satisfies_is_found_among_what_is_asked(tmp_path: Path, text: str) -> None:
    given = dict(line.split(": ", 1) for line in text.splitlines())
    size = Size(int(given.pop("world", "1")), int(given.pop("step", "0")))
    given.setdefault("partition", "main")
    launcher = slurm(tmp_path, "".join(f"{key}: {value}\n" for key, value in given.items()), {"sinfo": NODES})
    line, words = ASKED[text]
    said = launcher.never(Job("7", size, "pending", "PartitionConfig"))
    assert f": {line}: " in said
    assert words in said
    assert f"p.yaml:{1 + list(given).index(line.partition('.')[0].partition(':')[0])}: " in said


def test_the_default_partition_is_compared_with_where_none_is_named(tmp_path: Path) -> None:
    launcher = slurm(tmp_path, "cpus: 9\n", {"sinfo": NODES})
    said = launcher.never(Job("7", Size(), "pending", "PartitionConfig"))
    assert said.endswith("one process asks for 9 CPUs, a node of the default partition has 8 at most (PartitionConfig)")
    assert not launcher.never(Job("7", Size(), "pending", "Resources"))


def test_nodes_that_nobody_told_of_are_asked_for_again(tmp_path: Path) -> None:
    launcher, waits = (
        slurm(tmp_path, "cpus: 9\n", answers := {"squeue": ""}),
        Job("7", Size(), "pending", "PartitionConfig"),
    )
    assert "no node of it has so many" in launcher.never(waits)
    answers["sinfo"] = NODES
    assert "a node of the default partition has 8 at most" in launcher.never(waits)


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("time: null", 0),
        ("time: UNLIMITED", math.inf),
        ("time: 30", 1800),
        ("time: null\nlarger: [{time: 50}]", 3000),
    ],
)
def test_a_time_that_is_the_partitions_own_is_not_known_to_be_more(tmp_path: Path, text: str, most: float) -> None:
    profile = slurm(tmp_path, f"{text}\n").profile
    assert profile.most["time"] == most
    assert (profile.step_for(600, "time") is None) == (most == 0), "what is not tried again is counted as a failure"


@pytest.mark.parametrize(
    ("complaint", "said"),
    [
        ("Invalid wckey specification", "p.yaml:3: sbatch.wckey: theirs: the scheduler refuses"),
        ("Invalid --mail-type specification", "p.yaml:4: sbatch.mail_type: SOON: the scheduler refuses"),
        ("sbatch: unrecognized option '--foo=1'", "p.yaml:5: sbatch.foo: 1: the scheduler refuses: unrecognized"),
        ("Invalid generic resource (gres) specification", "p.yaml:6: sbatch.gres: nvme:1: the scheduler refuses"),
        ("Use of --mem is not permitted", "`memory: null` leaves it out"),
        ("unrecognized option '--gpus-per-node=2'", "p.yaml:1: gpus: 2: the scheduler refuses: unrecognized"),
        ("unrecognized option '--gpus-per-node=2'", "`gpu_option: gres` asks for them otherwise"),
        ("Requested reservation is invalid", "sbatch.reservation (not set): the scheduler refuses"),
        ("first line\n  second  line\n", "refuses: first line; second line"),
    ],
)
def test_an_option_of_the_sbatch_block_is_named_by_its_own_line(tmp_path: Path, complaint: str, said: str) -> None:
    lines = ["gpus: 2", "sbatch:", "  wckey: theirs", "  mail_type: SOON", "  foo: 1", "  gres: nvme:1"]
    lines += ["larger:", "- {memory: 9G, sbatch: {wckey: ours}}"]
    document = slurm(tmp_path, "\n".join(lines) + "\n").document
    assert said in explain(complaint, document)
    assert "p.yaml:8: larger.0.sbatch.wckey: ours: " in explain("Invalid wckey specification", document, 1)


def test_reasons_that_pass_are_not_hopeless(tmp_path: Path) -> None:
    document = slurm(tmp_path).document
    assert not any(hopeless(reason, document) for reason in ("Resources", "Priority", "BeginTime", "AssocGrpCpuLimit"))
    assert "partition's limit" in hopeless("PartitionTimeLimit", document)
    assert "gpus: 1: one job of this kind is over a limit" in hopeless("QOSMaxGRESPerJob", document)
    assert "cpus: 8: one job of this kind is under a limit" in hopeless("QOSMinCpuNotSatisfied", document)
    assert "per_node: 4: one job of this kind is over a limit" in hopeless("AssocMaxNodePerJobLimit", document)


def test_without_slurm_one_is_told_where_to_go(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="squeue is not on the PATH; run this on a login node"):
        slurm(tmp_path).poll()


def test_the_doctor_looks_at_this_machine(tmp_path: Path) -> None:
    found = {finding.name: finding for finding in look(tmp_path / "runs", str(tmp_path))}
    assert {"machine", "python", "torch", "GPUs", "store", "scratch", "clock", "Slurm"} <= set(found)
    assert {"Ray", "W&B", "data", "convolutions"} <= set(found)
    assert found["store"].grade != "bad"
    assert all(finding.remedy for finding in found.values() if finding.grade != "ok")
    (tmp_path / "file").write_text("")
    bad = next(finding for finding in look(tmp_path / "file") if finding.name == "store")
    assert (bad.grade, "cannot be written" in bad.said) == ("bad", True)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("told", "code", "grades", "said"),
    [
        (["relied", [], "avoided", []], 0, ["ok"], "every kind"),
        (["relied", [], "avoided", ["1x1: wrong by 40 %"]], 0, ["ok", "note"], "1x1: wrong by 40 %"),
        (["relied", [], "avoided"], -6, ["ok", "note"], "died by SIGABRT"),
        (["relied", [], "avoided"], -signal.SIGPROF, ["ok", "note"], "did not end and was ended"),
        (
            ["relied", ["3x3: by 2 %", "5x5"], "avoided"],
            -11,
            ["bad", "note"],
            "2 kinds wrongly.*: 3x3: by 2 %",
        ),
        (["relied"], -11, ["bad"], "died by SIGSEGV"),
        (["relied"], 1, ["bad"], "ended with code 1 ValueError: no"),
        ([], -4, ["bad"], "were not tried: the process died by SIGILL"),
    ],
)
def test_the_doctor_says_what_torch_computes_wrongly(told: list[Any], code: int, grades: list[str], said: str) -> None:
    found = list(convolutions(told, code, "Traceback:\nValueError: no\n"))
    assert [finding.grade for finding in found] == grades
    assert re.search(said, " ".join(finding.said for finding in found))
    assert all(finding.remedy for finding in found if finding.grade != "ok")


# Machines


def test_this_machine_serves_groups_beside_single_workers() -> None:
    assert [slot.argv for slot in slots(Machine(8, 1, "cpu"), [1, 4, 2])] == [
        (),
        (),
        ("--world", "4"),
        ("--world", "2"),
    ]
    gpus = Machine(4, 1, "cuda", ("0", "1", "2", "3"))
    assert [(slot.argv, slot.visible) for slot in slots(gpus, [1, 2])] == [
        ((), "0"),
        ((), "1"),
        (("--world", "2"), "2,3"),
    ]
    assert [(slot.argv, slot.visible) for slot in slots(Machine(1, 1, "cuda", ("0",)), [4])] == [(("--as-one",), "0")]


# Jobs and their records


def test_a_job_is_told_from_its_environment() -> None:
    assert job({}) == ""
    assert job({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}) == "7.2"
    assert nodes({"SLURM_NTASKS": "4"}) == (1, 0), "outside a step, as in an interactive allocation"
    assert nodes({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "3"}) == (4, 3)


@pytest.mark.parametrize(
    ("environment", "here"),
    [
        ({}, True),  # a container that was given the job's number alone
        ({"SLURM_JOB_NODELIST": "n[1-3]"}, False),  # a salloc shell on the login node
        ({"SLURM_JOB_NODELIST": "n[1-3]", "SLURMD_NODENAME": "n2"}, True),
        ({"SLURM_JOB_NODELIST": "n3", "SLURMD_NODENAME": "n1"}, False),  # salloc within a step of another job
        ({"SLURM_JOB_NODELIST": "a-[008-011,20],n1", "SLURMD_NODENAME": "a-010"}, True),
        ({"SLURM_JOB_NODELIST": "a-[008-011,20],n1", "SLURMD_NODENAME": "a-12"}, False),
        ({"SLURM_JOB_NODELIST": "a-[008-011,20],n1", "SLURMD_NODENAME": "a-20"}, True),
        ({"SLURM_JOB_NODELIST": "a-[008-011,20],n1", "SLURMD_NODENAME": "n11"}, False),
        ({"SLURM_JOB_NODELIST": "rack[0-1]n[2-3]", "SLURMD_NODENAME": "rack1n3"}, True),
        ({"SLURM_JOB_NODELIST": "rack[0-1]n[2-3]", "SLURMD_NODENAME": "rack3n1"}, False),
        ({"SLURM_JOB_NODELIST_HET_GROUP_0": "n1", "SLURM_JOB_NODELIST_HET_GROUP_1": "n2"}, False),
        ({"SLURM_JOB_NODELIST": f"x1,{socket.gethostname().partition('.')[0]}"}, True),  # one machine is both
    ],
)
def test_a_salloc_shell_on_the_login_node_is_no_part_of_its_job(environment: dict[str, str], here: bool) -> None:
    environment = {**environment, "SLURM_JOB_ID": "7", "SLURM_JOB_START_TIME": "1", "SLURM_JOB_END_TIME": "1"}
    assert job(environment) == ("7.0" if here else "")
    assert (time_limit(lambda command: "", environment) is not None) == here
    assert worker_environment(environment).get("SLURM_JOB_ID") == ("7" if here else None)


def test_the_end_of_a_job_is_asked_for_where_the_environment_lacks_it() -> None:
    assert time_limit(lambda command: "", {}) is None
    asked = time_limit(lambda command: "1000 99999999999\n", {"SLURM_JOB_ID": "7"})
    assert (asked.whole, asked.left > 1e9, asked.notice) == (99999998999, True, 90 + 60)
    assert time_limit(lambda command: "NONE NONE", {"SLURM_JOB_ID": "7"}) is None
    told = {"SLURM_JOB_ID": "7", "SLURM_JOB_START_TIME": "1", "SLURM_JOB_END_TIME": "121"}
    assert time_limit(lambda command: "", told) == TimeLimit(120, 0.0)
    assert TimeLimit(120, 0.0).notice == 10 + 60


@pytest.mark.parametrize(("failures", "known"), [(2, True), (99, False)])
def test_a_worker_asks_for_its_end_again_where_the_scheduler_is_silent(
    failures: int, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(allocation, "PATIENCE", 0.2)
    asked, told = list[Sequence[str]](), list[str]()

    def run(command: Sequence[str]) -> str:
        asked.append(command)
        if len(asked) <= failures:
            raise subprocess.CalledProcessError(1, command, stderr="Unable to contact slurm controller")
        return "1000 99999999999\n"

    alone = {"SLURM_JOB_ID": "7"}
    assert time_limit(run, alone) is None
    assert len(asked) == 1
    assert (time_limit(run, alone, told.append) is not None) == known
    assert "the scheduler does not answer (squeue: Unable to contact slurm controller)" in told[0]
    assert told[-1].endswith("this worker does not know its time limit") != known


SACCT = """\
7|PREEMPTED|1500M
7.batch|CANCELLED|
7.0|CANCELLED|
7|FAILED|1500M
7.batch|FAILED|
7.0|OUT_OF_MEMORY|
"""


@pytest.mark.parametrize(
    ("name", "told", "expected"),
    [
        ("7.0", {"sacct": SACCT}, Fate("PREEMPTED", 1500 * 2**20)),
        ("7.1", {"sacct": SACCT}, Fate("OUT_OF_MEMORY", 1500 * 2**20)),
        ("7.2", {"sacct": SACCT}, None),
        ("7.0", {"sacct": "7|RUNNING|4Gn\n"}, None),
        ("7.0", {"sacct": "7|CANCELLED by 0|4Gn\n"}, Fate("CANCELLED", 4 * 2**30)),
        ("7.0", {"scontrol": "JobId=7 Restarts=1 JobState=RUNNING"}, Fate("REQUEUED")),
        ("7.0", {"sacct": "7|FAILED|1.5Mc\n"}, Fate("FAILED", 3 * 2**19)),
        ("7.0", {"sacct": "7|FAILED|0n\n"}, Fate("FAILED")),
        ("7.1", {"scontrol": "JobId=7 Restarts=1 JobState=NODE_FAIL MinMemoryNode=2G"}, Fate("NODE_FAIL", 2 * 2**30)),
        ("7.0", {}, None),
    ],
)
def test_the_fate_of_a_job(name: str, told: dict[str, str], expected: Fate | None) -> None:
    def run(command: Sequence[str]) -> str:
        if command[0] not in told:
            raise subprocess.CalledProcessError(1, command)
        return told[command[0]]

    assert fate(name, run) == expected


@pytest.mark.parametrize(
    ("said", "starved", "name", "cause"),
    [
        ("7|OUT_OF_MEMORY|2G", False, "failed", "oom"),
        ("7|OUT_OF_MEMORY|2G", True, "lost", ""),
        ("7|PREEMPTED|2G", False, "stopped", ""),
        ("7|FAILED|2G", False, "lost", ""),
        ("7|TIMEOUT|2G", False, "stopped", ""),
    ],
)
def test_a_lost_stage_is_explained_by_its_jobs_record(
    tmp_path: Path, said: str, starved: bool, name: str, cause: str
) -> None:
    folder = Store(tmp_path).folder("train", "ab" * 16)
    owner = Owner("elsewhere", "b", "s", (Process(1, 1),), "7.0", starved=starved)
    assert take(folder, 0, owner)
    clock = iter([0.0, LEASE / 3, 2 * LEASE / 3, LEASE + 1, LEASE + 2, LEASE + 3])
    observer = Observer(LEASE, lambda: next(clock))
    folder = Store(tmp_path).folder("train", "ab" * 16)
    while state_of(folder, observer).name == "running":
        pass
    tell_loss(folder, 1, lambda command: said if command[0] == "sacct" else "")
    now = state_of(Store(tmp_path).folder("train", "ab" * 16), observer)
    assert (now.name, now.cause) == (name, cause)


def test_a_lost_workers_job_is_looked_up_on_its_own_cluster(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def run(command: Sequence[str]) -> str:
        asked.append(list(command[:3]))
        return "ClusterName = alpha\n" if command[0] == "scontrol" else "7|PREEMPTED|2G"

    for number, cluster in enumerate(("beta", "alpha", "")):
        folder = Store(tmp_path).folder("train", f"a{number}" * 16)
        assert take(folder, 0, Owner("elsewhere", "b", "s", (Process(1, 1),), "7.0", cluster=cluster))
        assert tell_loss(folder, 1, run)
    assert [words[1:] for words in asked if words[0] == "sacct"] == [["-M", "beta"], ["--jobs", "7"], ["--jobs", "7"]]


def test_a_job_started_anew_takes_over_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Store(tmp_path).folder("train", "ab" * 16)
    take(folder, 0, Owner("elsewhere", "b", "s", (Process(1, 1),), "7.0"))
    observer = Observer()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert state_of(Store(tmp_path).folder("train", "ab" * 16), observer).name == "running"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert state_of(Store(tmp_path).folder("train", "ab" * 16), observer).name == "lost"


# Shared stores


@pytest.mark.parametrize(
    ("mode", "umask", "said"),
    [
        (0o755, 0o022, []),
        (0o2775, 0o002, []),
        (0o2775, 0o022, ["umask 022 makes files that colleagues cannot write"]),
        (0o775, 0o002, ["not all of it is the group's to write, with the setgid bit"]),
        (0o2777, 0o002, ["everybody on this machine may write there"]),
    ],
)
def test_a_store_that_others_may_write_is_looked_at(
    tmp_path: Path, mode: int, umask: int, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grp.getgrgid", lambda number: grp.struct_group(("lab", "x", number, [])))
    (tmp_path / "stages").mkdir()
    for folder in (tmp_path, tmp_path / "stages"):
        folder.chmod(mode)
    before = os.umask(umask)
    try:
        found = list(shared(tmp_path))
    finally:
        assert os.umask(before) == umask, "looking changes nothing"
    assert len(found) == len(said)
    assert all(words in one.said and one.remedy for words, one in zip(said, found, strict=True))


def test_a_group_of_ones_own_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o775)
    name = pwd.getpwuid(os.getuid()).pw_name
    os.chown(tmp_path, -1, pwd.getpwuid(os.getuid()).pw_gid)
    for members, notes in (([], 0), (["colleague"], 1)):
        monkeypatch.setattr("grp.getgrgid", lambda number, m=members: grp.struct_group((name, "x", number, m)))
        assert len([one for one in shared(tmp_path) if "setgid" in one.said]) == notes
