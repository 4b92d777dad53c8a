"""Claims and leases in any order of file operations: their holders are stopped, killed, overtaken between any two."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.claims import Lease, Observer, Owner
from harness.frontier import Frontier
from harness.plan import Plan, Stage
from harness.provenance import provenance
from harness.publication import publish_made
from harness.shift import Worker
from harness.store import Store, digest, file_sha256
from harness.supervisor import Setup

OPERATIONS = ("open", "link", "replace", "fsync", "listdir", "stat", "mkdir", "unlink")
LEASE = 10.0
PATIENCE = 30.0
"""Seconds that the test waits for a thread of its own: reached only where the test itself is broken."""


class Killed(BaseException):
    """What a worker's thread dies of."""


class Gated(threading.Thread):
    """A process of its own host, each of whose file operations waits to be let through."""

    def __init__(self, number: int, clock: Callable[[], float]) -> None:
        super().__init__(daemon=True)
        self.number, self.observer = number, Observer(LEASE, clock)
        self.go, self.arrived = threading.Semaphore(0), threading.Semaphore(0)
        self.doomed = False
        self.error: BaseException | None = None
        self.over = False

    def gate(self) -> None:
        """Wait at a file operation."""
        self.arrived.release()
        assert self.go.acquire(timeout=PATIENCE)
        if self.doomed:
            raise Killed

    def step(self) -> None:
        """Let one file operation through, and wait for the next, or for the end."""
        self.go.release()
        assert self.arrived.acquire(timeout=PATIENCE)

    def run(self) -> None:
        """Work until the end, or until it is killed."""
        try:
            self.work()
        except Killed:
            pass
        except BaseException as error:  # told by the test's own thread
            self.error = error
        self.over = True
        self.arrived.release()

    def work(self) -> None:
        """Do what the protocol allows."""
        raise NotImplementedError


class Actor(Gated):
    """A worker that looks, claims, works and publishes: what it does with one stage."""

    def __init__(self, number: int, stage: Stage, plan: Plan, root: Path, clock: Callable[[], float]) -> None:
        super().__init__(number, clock)
        self.stage, self.plan, self.root, self.setup = stage, plan, root, Setup()

    def owner(self) -> Owner:
        """Return who claims: a host of its own, so that only its heartbeat can tell of its death."""
        return replace(Owner.me(), host=f"host-{self.number}")

    def work(self) -> None:
        frontier = Frontier(self.plan, Store(self.root), self.observer)
        worker = Worker(frontier, self, threading.Event(), print)  # only its taking is used: who owns is asked of us
        worker.todo = dict(self.plan.stages)
        for _ in range(4):
            taken, _ = worker.take()
            if not worker.todo:
                return
            if taken is None:
                continue
            claim = taken[1]
            data = f"made by {self.number}".encode()  # not equal between workers, as on unlike machines
            (claim.attempt / "draft").write_bytes(data)
            if not claim.beat():
                claim.end("gave up")
                continue
            if not claim.current():
                continue
            sha256 = hashlib.sha256(data).hexdigest()
            end = {"draft": "draft", "sha256": sha256, "bytes": len(data), "metrics": {}, "stamp": {}}
            times = {"resumed": 0, "resumed_at": 0, "seconds": 0.0, "device_seconds": 0.0}
            publish_made(frontier, self.stage, claim, {}, end | times)


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the actors' file operations wait, and nobody else's."""
    for name in OPERATIONS:
        real = getattr(os, name)

        def waiting(*args: Any, real: Callable[..., Any] = real, **kwargs: Any) -> Any:
            if isinstance(actor := threading.current_thread(), Gated):
                actor.gate()
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, waiting)


def one_stage() -> tuple[Plan, Stage]:
    spec = {"n": 1}
    key = digest({"kind": "mask", "parents": {}, **spec})
    plan = Plan("one", {key: Stage(key, "mask", spec, {}, "a mask")})
    plan.leaves = [key]
    return plan, plan.stages[key]


MOVES = st.tuples(st.integers(0, 2), st.integers(1, 25), st.sampled_from(["go", "go", "go", "kill", "wait"]))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MOVES, max_size=30))
def test_whatever_stops_between_two_file_operations_one_result_stands(
    gated: None, tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, int, str]]
) -> None:
    """Three workers advance by as many operations as drawn; a move may kill one, or let more than a lease pass.

    At the end all are let through, and a last one finishes what is left. A frozen worker is one that is not moved.
    """
    root = tmp_path_factory.mktemp("store")
    plan, stage = one_stage()
    provenance(Store(root), "cpu")  # its files are made before, once for all
    now = [1000.0]
    actors = [Actor(number, stage, plan, root, lambda: now[0]) for number in range(3)]
    for actor in actors:
        actor.start()
        assert actor.arrived.acquire(timeout=PATIENCE)
    published: set[str] = set()

    def look() -> None:
        """Check what must hold at every moment: a result that was seen never goes, changes or gets a rival."""
        results = {path.name: path.read_bytes() for path in root.glob("stages/*/*/*/result-*.json")}
        assert len(results) <= 1, "two results"
        for data in results.values():
            published.add(data.decode())
        assert len(published) <= 1, "a result changed"
        assert bool(results) == bool(published), "a result went"

    for who, operations, move in moves:
        if move == "wait":
            now[0] += LEASE / 4
        elif move == "kill":
            actors[who].doomed = True
        for _ in range(operations):
            if not actors[who].over:
                actors[who].step()
        look()
    for _ in range(8):  # who has not been killed goes on; time passes, so that the dead are seen to be dead
        now[0] += LEASE / 4
        for actor in actors:
            for _ in range(40):
                if not actor.over:
                    actor.step()
        look()
    for actor in actors:
        while not actor.over:
            actor.step()
        look()
        assert actor.error is None, repr(actor.error)
    last = Actor(9, stage, plan, root, lambda: now[0])
    last.go = threading.Semaphore(10_000)
    folder = Store(root).folder("mask", stage.key)
    for _ in range(12):
        last.observer.lost(folder.claim_path(folder.generation))
        now[0] += LEASE / 4
    last.run()
    assert last.error is None, repr(last.error)
    look()
    folder = Store(root).folder("mask", stage.key)
    result = folder.result()
    assert result is not None
    assert file_sha256(folder.path / result.artifact.file) == result.artifact.sha256
    outcomes = [(folder.end(n) or {}).get("outcome") for n in range(1, folder.generation + 1)]
    assert outcomes.count("published") <= 1


class Candidate(Gated):
    """One of several processes that reach for a lease, use it, and give it back."""

    def __init__(self, number: int, folder: Path, clock: Callable[[], float], began: list[int]) -> None:
        super().__init__(number, clock)
        self.lease = Lease(folder, LEASE, self.observer)
        self.began = began
        """The numbers under which the lease was acquired by anybody, in order."""
        self.inside = False

    def work(self) -> None:
        """Acquire the lease now and then."""
        for _ in range(5):
            if not self.lease.acquire():
                continue
            self.inside = True
            self.began.append(self.lease.generation)
            for _ in range(2):
                newest = max(self.began)
                assert not self.lease.held or self.lease.generation == newest, "used after it was overtaken"
            self.inside = False
            self.lease.release()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MOVES, max_size=40))
def test_whatever_stops_between_two_file_operations_a_lease_has_one_holder(
    gated: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    moves: list[tuple[int, int, str]],
) -> None:
    """Three hosts reach for a lease. Who was overtaken knows; as long as no lease has run out, nobody is."""
    monkeypatch.setattr("harness.claims.BEATS_PER_LEASE", 0.001)  # none comes: who is not moved seems dead
    monkeypatch.setattr("harness.claims.machine", lambda: (threading.current_thread().name, "boot", "space"))
    folder, now, began = tmp_path_factory.mktemp("lease"), [1000.0], list[int]()
    candidates = [Candidate(number, folder, lambda: now[0], began) for number in range(3)]

    def look() -> None:
        inside = sum(one.inside for one in candidates if not one.doomed)
        assert inside <= 1 or now[0] > 1000.0 + LEASE, "two at once"
        assert len(set(began)) == len(began), "one number twice"

    try:
        for one in candidates:
            one.start()
            assert one.arrived.acquire(timeout=PATIENCE)
        for who, operations, move in moves:
            now[0] += LEASE / 4 if move == "wait" else 0.0
            candidates[who].doomed = candidates[who].doomed or move == "kill"
            for _ in range(operations):
                if not candidates[who].over:
                    candidates[who].step()
                look()
        for one in candidates:
            while not one.over:
                one.step()
                look()
        last = Lease(folder, LEASE, Observer(clock=lambda: now[0]))

        def sleep(seconds: float) -> None:
            now[0] += seconds

        assert last.settle(lambda said: None, sleep)
        assert last.generation > max(began, default=0)
        last.release()
    finally:
        for one in candidates:
            one.lease._released.set()
            assert one.error is None, repr(one.error)
