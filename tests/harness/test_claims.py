"""Claims: one owner a generation; life and death by certainty or by a heartbeat standing still, never by file times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.claims import Claim, Lease, Observer, Owner, Process, start_time, take
from harness.states import GIVE_UP_AFTER, GIVE_UP_UNEXPLAINED, State, state_of
from harness.store import Folder, Store
from tests.conftest import until

KEY = "ab" * 16


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def folder(store: Store) -> Folder:
    return store.folder("train", KEY)


def elsewhere() -> Owner:
    return replace(Owner.me(), host="another-host")


def dead() -> Owner:
    process = subprocess.Popen([sys.executable, "-c", ""])
    start = start_time(process.pid)
    process.wait()
    return replace(Owner.me(), processes=(Process(process.pid, start or 0),))


def test_of_many_only_one_gets_the_claim(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert take(folder(store), 0, Owner.me()) is not None
    assert take(folder(store), 0, elsewhere()) is None
    assert state_of(folder(store), Observer()) == State("running", 1)


def test_a_dead_owner_on_this_machine_is_lost_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    take(folder(store), 0, dead())
    assert state_of(folder(store), Observer()).name == "lost"


def test_a_folder_in_a_claims_place_is_nobodys(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder(store).claim_path(1).mkdir(parents=True)
    assert state_of(folder(store), Observer()).name == "lost"
    assert take(folder(store), 1, Owner.me()) is not None


def test_a_reused_process_number_is_another_process() -> None:
    me = Owner.me().processes[0]
    assert not me.gone()
    assert replace(me, start=me.start - 1).gone()


def test_an_owner_lives_as_long_as_its_trainer(tmp_path: Path) -> None:
    owner = dead()
    assert owner.certainly_gone()
    assert not replace(owner, processes=(*owner.processes, *Owner.me().processes)).certainly_gone()


def test_a_container_with_processes_of_its_own_proves_nothing() -> None:
    assert not replace(dead(), space="pid:[1] time:[1]").certainly_gone()
    assert not replace(dead(), host="another-host").certainly_gone()


def test_another_boot_proves_nothing_since_two_machines_may_bear_one_name() -> None:
    assert not replace(dead(), boot="00000000-0000-0000-0000-000000000000").certainly_gone()


def test_a_heartbeat_that_stands_still_for_a_lease_is_a_lost_owner(tmp_path: Path) -> None:
    store, clock = Store(tmp_path), Clock()
    claim = take(folder(store), 0, elsewhere())
    assert claim is not None
    observer = Observer(lease=180, clock=clock)
    path = folder(store).claim_path(1)
    for _ in range(18):
        assert not observer.lost(path)
        clock.now += 10
    assert not observer.lost(path)
    assert claim.beat()
    clock.now += 10
    assert not observer.lost(path), "the beat starts the lease anew"
    for _ in range(18):
        clock.now += 10
        assert not observer.lost(path)
    clock.now += 10
    assert observer.lost(path)


def test_file_times_say_nothing(tmp_path: Path) -> None:
    store, clock = Store(tmp_path), Clock()
    take(folder(store), 0, elsewhere())
    path = folder(store).claim_path(1)
    os.utime(path, (0, 0))
    observer = Observer(lease=10, clock=clock)
    assert not observer.lost(path)
    clock.now += 4
    os.utime(path, (2**31, 2**31))
    assert not observer.lost(path)


def test_an_observer_that_was_away_starts_to_watch_anew(tmp_path: Path) -> None:
    store, clock = Store(tmp_path), Clock()
    take(folder(store), 0, elsewhere())
    path = folder(store).claim_path(1)
    observer = Observer(lease=10, clock=clock)
    assert not observer.lost(path)
    clock.now += 1000  # frozen, or the file system hung: the owner's beats may be on their way
    assert not observer.lost(path)


def test_taking_over_fences_the_older_owner(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = take(folder(store), 0, elsewhere())
    new = take(folder(store), 1, Owner.me())
    assert old is not None
    assert new is not None
    assert not old.beat()
    assert not old.current()
    assert new.beat()
    old.end("gave up")
    assert state_of(folder(store), Observer()) == State("running", 2)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        ("stopped", "stopped"),
        ("gave up", "stopped"),
        ("published", "stopped"),
        ("failed", "failed"),
        ("diverged", "diverged"),
    ],
)
def test_an_ended_claim_is_spent_though_its_owner_lives_on(outcome: str, state: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    claim = take(folder(store), 0, Owner.me())
    assert claim is not None
    claim.end(outcome, message="why")
    assert state_of(folder(store), Observer()).name == state


def test_how_a_claim_ended_is_written_once(tmp_path: Path) -> None:
    claim = take(folder(Store(tmp_path)), 0, Owner.me())
    assert claim is not None
    claim.end("failed", message="the first word")
    claim.end("stopped", message="the second")
    end = json.loads((claim.attempt / "end.json").read_text())
    assert (end["outcome"], end["message"]) == ("failed", "the first word")


@pytest.mark.parametrize(("explained", "limit"), [(True, GIVE_UP_AFTER), (False, GIVE_UP_UNEXPLAINED)])
def test_a_stage_is_given_up_after_fruitless_deaths_in_a_row(explained: bool, limit: int, tmp_path: Path) -> None:
    store, owner = Store(tmp_path), dead()
    for generation in range(limit):
        before = state_of(folder(store), Observer())
        assert before.claimable, before
        claim = take(folder(store), generation, owner)
        assert claim is not None
        if explained:
            claim.end("died", message="SIGKILL")
    assert state_of(folder(store), Observer()).name == "failed"


def test_a_stall_counts_as_a_death_and_is_told_while_the_stage_runs_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for generation, cause in enumerate(("died", "stalled", "stalled")):
        claim = take(folder(store), generation, Owner.me())
        assert claim is not None
        claim.end("died", message=f"the trainer {cause}", **({"cause": cause} if cause == "stalled" else {}))
        state = state_of(folder(store), Observer())
        assert (state.name, state.cause) == ("failed" if generation == 2 else "stopped", cause)
    claim = take(folder(store), 3, Owner.me())
    assert claim is not None
    state = state_of(folder(store), Observer())
    assert (state.name, state.cause, state.detail) == ("running", "stalled", "the trainer stalled")
    claim.end("stopped", released=True)
    assert state_of(folder(store), Observer()).cause == "", "it was asked for, and has not died since"


def test_a_machine_that_is_switched_off_says_nothing_about_a_crash(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for generation in range(GIVE_UP_AFTER + 3):
        claim = take(folder(store), generation, dead())
        assert claim is not None
        if generation in (1, 3):
            claim.end("died", message="SIGSEGV")
    assert state_of(folder(store), Observer()).claimable, "two crashes among others that vanished are not three"


def test_the_longer_of_two_leases_counts(tmp_path: Path) -> None:
    store, clock = Store(tmp_path), Clock()
    take(folder(store), 0, replace(elsewhere(), lease=100.0))
    observer = Observer(lease=10, clock=clock)
    for _ in range(26):
        assert not observer.lost(folder(store).claim_path(1))
        clock.now += 4
    assert observer.lost(folder(store).claim_path(1))


def test_a_checkpoint_counts_as_progress(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for generation in range(GIVE_UP_AFTER + 2):
        claim = take(folder(store), generation, dead())
        assert claim is not None
        (claim.attempt / f"checkpoint-{generation}").touch()
        claim.end("died")
    assert state_of(folder(store), Observer()).claimable


def test_a_torn_claim_belongs_to_somebody_unknown_and_is_judged_by_its_lease(tmp_path: Path) -> None:
    store, clock = Store(tmp_path), Clock()
    folder(store).path.mkdir(parents=True)
    folder(store).claim_path(1).write_bytes(b'{"host": "h", "pro')
    observer = Observer(lease=10, clock=clock)
    assert state_of(folder(store), observer).name == "running"
    for _ in range(3):
        clock.now += 4
        state = state_of(folder(store), observer)
    assert state.name == "lost"


def test_an_owner_comes_back_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "c").write_text(json.dumps(asdict(Owner.me(1))) + "\n.....")
    assert Owner.read(tmp_path / "c") == Owner.me(1)


def test_a_lease_is_held_by_one_at_a_time_and_leaves_one_claim(tmp_path: Path) -> None:
    one, two = Lease(tmp_path), Lease(tmp_path)
    assert one.acquire()
    assert one.held
    assert not two.acquire()
    assert two.last() == (1, None)
    one.release("answered", jobs=3)
    assert not one.held
    number, end = two.last()
    assert (number, end) == (1, {"outcome": "answered", "seconds": end and end["seconds"], "jobs": 3})
    for number in (2, 3):
        assert two.acquire()
        assert two.generation == number
        two.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempt-0003", "claim-0003"]


def test_a_lost_hosts_lease_is_taken_once_its_heartbeat_has_stood_still(tmp_path: Path) -> None:
    clock, said = Clock(), list[str]()
    assert take(Folder.listed(tmp_path), 0, replace(elsewhere(), lease=60.0))
    lease = Lease(tmp_path, 60.0, Observer(clock=clock))

    def sleep(seconds: float) -> None:
        clock.now += seconds

    assert lease.settle(said.append, sleep)
    assert 60 < clock.now - 1000 < 62
    assert said == [
        f"waiting for process {os.getpid()} on another-host to end or show a heartbeat, for 60 s ({tmp_path})"
    ]
    lease.release()


def test_a_holder_that_hangs_for_longer_than_it_may_shows_no_heartbeat_any_more(tmp_path: Path) -> None:
    before = {*threading.enumerate()}
    lease = Lease(tmp_path, 0.06, longest=0.0)
    assert lease.acquire()
    (renewing,) = {*threading.enumerate()} - before
    renewing.join(30)
    assert not renewing.is_alive()
    assert (tmp_path / "claim-0001").read_bytes().endswith(b"\n"), "no beat"
    assert lease.held
    lease.release()


HOLDER = """
import sys
from pathlib import Path
from harness import claims
if sys.argv[3]:
    claims.machine = lambda: (sys.argv[3], "another boot", "another space")
lease = claims.Lease(Path(sys.argv[1]), float(sys.argv[2]))
print(lease.acquire(), flush=True)
for line in sys.stdin:
    print(lease.held, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
@pytest.mark.parametrize("host", ["", "another-host"], ids=["here", "there"])
def test_a_dead_or_frozen_holder_loses_its_lease_and_a_living_one_keeps_it(
    tmp_path: Path, number: signal.Signals, host: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), "0.6", host],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "True\n"
            lease, waited = Lease(tmp_path, 0.6), list[float]()
            assert not lease.settle(lambda said: None), "its heartbeat was seen"
            holder.send_signal(number)
            if number == signal.SIGKILL:
                holder.wait()
            until(lambda: lease.acquire() or waited.append(0.0))
            assert lease.generation == 2
            assert bool(waited) is not (host == "" and number == signal.SIGKILL), "known to be dead at once, or not"
            if number == signal.SIGSTOP:
                holder.send_signal(signal.SIGCONT)
                holder.stdin.write("\n")
                holder.stdin.flush()
                assert holder.stdout.readline() == "False\n"
            assert lease.held
            lease.release()
        finally:
            holder.kill()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["look", "take", "beat", "end", "wait"])), max_size=40))
def test_whatever_three_workers_do_a_generation_has_one_owner(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, str]]
) -> None:
    """A model of the protocol: workers look, claim on what they saw (late, if others came between), beat, end."""
    store, clock = Store(tmp_path_factory.mktemp("s")), Clock()
    observers = [Observer(lease=10, clock=clock) for _ in range(3)]
    seen: list[State | None] = [None] * 3
    held: list[list[Claim]] = [[], [], []]
    owners: dict[int, int] = {}
    for who, move in moves:
        if move == "look":
            seen[who] = state_of(folder(store), observers[who])
        elif move == "take" and (state := seen[who]) is not None and state.claimable:
            claim = take(folder(store), state.generation, elsewhere())
            if claim is not None:
                assert claim.generation not in owners
                owners[claim.generation] = who
                held[who].append(claim)
        elif move == "beat" and held[who]:
            mine = held[who][-1]
            assert mine.beat() is (mine.generation == max(owners))
        elif move == "end" and held[who]:
            held[who].pop().end("stopped")
        elif move == "wait":
            clock.now += 4
    assert sorted(owners) == list(range(1, len(owners) + 1))
