"""How many workers a sweep can use: hand-worked plans, and laws over random ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.claims import Owner, Process
from harness.demand import demand, over
from harness.detached import Detached
from harness.index import Done, Standing
from harness.launch import Job, Size
from harness.launch.local import Machine
from harness.launch.profiles import Profile
from harness.launch.slurm import OUTSTANDING, SIGNED_IN, Slurm
from harness.plan import Plan, Stage
from harness.states import State
from harness.store import Store

TODO, RUNNING = State("todo", 0), State("running", 1)
IDLE = 60.0
"""Seconds after which a worker leaves, as a profile says that does not say it."""


def stage(key: str, kind: str = "train", world: int = 1, **parents: str) -> Stage:
    return Stage(key, kind, {"method": {"name": key.rstrip("0123456789")}}, parents, key, world=world)


def plan_of(*stages: Stage) -> Plan:
    return Plan("p", {s.key: s for s in stages})


def chain() -> Plan:
    return plan_of(
        stage("data", "data"),
        stage("snip", "mask", data="data"),
        stage("dense", data="data"),
        stage("cut", "mask", data="data", trained="dense"),
        stage("sparse", data="data", mask="cut"),
        stage("wide", world=4, data="data", mask="snip"),
    )


def fan(world: int = 1) -> Plan:
    """A data set, two masks of a method on it, three trainings of each."""
    masks = [stage(f"snip{n}", "mask", data="data") for n in (0, 1)]
    below = [stage(f"train{n}{m}", world=world, data="data", mask=f"snip{n}") for n in (0, 1) for m in "abc"]
    return plan_of(stage("data", "data"), *masks, *below)


def launcher(idle: str = "60s") -> Slurm:
    return Slurm(Profile(memory="40", larger=[{"memory": "55"}], idle=idle), Store(Path("none")), "p", [])


def running(job: str, beats: int = 0) -> tuple[Owner, int, float]:
    """Who runs a stage, since so many heartbeats of half a minute."""
    return Owner("h", "b", "s", (Process(1, 1),), f"{job}.0", 180.0), beats, time.time()


def wanted(plan: Plan, states: dict[str, State], own: dict[str, Size] | None = None, **beats: int) -> dict[Size, int]:
    """Return what a sweep can use: a stage that runs does so by the job of its name, of this sweep where in `own`."""
    standing = Standing(states={key: states[key] for key in plan.stages if key in states})
    for key, state in states.items():
        if state.name == "running":
            standing.owners[key] = running(f"job-{key}", beats.get(key, 0))
    jobs = [Job("7_0", size, "running", inner=f"job-{key}") for key, size in (own or {}).items()]
    return dict(demand(plan, standing, launcher(), jobs))


def test_a_worker_for_each_training_that_waits_for_no_other() -> None:
    assert wanted(chain(), dict.fromkeys(chain().stages, TODO)) == {Size(1): 1, Size(4): 1}
    assert wanted(chain(), dict.fromkeys(("cut", "sparse", "wide"), TODO)) == {Size(1): 1, Size(4): 1}
    assert wanted(chain(), {"data": TODO, "snip": TODO}) == {Size(1): 1}, "one after the other"
    assert wanted(chain(), {}) == {}


def test_what_ran_out_of_memory_wants_a_larger_worker_where_there_is_one() -> None:
    short = State("failed", 1, cause="oom", amount=40 * 2**20)
    assert wanted(chain(), {"dense": short, "cut": TODO}) == {Size(1, 1): 1}
    lost = State("failed", 1, cause="oom", amount=60 * 2**20)
    assert wanted(chain(), {"dense": lost, "cut": TODO}) == {}
    assert wanted(chain(), {"dense": State("failed", 1, cause="code"), "wide": TODO}) == {Size(4): 1}


def test_none_is_wanted_for_what_waits_for_a_mask_that_waits_for_a_larger_worker() -> None:
    """Workers of the usual size would leave idle, again and again, until the larger one starts."""
    short = State("failed", 1, cause="oom", amount=40 * 2**20)
    states = {"snip0": short} | dict.fromkeys(("train0a", "train0b", "train0c"), TODO)
    assert wanted(fan(), states) == {Size(1, 1): 1}
    states["snip0"] = RUNNING
    assert wanted(fan(), states, {"snip0": Size(1, 1)}) == {Size(1): 3, Size(1, 1): 1}


def test_what_ran_out_of_time_wants_a_worker_with_a_longer_limit_where_there_is_one(tmp_path: Path) -> None:
    def wanted(profile: Profile, limit: float, *more: str) -> dict[Size, int]:
        standing = Standing(states={"dense": State("failed", 2, cause="time", amount=limit, resource="time")})
        return dict(demand(chain(), standing, Slurm(profile, Store(Path()), "p", more)))

    hours = Profile(time="4:00:00", larger=[{"memory": "9G"}, {"time": "12:00:00"}])
    assert wanted(hours, 2 * 3600) == {Size(1, 0): 1}, "the profile was mended"
    assert wanted(hours, 4 * 3600) == {Size(1, 2): 1}
    assert wanted(hours, 12 * 3600) == {}
    assert wanted(Profile(time="UNLIMITED"), 12 * 3600) == {Size(1, 0): 1}
    assert wanted(Profile(time="UNLIMITED"), 12 * 3600, "--until", "12h") == {}
    assert (wanted(Profile(time=None), 3600), Profile(time=None).most["time"]) == ({}, 0), "nobody says how long"
    here = [Detached(Machine(1, 1, "cpu"), Store(tmp_path), "p", argv).step_for(3600, "time") for argv in TOLD]
    assert here == [None, 0, 0]


TOLD = (["--until", "1h"], ["--until", "2h"], [])


def test_a_stage_that_runs_counts_for_the_job_that_runs_it_and_for_nothing_where_others_do() -> None:
    states = {"dense": RUNNING, "cut": TODO, "sparse": TODO}
    assert wanted(chain(), states, {"dense": Size(1, 1)}) == {Size(1, 1): 1}
    assert wanted(chain(), states) == {}
    assert wanted(chain(), {**states, "wide": TODO}) == {Size(4): 1}
    assert wanted(chain(), {**states, "dense": State("lost", 1)}) == {Size(1): 1}, "its lease is over"


def test_who_runs_a_short_stage_goes_on_with_a_training_below_it() -> None:
    assert wanted(chain(), {"cut": RUNNING, "sparse": TODO}) == {}, "whoever that is"
    assert wanted(chain(), {"cut": RUNNING, "sparse": TODO}, {"cut": Size(1)}) == {Size(1): 1}
    group = wanted(chain(), {"snip": RUNNING, "wide": TODO}, {"snip": Size(4)})
    assert group == {Size(4): 1}, "no second group beside it, and no single worker"
    everything = {"data": RUNNING} | dict.fromkeys(list(fan().stages)[1:], TODO)
    assert wanted(fan(), everything) == {Size(1): 5}
    assert wanted(fan(), everything, {"data": Size(1)}) == {Size(1): 6}


def test_what_waits_for_a_stage_that_takes_longer_than_workers_wait_is_not_counted() -> None:
    everything = dict.fromkeys(fan().stages, TODO)
    assert wanted(fan(), everything) == {Size(1): 6}, "a fresh sweep has its workers at once"
    by_own = {"data": Size(1)}
    assert wanted(fan(), {**everything, "data": RUNNING}, by_own, data=1) == {Size(1): 6}
    assert wanted(fan(), {**everything, "data": RUNNING}, by_own, data=3) == {Size(1): 1}
    assert wanted(fan(), {**everything, "data": RUNNING}, data=3) == {}
    stopped = State("stopped", 1, lost=IDLE + 1)
    assert wanted(fan(), {**everything, "data": stopped}) == {Size(1): 1}
    del everything["data"]
    one = {**everything, "snip0": RUNNING}
    assert wanted(fan(), one, {"snip0": Size(1)}, snip0=3) == {Size(1): 1 + 3}
    del one["snip0"]
    assert wanted(fan(), one) == {Size(1): 6}, "what it has freed, and what waits for a short stage"


@pytest.mark.parametrize(("seconds", "expected"), [(IDLE - 1, 3), (IDLE + 1, 1)])
def test_a_stage_is_expected_to_take_as_long_as_one_like_it(seconds: float, expected: int) -> None:
    standing = Standing(states={key: TODO for key in fan().stages if key.startswith(("snip1", "train1"))})
    standing.done["snip0"] = Done(1, "", (), seconds, "", "cpu", 0)
    assert demand(fan(), standing, launcher()) == {Size(1): expected}


@pytest.mark.parametrize("world", [1, 2])
def test_no_more_jobs_of_a_size_than_run_or_can_be_taken_by_it(world: int) -> None:
    plan = fan(world)
    everything = dict.fromkeys(plan.stages, TODO)
    assert wanted(plan, everything) == {Size(world): 6}, "a group makes masks on the way"
    del everything["data"], everything["snip0"], everything["snip1"]
    one = {**everything, "train0a": RUNNING}
    assert wanted(plan, one, {"train0a": Size(world)}) == {Size(world): 6}
    alone = {"train0a": RUNNING}
    assert wanted(plan, alone, {"train0a": Size(world)}) == {Size(world): 1}
    masks = wanted(plan, {"snip0": RUNNING, "snip1": TODO}, {"snip0": Size(world)})
    assert masks == {Size(world): 2 if world == 1 else 1}, "a group that makes one mask makes the next"


def test_a_job_that_the_queue_hides_is_known_by_its_sign_in(tmp_path: Path) -> None:
    found = Slurm(Profile(), Store(tmp_path), "p", [])
    submission = found.folder / "w4m1.beef-1"
    submission.mkdir(parents=True)
    (submission / OUTSTANDING).write_text("{}")
    (submission / f"{SIGNED_IN}8").write_text("")
    shown, hidden = Job("7_0", Size(), "running", inner="9"), Job("7_1", Size(4, 1), "pending", name="p.w4m1")
    owners = [running(number)[0] for number in ("9", "8", "10")]
    assert [found.size_of(owner, [shown, hidden]) for owner in owners] == [Size(), Size(4, 1), None]
    assert [found.size_of(owner, [shown]) for owner in owners] == [Size(), None, None]
    there = [replace(shown, cluster=cluster) for cluster in ("alpha", "")]
    others = replace(owners[0], cluster="beta")
    assert [found.size_of(others, [each]) for each in there] == [None, Size()], "numbers are of one cluster"


def test_workers_that_wait_are_wanted_below_slow_stages_and_beside_others(tmp_path: Path) -> None:
    here = Detached(Machine(8, 1, "cpu"), Store(tmp_path), "p", [])
    standing = Standing(states={"data": RUNNING} | dict.fromkeys(list(fan().stages)[1:], TODO))
    standing.owners["data"] = running("7", beats=100)
    assert demand(fan(), standing, here) == {Size(): 5}
    standing.states = {"data": RUNNING}
    assert demand(fan(), standing, here) == {Size(): 1}, "one waits, should they die"


PARENTS = st.lists(st.tuples(st.sampled_from(("train", "mask")), st.sets(st.integers(0, 6), max_size=2)), max_size=12)
STATES = st.lists(st.sampled_from(("done", "todo", "own", "others", "slow", "failed")), min_size=12, max_size=12)


@given(PARENTS, STATES)
def test_laws(stages: Sequence[tuple[str, set[int]]], states: Sequence[str]) -> None:
    plan, standing, jobs, found = Plan("p"), Standing(), [], dict[str, str]()
    for number, ((kind, above), state) in enumerate(zip(stages, states, strict=False)):
        key = f"s{number}"
        parents = {f"s{n}": f"s{n}" for n in above if n < number}
        plan.stages[key] = Stage(key, kind, {"method": number}, parents, key)
        done = all(found[parent] == "done" for parent in parents)
        found[key] = state if done or state == "failed" else "todo"
        if found[key] == "done":
            continue
        standing.states[key] = {"todo": TODO, "failed": State("failed", 1, cause="code")}.get(found[key], RUNNING)
        if found[key] in ("own", "others", "slow"):
            standing.owners[key] = running(key, beats=9 if found[key] == "slow" else 0)
        if found[key] == "own":
            jobs.append(Job(key, Size(), "running"))
    number = demand(plan, standing, launcher(), jobs)[Size()]
    ready = [
        k for k in standing.states if found[k] == "todo" and not set(plan.stages[k].parents) & set(standing.states)
    ]
    kinds = Counter(plan.stages[key].kind for key in ready)
    own = [job for job in jobs if plan.stages[job.number].kind == "train"]
    assert number >= kinds["train"] + len(own), "no fewer than can be used"
    assert number > 0 or not ready, "what is ready is run"
    failed = {key for key in found if found[key] == "failed"}
    theirs = {key for key in found if found[key] in ("others", "slow")}
    assert number <= len(standing.states) - len(failed) - len(theirs), "none for what others run"
    if not ready and not jobs and all(found[key] != "others" for key in found):
        assert number == 0, "none for what waits for trainings and slow stages"
    assert over(plan, standing, launcher()) == (not ready and not jobs and not theirs)
