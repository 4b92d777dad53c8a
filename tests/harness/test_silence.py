"""A scheduler that does not answer, jobs that are held, and what is said of jobs that wait. No Slurm needed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from harness import allocation, cli, following
from harness.allocation import insist
from harness.cancel import cancel
from harness.claims import Observer
from harness.display import Display
from harness.driver import Driver
from harness.errors import SchedulerUnavailable, UserError
from harness.following import Following
from harness.launch import Job, Size
from harness.launch.profiles import Profile
from harness.launch.remedies import hopeless, waits
from harness.launch.slurm import IN_VAIN, Slurm
from harness.launch.slurm_request import own_pickle
from harness.launch.starts import NODE, OUTSTANDING
from harness.launching import refuse_login_node, run_elsewhere
from harness.options import Options
from harness.planfile import SavedPlan, as_saved
from harness.rounds import CANCELLED, Round, answered_round, go_round
from tests.conftest import environment, save_whole_plan, write_project

SILENT = [
    "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
    "slurm_load_jobs error: Zero Bytes were transmitted or received",
    "scancel: error: Kill job error on job id 1: Connection refused",
    "error: If munged is up, restart with --num-threads=10",
    "sbatch: error: Munge encode failed: Failed to access socket",
    "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
    "slurm_load_jobs error: Slurm backup controller in standby mode",
    "",
]
COMMAND = """#!/bin/sh
[ "${0##*/}" = sbatch ] && echo sbatch >> "$(dirname "$0")/submitted"
[ -e "$0.says" ] && { cat "$0.says" >&2; exit 1; }
case "${0##*/}" in
sbatch) echo "Submitted batch job 7";;
scontrol) echo "MaxArraySize = 11";;
squeue|sinfo) cat "$0.shows" 2>/dev/null;;
esac
exit 0
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands, each of which fails with the words in a file of its own where there is one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "sacct", "scancel", "sinfo", "srun"):
        (folder / name).write_text(COMMAND)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(allocation, "FIRST_PAUSE", 0.01)
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[Driver, SavedPlan, Slurm]:
    driver = Driver(write_project(tmp_path) / "tiny.yaml", tmp_path / "runs", None, Options("p.yaml"))
    driver.load()
    saved = as_saved(driver.plan, driver.sweep)
    driver.store.sweep("tiny").mkdir(parents=True)
    return driver, saved, Slurm(Profile(workers=2), driver.store, "tiny", ["tiny"])


def silence(folder: Path, *names: str, words: str = SILENT[0]) -> None:
    for name in names:
        (folder / f"{name}.says").write_text(words)


def listed(launcher: Slurm, *rows: tuple[str, str, str], since: int = 1000) -> str:
    """What squeue prints of the sweep's workers: number, state, reason."""
    name = f"{launcher.mark}.{launcher.bound}.{Size()}.{launcher.tag(Size())}"
    return "".join(f"{number}|{number}|{name}|{state}|{reason}|{since}\n" for number, state, reason in rows)


@pytest.mark.parametrize("words", SILENT)
def test_a_call_that_nobody_answers_is_no_mistake_whatever_the_command(
    commands: Path, sweep: tuple[Driver, SavedPlan, Slurm], words: str
) -> None:
    launcher = sweep[2]
    for name, call in dict[str, Callable[[], object]](
        squeue=launcher.poll,
        scontrol=lambda: list(launcher.submit(Size(), 1)),
        sbatch=lambda: launcher.submit_argv(Size(), 1, ["true"]),
        scancel=lambda: launcher.cancel([Job("7", Size(), "running")]),
    ).items():
        silence(commands, name, words=words)
        with pytest.raises(SchedulerUnavailable, match=rf"^the scheduler does not answer \({name}: .+\)$"):
            call()
        (commands / f"{name}.says").unlink()
    assert list(launcher.submit(Size(), 1)) == ["job 7: 1 worker"]
    silence(commands, "sacct", words=words)  # accounting is asked first, then the controller
    assert [(job.number, job.state) for job in launcher.poll()] == [("7", "pending")]


def test_a_call_that_takes_too_long_is_no_answer(sweep: tuple[Driver, SavedPlan, Slurm]) -> None:
    def run(command: Sequence[str]) -> str:
        raise subprocess.TimeoutExpired(command, 60)

    sweep[2].run = run
    with pytest.raises(SchedulerUnavailable, match=r"\(squeue: nothing within 60 s\)"):
        sweep[2].poll()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("squeue", "squeue: error: No cluster 'beta' known by database."),
        ("sbatch", "sbatch: error: Batch job submission failed: Invalid qos specification"),
        ("sbatch", "sbatch: error: jobs are welcome on weekdays only"),
    ],
)
def test_a_refusal_is_a_mistake(commands: Path, sweep: tuple[Driver, SavedPlan, Slurm], name: str, words: str) -> None:
    silence(commands, name, words=words)
    with pytest.raises(UserError, match="the scheduler refuses: "):
        sweep[2].poll() if name == "squeue" else list(sweep[2].submit(Size(), 1))
    assert not list(sweep[2].folder.glob("w*")), "a submission that was refused is no start that failed"


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (SILENT[0], "does not answer: slurm_load_jobs error: Unable to contact"),
        ("sinfo: fatal: Could not establish a configuration source", ""),
        (None, "Slurm answers"),
    ],
)
def test_a_login_node_is_one_while_its_controller_is_silent(commands: Path, words: str | None, refused: str) -> None:
    if words is not None:
        silence(commands, "sinfo", words=words)
    with pytest.raises(UserError, match=refused) if refused else nullcontext():
        refuse_login_node()


def test_what_sbatch_may_have_submitted_is_looked_for_before_anything_is_submitted_again(
    commands: Path, sweep: tuple[Driver, SavedPlan, Slurm]
) -> None:
    driver, saved, launcher = sweep
    silence(commands, "sbatch", words=SILENT[1])
    said = list[str]()

    def go() -> Round:
        seen = go_round(saved, driver.store, launcher, Observer())
        (commands / "squeue.shows").write_text(listed(launcher, ("9_0", "RUNNING", "None"), ("9_1", "RUNNING", "None")))
        return seen

    seen = answered_round(go, "later", said.append)
    assert (commands / "submitted").read_text().count("sbatch") == 1
    assert [job.number for job in seen.jobs] == ["9_0", "9_1"]
    assert len(said) == 1
    assert not launcher.in_vain(Size())


def test_a_job_whose_submission_was_not_answered_has_what_submitit_gives_it(tmp_path: Path) -> None:
    folder = tmp_path / "a user's runs"
    folder.mkdir()
    (folder / f"{'0a' * 16}.pkl").write_text("argv")
    for given, file in (({"SLURM_JOB_ID": "7"}, "7"), ({"SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "2"}, "8_2")):
        subprocess.run(["/bin/bash", "-ec", own_pickle(folder)], env=given, check=True)
        assert (folder / f"{file}_submitted.pkl").read_text() == "argv"


def test_a_submission_that_ends_in_the_middle_is_none_whose_workers_failed(
    commands: Path, sweep: tuple[Driver, SavedPlan, Slurm]
) -> None:
    launcher = sweep[2]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background of a script ignores it
    sbatch = commands / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("case", "kill -INT $PPID\ncase", 1))
    for number in range(IN_VAIN):
        with pytest.raises(KeyboardInterrupt):
            launcher.submit_argv(Size(), 1, launcher.command(Size()))
        for folder in launcher.folder.glob("w*"):  # sbatch was answered, and its job runs
            (folder / f"{NODE}{number}").write_text(f"n1 1 {number} 0")
    assert not launcher.exclude([])
    assert not launcher.in_vain(Size())


def test_a_job_whose_number_is_not_told_keeps_what_it_needs(
    commands: Path, sweep: tuple[Driver, SavedPlan, Slurm]
) -> None:
    launcher = sweep[2]
    sbatch = commands / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("Submitted batch job 7", "submitted: 7"))
    with pytest.raises(SchedulerUnavailable, match=r'sbatch names no job, .*: Could not make .* "submitted: 7"$'):
        launcher.submit_argv(Size(), 1, launcher.command(Size()))
    (folder,) = launcher.folder.glob("w*")
    assert list(folder.glob("*.pkl"))
    assert json.loads((folder / OUTSTANDING).read_text())["jobs"] == []


def test_jobs_are_kept_though_nobody_says_any_more_which_nodes_there_are(
    commands: Path, sweep: tuple[Driver, SavedPlan, Slurm]
) -> None:
    launcher = sweep[2]
    starts = launcher.starts(Size())
    starts.folder.mkdir(parents=True)
    (starts.folder / "n1").write_text(json.dumps({"failed": ["job 1: x", "job 2: x"]}))
    sbatch = commands / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("case", 'echo "timed out" > "$(dirname "$0")/sinfo.says"\ncase', 1))
    assert list(launcher.submit(Size(), 1)) == ["job 7: 1 worker"]
    assert [job.number for job in launcher.poll()] == ["7"]
    assert "#SBATCH --exclude=n1" in launcher.text(Size(), 1)


def test_a_command_gives_up_after_a_minute_and_says_what_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said, asked, now = list[str](), list[float](), [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def ask() -> None:
        asked.append(now[0])
        raise SchedulerUnavailable("the scheduler does not answer (squeue: x)")

    monkeypatch.setattr(allocation, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    with pytest.raises(SchedulerUnavailable, match=r"\(squeue: x\); what runs goes on; run it again later"):
        insist(ask, "run it again later", said.append)
    assert said == ["the scheduler does not answer (squeue: x); it is asked again for about a minute"]
    assert asked == [0.0, 5.0, 15.0, 35.0], "40 s more would be too late"


def test_cancelling_that_is_not_answered_says_so_and_nothing_more_is_submitted(
    commands: Path, sweep: tuple[Driver, SavedPlan, Slurm], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, saved, launcher = sweep
    monkeypatch.setattr(allocation, "PATIENCE", 0)
    (commands / "squeue.shows").write_text(listed(launcher, ("7_0", "RUNNING", "None"), ("7_1", "RUNNING", "None")))
    silence(commands, "scancel")
    asked = list[str]()
    monkeypatch.setattr("harness.cancel.own_cluster", lambda: asked.append("own") or "")
    done = cancel(saved, driver.whole, driver.store, launcher, part=False)
    assert (len(done.left), len(asked)) == (3, 1), "a silent scheduler is not asked anew for each job"
    assert (done.unanswered, done.jobs) == (True, 0)
    assert done.left[0].endswith("; what runs goes on; run the same command again later to end it")
    assert (driver.store.sweep("tiny") / CANCELLED).exists()


def test_following_waits_for_the_scheduler_and_says_so_once(
    commands: Path,
    sweep: tuple[Driver, SavedPlan, Slurm],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    driver, saved, launcher = sweep
    silence(commands, "squeue", "sbatch", "sacct", "scontrol", "scancel")
    pauses = list[float]()

    def wait(self: Following, seconds: float, wanted: object, display: Display) -> None:
        """In place of pauses: the scheduler comes back after three of them, and shows a held job and one that waits."""
        pauses.append(seconds)
        if len(pauses) == 3:
            for path in commands.glob("*.says"):
                path.unlink()
            rows = ("7_0", "PENDING", "JobHeldUser"), ("7_1", "PENDING", "Priority")
            (commands / "squeue.shows").write_text(listed(launcher, *rows))
        if len(pauses) == 6:
            silence(commands, "squeue")
        if len(pauses) == 7:
            self.stop.set()

    monkeypatch.setattr(Following, "_wait", wait)
    monkeypatch.setattr(following, "FIRST_PAUSE", 5.0)
    assert Following(saved, driver.store, launcher, Observer()).run(Display(0, 1, 0))
    assert pauses == [5.0, 10.0, 20.0, 15.0, 15.0, 15.0, 5.0]
    said = capsys.readouterr().err
    assert said.startswith("0 of 1 stages done\n"), "no number of workers is said before the queue was looked at"
    assert said.count("the scheduler does not answer (squeue: ") == 2, said
    assert said.count("the scheduler answers again, after ") == 1
    held = "1 job waiting: JobHeldUser: its user holds it; `scontrol release 7` lets it start"
    assert said.count(f"{held}; 1 job waiting: Priority\n") == 1, "once, not at each look"
    assert not (commands / "submitted").exists()


def test_a_sweep_that_is_done_ends_while_the_scheduler_is_silent(
    commands: Path,
    sweep: tuple[Driver, SavedPlan, Slurm],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, saved, launcher = sweep
    silence(commands, "squeue")
    monkeypatch.setattr("harness.rounds.over", lambda *given: True)
    one = Following(saved, driver.store, launcher, Observer())
    assert not one.run(Display(0, 1, 0))
    assert not one.trouble
    assert "jobs that still wait are not cancelled: each leaves when it finds nothing to do" in capsys.readouterr().err


def test_what_time_or_a_person_mends_is_waited_for() -> None:
    passing = (
        *("JobHeldUser", "JobHeldAdmin", "Priority", "Resources", "Licenses", "Dependency", "BeginTime", "Reservation"),
        *("ReqNodeNotAvail, UnavailableNodes:n[1-4]", "AssocGrpCpuLimit", "QOSGrpGRES", "QOSMaxJobsPerUserLimit"),
        *("AssocGrpCPUMinutesLimit", "PartitionDown", "PartitionInactive"),
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
    )
    for reason in passing:
        assert not hopeless(reason, None), reason
        assert waits(reason, "7_1").startswith(re.split(r"[ ,]", reason)[0])
    assert waits("JobHeldUser", "7_[2-5]").endswith("`scontrol release 7` lets it start")
    assert waits("ReqNodeNotAvail, UnavailableNodes:n1", "7") == waits("ReqNodeNotAvail, UnavailableNodes:n2", "7")
    assert waits("Priority", "7") == "Priority"
    assert hopeless("QOSMaxCpuPerJobLimit", None)
    assert hopeless("PartitionTimeLimit", None)


def test_the_status_shows_what_waits_and_why_and_is_printed_where_nobody_answers(
    commands: Path, sweep: tuple[Driver, SavedPlan, Slurm], tmp_path: Path
) -> None:
    driver = sweep[0]
    save_whole_plan(tmp_path)
    (tmp_path / "p.yaml").write_text("workers: 2\n")
    kept = driver.slurm()
    kept.begin()
    rows = ("7_0", "RUNNING", "None"), ("7_1", "PENDING", "JobHeldAdmin"), ("7_2", "PENDING", "Priority")
    since = int(time.time() - 2.51 * 3600)
    (commands / "squeue.shows").write_text(listed(kept, *rows, ("7_3", "PENDING", "Priority"), since=since))

    def status(*options: str) -> str:
        command = [sys.executable, "-m", "harness.cli", "status", "tiny", *options]
        given = environment() | {"PATH": f"{commands}:/usr/bin:/bin"}
        done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, check=True)
        return done.stdout

    assert json.loads(status("--json"))["pending"] == [
        {"jobs": 1, "reason": "JobHeldAdmin: an administrator holds it, and only one can release it", "since": since},
        {"jobs": 2, "reason": "Priority", "since": since},
    ]
    assert "\n2 jobs waiting for 2.5 h: Priority\n" in status()
    silence(commands, "squeue")
    said = "jobs that wait in the queue are not shown: the scheduler does not answer (squeue: slurm_load_jobs error"
    assert said in status()
    found = json.loads(status("--json"))
    assert (found["pending"], found["scheduler_trouble"].partition(" (")[0]) == (None, "the scheduler does not answer")


def test_commands_that_look_once_say_what_waits_and_which_nodes_are_excluded(
    commands: Path,
    sweep: tuple[Driver, SavedPlan, Slurm],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    driver, saved, _ = sweep
    (tmp_path / "p.yaml").write_text("workers: 2\n")
    save_whole_plan(tmp_path)
    kept = driver.slurm()
    kept.begin()
    bad = kept.starts(Size()).folder / "n1"
    bad.parent.mkdir(parents=True)
    bad.write_text(json.dumps({"failed": ["job 5: no python", "job 6: no python"]}))
    (commands / "sinfo.shows").write_text("n1\nn2\n")
    (kept.folder / f"{Size()}.{kept.tag(Size())}-1").mkdir()
    rows = ("7_0", "PENDING", "JobHeldUser"), ("7_1", "PENDING", "PartitionTimeLimit")
    (commands / "squeue.shows").write_text(listed(kept, *rows))
    expected = [
        "node n1 is excluded: 2 workers in a row ended there before they were ready, the last, job 6: no python",
        "7_1 cannot start: ",
        "1 job waiting: JobHeldUser: its user holds it; `scontrol release 7` lets it start\n",
    ]
    done = CliRunner().invoke(cli.app, ["tick", "tiny"], catch_exceptions=False)
    assert all(sentence in done.stdout for sentence in expected), done.stdout
    assert not run_elsewhere(saved, driver.store, kept, Observer(), detach=True)
    said = capsys.readouterr().err
    assert all(sentence in said for sentence in expected), said
