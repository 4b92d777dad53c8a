"""Many workers, killed, frozen and thawed, on one machine and on two whose clocks differ: nothing lost or twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from harness.claims import Observer
from harness.clean import find_waste, remove
from harness.frontier import Frontier
from harness.hosts import avoided_here, faults
from harness.index import stand
from harness.plan import Plan
from harness.presence import present
from harness.store import Store, file_sha256
from tests.conftest import send, until
from tests.harness.trivial import NAME, content, save, trivial_plan

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a worker on trivial stages, in a session of its own; what is left of it is killed at the test's end."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str, spaces: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        command = [*spaces, sys.executable, "-m", "tests.harness.trivial", str(tmp_path), *arguments]
        with (tmp_path / "words").open("ab") as words:
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True
            )
        started.append(process)
        return process

    yield run
    for process in started:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    group(process, signal.SIGCONT)
    group(process, signal.SIGKILL)
    process.wait()


def group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def ends(store: Store, plan: Plan) -> dict[str, list[str]]:
    """Return how every attempt at every stage ended; `vanished` where it said nothing."""
    found = {}
    for key, stage in plan.stages.items():
        folder = store.folder(stage.kind, key)
        said = [folder.end(generation) for generation in range(1, folder.generation + 1)]
        found[key] = [str(end["outcome"]) if end else "vanished" for end in said]
    return found


def assert_done_once(store: Store, plan: Plan, unsure: Sequence[str] = ("vanished",)) -> None:
    """Check the record: every stage has one result, one attempt that published it, and its own content."""
    survey = Frontier(plan, store, Observer()).survey()
    assert not survey.todo
    for key, outcomes in ends(store, plan).items():
        folder = store.folder(plan.stages[key].kind, key)
        assert folder.edition == 1
        assert [name for name in folder.names if name.startswith("result-")] == ["result-0001.json"]
        result = folder.result()
        assert result is not None
        assert (folder.path / result.artifact.file).read_bytes() == content(key)
        sure = not {*unsure} & {*outcomes}  # nothing came between a result and its attempt's last word
        assert outcomes.count("published") == 1 or not sure
        assert outcomes.count("published") <= 1


@pytest.mark.slow
def test_eight_workers_killed_and_frozen_at_random_do_every_stage_once(tmp_path: Path, start: Start) -> None:
    store, plan = Store(tmp_path), trivial_plan(400, chains=40)
    save(plan, store)
    draw, pause = random.Random(1), threading.Event()
    workers = {slot: start("0.8", "2") for slot in range(8)}
    due: dict[int, float] = {}
    kills, thawed = Counter[int](), Counter[int]()
    frozen: set[int] = set()
    while left := [slot for slot in workers if kills[slot] < 20 and workers[slot].poll() is None]:
        pause.wait(0.05)
        owners = stand(plan, store, Observer(), keep=False).owners.values()
        at_work, now = {owner.processes[0].pid for owner, _, _ in owners}, time.monotonic()
        due |= {s: now + draw.uniform(0, 1.5) for s in left if s not in due and workers[s].pid in at_work}
        for slot in [slot for slot in left if due.get(slot, now + 1) <= now]:
            del due[slot]
            if slot in frozen:
                group(workers[slot], signal.SIGCONT)
                frozen.remove(slot)
                thawed[slot] += 1
            elif draw.random() < 0.1:
                group(workers[slot], signal.SIGSTOP)
                frozen.add(slot)
                due[slot] = now + 3.0
            else:
                kill(workers[slot])
                kills[slot] += 1
                workers[slot] = start("0.8", "2")
    for slot in frozen:
        group(workers[slot], signal.SIGCONT)
    assert thawed.total() > 5
    until(lambda: all(worker.poll() is not None for worker in workers.values()), 240)
    assert [worker.returncode for worker in workers.values() if worker.returncode] == []
    assert_done_once(store, plan)
    outcomes = Counter(outcome for said in ends(store, plan).values() for outcome in said)
    assert outcomes["vanished"] > 20, f"the kills must have met stages at work: {outcomes}, {kills}"
    assert not list(present(store, NAME))
    remove(store, find_waste(store, plan, Observer()))
    waste = find_waste(store, plan, Observer())
    assert (waste.stages, waste.files, waste.running) == ([], [], 0)
    assert not list(store.root.rglob(".draft-*"))


unshare = shutil.which("unshare")
can_unshare = (
    unshare is not None
    and subprocess.run([unshare, "--uts", "--pid", "--fork", "true"], capture_output=True, check=False).returncode == 0
)


@pytest.mark.skipif(not can_unshare, reason="needs the right to make name spaces (root)")
def test_two_hosts_with_clocks_ten_minutes_apart(tmp_path: Path, start: Start) -> None:
    store, plan = Store(tmp_path), trivial_plan(1, chains=1)
    save(plan, store)
    (key,) = plan.stages
    spaces = (str(unshare), "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
    first = start("=90", "8", "0", "host-a", "600", spaces=spaces)
    claim = store.path("data", key) / "claim-0001"
    until(claim.exists)
    beats = len(claim.read_bytes())
    second = start("0.01", "8", "0", "host-b", "-600", spaces=spaces)
    until(lambda: len(claim.read_bytes()) > beats + 8, 60)  # more than a lease of the owner's heartbeats
    assert second.poll() is None
    assert store.folder("data", key).generation == 1, "nobody takes over from a living owner"
    began = time.monotonic()
    kill(first)
    until(lambda: second.poll() is not None, 60)
    assert second.returncode == 0
    assert time.monotonic() - began > 6, "elsewhere only a heartbeat that stands still for a lease proves a death"
    assert_done_once(store, plan)
    owners = [json.loads((claim.parent / f"claim-000{n}").read_bytes().partition(b"\n")[0])["host"] for n in (1, 2)]
    assert owners == ["host-a", "host-b"]


@pytest.mark.skipif(not can_unshare, reason="needs the right to make name spaces (root)")
def test_workers_of_two_hosts_share_a_plan_and_publish_nothing_twice(tmp_path: Path, start: Start) -> None:
    store, plan = Store(tmp_path), trivial_plan(60, chains=12)
    save(plan, store)
    spaces = (str(unshare), "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
    places = [("host-a", "600"), ("host-a", "600"), ("host-b", "-600"), ("host-b", "-600")]
    crew = [start("0.05", "3", "0", host, skew, spaces=spaces) for host, skew in places]
    until(lambda: all(worker.poll() is not None for worker in crew), 120)
    assert [worker.returncode for worker in crew] == [0, 0, 0, 0]
    assert_done_once(store, plan)
    assert all(outcomes == ["published"] for outcomes in ends(store, plan).values())
    hosts = {store.folder(stage.kind, key).result().provenance["host"] for key, stage in plan.stages.items()}
    assert hosts == {"host-a", "host-b"}


@pytest.mark.slow
@pytest.mark.skipif(not can_unshare, reason="needs the right to make name spaces (root)")
def test_workers_of_three_hosts_whose_file_system_is_far_publish_every_stage_once(tmp_path: Path, start: Start) -> None:
    store, plan = Store(tmp_path), trivial_plan(60, chains=6)
    save(plan, store)
    spaces = (str(unshare), "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
    starts = Counter[str]()

    def work(host: str) -> subprocess.Popen[bytes]:
        starts[host] += 1
        return start("0.05", "2", "0", host, "0", "0", str(starts.total()), spaces=spaces)

    crew = {host: work(host) for host in ("host-a", "host-b", "host-c")}

    def over() -> bool:
        """Start again who left with a word about the file system, as a person or a scheduler would."""
        for host, worker in crew.items():
            if worker.poll() == 3 and starts[host] < 100:
                crew[host] = work(host)
        return all(worker.poll() is not None for worker in crew.values())

    until(over, 240, every=0.05)
    said = (tmp_path / "words").read_text()
    assert {worker.returncode for worker in crew.values()} == {0}, said
    assert "Traceback" not in said
    assert starts.total() > 3, "a link that fails with EIO ends a worker"
    assert_done_once(store, plan, unsure=("vanished", "stopped"))


def test_a_host_where_two_stages_met_faults_takes_no_more_and_a_mended_one_does_the_rest(
    tmp_path: Path, start: Start
) -> None:
    store, plan = Store(tmp_path), trivial_plan(7, chains=3)
    save(plan, store)
    data = next(iter(plan.stages))
    first = start("fault", "2")
    assert first.wait(60) == 0, "one stage that fails everywhere is itself to blame, and the host is not"
    state = Frontier(plan, store, Observer()).survey().todo[data]
    assert (state.name, state.cause) == ("failed", "device")
    assert not (tmp_path / "words").read_text().count("takes no more")
    shutil.rmtree(store.path("data", data))
    shutil.rmtree(store.root / "faults")
    healthy = start("0.3", "2")
    until(lambda: store.folder("data", data).edition)
    send([healthy.pid], signal.SIGTERM)
    healthy.wait(60)
    broken = start("fault", "2")
    assert broken.wait(60) == 3
    said = (tmp_path / "words").read_text()
    assert "faults of its device in 2 stages" in said
    assert str(store.root / "faults") in said
    assert start("0", "2").wait(60) == 3, "nor does a new worker of that host"
    shutil.rmtree(store.root / "faults")  # a person says that it is mended
    assert start("0", "2").wait(60) == 0
    assert_done_once(store, plan)


def test_a_fault_of_a_rank_on_another_host_counts_there(tmp_path: Path, start: Start) -> None:
    store, plan = Store(tmp_path), trivial_plan(7, chains=3)
    save(plan, store)
    assert start("fault of a rank on n7", "2").wait(60) == 0
    assert {said["boot"] for said in faults(store)["n7"]} == {"of n7"}
    assert list(faults(store)) == ["n7"]
    assert not avoided_here(store)


def test_out_of_memory_waits_for_a_worker_with_more(tmp_path: Path, start: Start) -> None:
    store, plan = Store(tmp_path), trivial_plan(3, chains=1)
    save(plan, store)
    assert start("oom", "2", str(2**30)).wait(60) == 0
    assert start("0", "2", str(2**30)).wait(60) == 0
    survey = Frontier(plan, store, Observer()).survey()
    assert [state.name for state in survey.todo.values()] == ["failed", "todo", "todo"]
    assert next(iter(survey.todo.values())).cause == "oom"
    assert start("0", "2", str(2**31)).wait(60) == 0
    assert_done_once(store, plan)


LIMIT = ("0", "", "0")


def test_what_keeps_nothing_within_the_time_limit_is_tried_twice_and_waits_for_a_worker_with_more(
    tmp_path: Path, start: Start
) -> None:
    store, plan = Store(tmp_path), trivial_plan(3, chains=1)
    save(plan, store)
    data = next(iter(plan.stages))

    def attempts() -> int:
        return store.folder("data", data).generation

    while attempts() < 2:  # on a busy machine its time may be up before it takes a stage
        assert start("=99", "2", *LIMIT, "6").wait(60) == 0
    assert start("=99", "2", *LIMIT, "6").wait(60) == 0
    assert attempts() == 2, "no third worker of that kind tries"
    state = Frontier(plan, store, Observer()).survey().todo[data]
    assert (state.name, state.cause, state.amount, state.resource) == ("failed", "time", 6.0, "time")
    assert state.detail == "2 attempts kept nothing within the time limit of 6 s; it needs more than 6 s"
    assert state.detail in (tmp_path / "words").read_text()
    assert start("0", "2", *LIMIT, "600").wait(60) == 0
    assert_done_once(store, plan)


def test_a_worker_asked_to_leave_signs_out(tmp_path: Path, start: Start) -> None:
    store, plan = Store(tmp_path), trivial_plan(40, chains=1)
    save(plan, store)
    worker = start("0.3", "2")
    (found,) = until(lambda: list(present(store, NAME)))
    assert found.here
    until(lambda: store.folder("data", next(iter(plan.stages))).edition)
    send([worker.pid], signal.SIGTERM)
    assert worker.wait(60) == 0
    assert not list(present(store, NAME))
    assert Frontier(plan, store, Observer()).survey().todo
    assert file_sha256(store.sweep(NAME) / "plan.json")
