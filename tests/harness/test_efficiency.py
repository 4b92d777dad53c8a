"""What a sweep's jobs used of what was requested: by hand, with a scheduler that answers as told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.efficiency import FEWEST, Efficiency, efficiency
from harness.index import Done, Standing
from harness.launch import Size
from harness.launch.profiles import load_profile
from harness.launch.slurm import Slurm
from harness.launch.starts import SIGNED_IN
from harness.plan import Plan, Stage
from harness.states import EARLY, SEARCH, State
from harness.status import Jobs
from harness.store import Artifact, Result, Store

GIB = 2**30
PROFILE = """\
partition: gpu
gpus: 1
gpu_memory: 40G
cpus: 8
memory: 16G
time: 12:00:00
"""
STAGES = [
    ("data", 60.0, 1 * GIB, 0, 8.0, "11"),  # decodes with all CPUs, but for less than a twentieth of the time
    ("mask", 140.0, 2 * GIB, 3 * GIB, 1.0, "11"),
    *[("train", 1000.0, 3 * GIB, 7 * GIB, 1.5, "11")] * 2,
    *[("train", 700.0, 3 * GIB, 7 * GIB, 1.5, "12")] * 2,
]
"""Kind, seconds, memory, GPU memory, CPUs and job of finished stages: 3,600 s in all."""
SACCT = """\
11|{mark}.e3b0.w1m0.{tag}|2400|1000|1600|
11.batch|batch|2400|1000|1600|12000K
11.0|python|2400|1000|1600|5242880K
12|{mark}.e3b0.w1m0.{tag}|500|1000|1060|
12|{mark}.e3b0.w1m0.{tag}|1600|1600|1700|
12.0|python|1600|1600|1700|3G
13|other.1234abcd.e3b0.w1m0.{tag}|90000|0|80000|
13.0|python|90000|0|80000|64G
14|{mark}.e3b0.w1m0.{tag}|0|2000|Unknown|
"""
"""Job 12 was requeued; 13 is a number that another sweep's job had before; 14 waits."""


def launcher_of(folder: Path, text: str = PROFILE, sacct: str = SACCT, world: int = 1) -> Slurm:
    """Return a launcher of jobs 11 to 13, which have signed in."""
    folder.mkdir(exist_ok=True)
    (folder / "p.yaml").write_text(text)
    profile, document = load_profile(folder / "p.yaml")

    def run(command: Sequence[str]) -> str:
        if not sacct or command[0] != "sacct":
            raise FileNotFoundError(command[0])
        assert command[2] == "11,12,13"
        return sacct.format(mark=launcher.mark, tag=launcher.tag(Size(world)))

    launcher = Slurm(profile, Store(folder / "runs"), "grid", ["grid"], document, run)
    sign_in(launcher, Size(world), "11", "12", "13")
    return launcher


def sign_in(launcher: Slurm, size: Size, *jobs: str) -> None:
    folder = launcher.folder / f"{size}.{launcher.tag(size)}-1000.000-abcdef"
    folder.mkdir(parents=True)
    for job in jobs:
        (folder / f"{SIGNED_IN}{job}").touch()


def finished(
    stages: Sequence[tuple[str, float, int, int, float, str]], left: State | None = None
) -> tuple[Plan, Standing]:
    plan, standing = Plan("grid"), Standing()
    for number, (kind, seconds, memory, gpu, cpus, job) in enumerate(stages):
        plan.stages[f"{number}"] = Stage(f"{number}", kind, {}, {}, "")
        done = Done(1, "", (), seconds, "", "cuda", 1, False, job, memory, gpu, cpus)
        standing.done[f"{number}"] = done
    if left:
        plan.stages["left"] = Stage("left", "train", {}, {}, "")
        standing.states["left"] = left
    return plan, standing


def measured(launcher: Slurm, stages: Sequence[tuple[str, float, int, int, float, str]] = STAGES) -> Efficiency:
    found = efficiency(*finished(stages), launcher)
    assert found is not None
    return found


def test_what_was_used_is_told_with_the_lines_to_write_instead(tmp_path: Path) -> None:
    used = measured(launcher_of(tmp_path))
    assert used.lines() == [
        "used of what was requested (6 stages): memory 3.0 of 16.0 GiB a process; CPUs 1.5 of 8; "
        "GPU memory 7.0 of 40.0 GiB, utilisation not measured",
        # 3,600 s of stages in 2,400 + 500 + 1,600 s of jobs; waits of 600, 60 and 100 s
        "2 jobs: stages ran in 80% of their 75 min; in the queue 1 min (median); the longest 40 min of 12:00:00",
        # 1.5 times 3 GiB, at least the 5 GiB of all processes; 1.25 times 1.5 CPUs; twice 40 min in half hours
        f"recommended in {tmp_path / 'p.yaml'}: memory: 5G (line 5), cpus: 2 (line 4), time: 1:30:00 (line 6)",
    ]
    said = used.as_json()
    assert said["used"]["train"] == {
        "stages": 4,
        "seconds": 3400.0,
        "longest": 1000.0,
        "memory": 3 * GIB,
        "cpus": 1.5,
        "gpu_memory": 7 * GIB,
    }
    assert said["recommended"] == {"memory": "5G", "cpus": 2, "time": "1:30:00"}


def test_without_accounting_the_store_alone_tells(tmp_path: Path) -> None:
    used = measured(launcher_of(tmp_path, sacct=""))
    assert used.jobs is None
    assert len(used.lines()) == 2
    assert used.recommended() == {"memory": "5G", "cpus": 2}


@pytest.mark.parametrize(
    ("text", "key"),
    [("memory: 9G", "memory"), ("cpus: 3", "cpus"), ("time: 2:50:00", "time"), ("time: UNLIMITED", "time")],
)
def test_what_is_less_than_twice_what_is_recommended_stays(tmp_path: Path, text: str, key: str) -> None:
    lines = [text if line.startswith(f"{key}:") else line for line in PROFILE.splitlines()]
    assert key not in measured(launcher_of(tmp_path, "\n".join(lines))).recommended()


def test_memory_close_to_its_limit_is_recommended_to_be_more(tmp_path: Path) -> None:
    used = measured(launcher_of(tmp_path, PROFILE.replace("memory: 16G", "memory: 3300M"), sacct=""))
    assert used.recommended()["memory"] == "5G"
    assert used.lines()[-1].endswith("memory: 5G (line 5), cpus: 2 (line 4); its memory is close to the limit")


@pytest.mark.parametrize(
    ("left", "advised"),
    [
        (State("todo", 0), set()),  # it may need more than what is finished
        (State("running", 1), set()),
        (State("failed", 1, cause="code"), set()),  # the same, once that is mended
        (State("diverged", 1, cause="diverged"), {"memory", "cpus", "time"}),
        (State(EARLY, 1, cause=SEARCH), {"memory", "cpus", "time"}),
    ],
)
def test_nothing_is_recommended_before_all_is_known(tmp_path: Path, left: State, advised: set[str]) -> None:
    used = efficiency(*finished(STAGES, left), launcher_of(tmp_path))
    assert used is not None
    assert set(used.recommended()) == advised
    assert (used.jobs is None) == (not left.over), "accounting is asked once, at the end"


def test_accounting_is_asked_again_only_when_more_is_finished(tmp_path: Path) -> None:
    launcher, asked = launcher_of(tmp_path), list[str]()
    jobs, answer = Jobs(launcher.store, "grid"), launcher.run

    def run(command: Sequence[str]) -> str:
        asked.append(command[0])
        return answer(command)

    jobs.launcher, launcher.run = launcher, run
    failed = State("failed", 1, cause="code")
    plan, standing = finished(STAGES, failed)
    assert jobs.efficiency(plan, standing) == jobs.efficiency(*finished(STAGES, failed))
    assert asked == ["sacct"], "a status that is watched asks every two seconds"
    standing.done["left"] = standing.done["0"]
    jobs.efficiency(plan, standing)
    assert asked == ["sacct"] * 2


def test_nor_from_few_stages_nor_where_some_needed_a_job_with_more(tmp_path: Path) -> None:
    launcher = launcher_of(tmp_path)
    assert measured(launcher, STAGES[: FEWEST - 1]).recommended() == {}
    assert "memory" in measured(launcher, STAGES[:FEWEST]).recommended()
    (launcher.folder / "w1m1.abcd-1000.000-abcdef").mkdir()
    assert "memory" not in measured(launcher).recommended()
    said = "stages ran in jobs with more memory (larger:), so no other memory is recommended"
    assert said in measured(launcher).lines()
    longer = launcher_of(tmp_path / "longer", f"{PROFILE}larger: [{{time: 24:00:00}}]\n")
    (longer.folder / "w1m1.abcd-1000.000-abcdef").mkdir()
    assert "memory" in measured(longer).recommended(), "that job had more time alone"


def test_fewer_cpus_are_recommended_where_each_stage_still_ends_in_half_the_time_limit(tmp_path: Path) -> None:
    # 800 s of a data set with 8 CPUs, a twenty-first of the time: with the 2 CPUs of a training it takes 3,200 s
    data, train = ("data", 800.0, GIB, 0, 8.0, "11"), ("train", 4000.0, 3 * GIB, 7 * GIB, 1.5, "11")
    used = measured(launcher_of(tmp_path, sacct=""), [data, *[train] * 4])
    assert used.recommended()["cpus"] == 2
    short = PROFILE.replace("time: 12:00:00", "time: 1:45:00")
    assert "cpus" not in measured(launcher_of(tmp_path / "short", short, ""), [data, *[train] * 4]).recommended()
    long = ("data", 4000.0, GIB, 0, 8.0, "11")
    used = measured(launcher_of(tmp_path / "told"), [long, *[train] * 20])
    # 16,000 s with 2 CPUs in place of 8: twice that is more than half of 12 hours
    assert (used.recommended()["cpus"], used.recommended().get("time")) == (2, None)


def test_of_a_part_of_a_sweep_it_is_said_for_which_cells_it_holds(tmp_path: Path) -> None:
    launcher = launcher_of(tmp_path, sacct="")
    launcher.plan = "plan-1.json"
    assert measured(launcher).lines()[-1].startswith(f"recommended in {tmp_path / 'p.yaml'} for these cells alone: ")


def test_only_stages_that_jobs_of_the_present_request_ran_are_measured(tmp_path: Path) -> None:
    launcher = launcher_of(tmp_path)
    others = [("train", 1.0, 15 * GIB, 0, 8.0, job) for job in ("", "99")]
    assert measured(launcher, [*STAGES, *others]).stages == 6
    edited = Slurm(launcher.profile.model_copy(update={"cpus": 2}), launcher.store, "grid", ["grid"], run=launcher.run)
    assert efficiency(*finished(STAGES), edited) is None
    unsubmitted = efficiency(*finished([*STAGES, *others]), None)
    assert unsubmitted is not None
    assert (unsubmitted.stages, unsubmitted.lines(), unsubmitted.as_json()["requested"]) == (8, [], None)


def test_on_a_cpu_other_threads_are_told_to_change_last_bits(tmp_path: Path) -> None:
    said = "; on a CPU, other threads may change last bits"
    assert measured(launcher_of(tmp_path, PROFILE.replace("gpus: 1", "gpus: 0"))).lines()[-1].endswith(said)
    assert said not in measured(launcher_of(tmp_path)).lines()[-1]


def test_the_memory_of_a_group_is_that_of_a_process(tmp_path: Path) -> None:
    launcher = launcher_of(tmp_path, f"{PROFILE}per_node: 4\n", world=8)
    used = measured(launcher, [("train", 100.0, 12 * GIB, 7 * GIB, 1.5, "11")] * FEWEST)
    assert used.memory == 3 * GIB
    assert used.jobs is not None
    assert used.jobs.memory == 5242880 * 1024 // 4
    mask = ("mask", 10.0, 12 * GIB, 0, 1.0, "11")  # of which a job of a single process may run the next
    assert measured(launcher, [mask, *[("train", 100.0, 12 * GIB, 7 * GIB, 1.5, "11")] * FEWEST]).memory == 12 * GIB


def test_a_result_tells_of_its_job_and_of_the_cpus_it_kept_busy() -> None:
    stage = Stage("k", "train", {}, {}, "")

    def done(device: str, **said: object) -> Done:
        told = {"seconds": 10.0, "peak_memory": 5, "device_memory": 6, "job": "7", **said}
        return Done.of(stage, Result(1, Artifact("", 1), {}, {}, {"device": device}, told))

    found = done("cuda", cpu_seconds=15.0, device_seconds=10.0)
    assert (found.job, found.memory, found.gpu_memory, found.cpus) == ("7", 5, 6, 1.5)
    assert done("cpu", device_seconds=25.0).cpus == 2.5, "as results were before: there the device is the CPU"
    assert done("cuda", device_seconds=10.0).cpus == 0.0
    assert done("cuda", merged_from="other").job == "", "another cluster's number"
