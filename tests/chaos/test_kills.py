"""Killed, frozen, thawed: a grid of tickets cut from one another, under a killer, ends as an undisturbed run does."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.claims import Observer, Process
from harness.clean import find_waste
from harness.planfile import NEWEST, read_plan
from harness.store import Store
from tests.chaos.conftest import Record, amount
from tests.chaos.working import Crew, Held, astray, held, outcomes, owners
from tests.conftest import THIN, results, run_sweep, send, until

pytestmark = pytest.mark.chaos

AREA = "Killed, frozen, thawed"
GRID = f"""
name: tickets
protocol: {{preset: quick, epochs: {amount(16, 30)}}}
use: {{thin: "./thin.py:build"}}
grid:
  dataset: digits
  arch: thin
  mask: lth
  sparsity: [40%, 60%]
  recipe: [default, ls]
  seed: 0..{amount(0, 3)}
also:
  - {{mask: dense, recipe: default}}
tables: [any-mask]
figures: []
"""
LEASE = 2.0
USUAL = ("harness.sweep", "tickets.yaml", "--workers", "2", "--threads", "1")
UNDER_FIRE = (*USUAL, "--lease", str(LEASE), "--checkpoint-every", "0.1")
FREEZES = {"worker": (0.3, 2.5 * LEASE), "trainer": (0.1, 1.5 * LEASE)}
"""Seconds: some of a worker's outlast its lease."""
FOUND = {
    ("SIGKILL", "worker"): "its trainer ends with it; another worker goes on from the last checkpoint at once",
    ("SIGKILL", "trainer"): "the worker starts another trainer; the stage goes on from its last checkpoint",
    ("SIGTERM", "worker"): "the training saves after its step, the worker leaves; the next command goes on",
    ("SIGTERM", "trainer"): "the training saves after its step and is taken again",
    ("SIGSTOP", "worker"): "past its lease it is overtaken; thawed, it sees that and gives up",
    ("SIGSTOP", "trainer"): "its worker goes on saying that it lives; thawed, it goes on",
}


@dataclass
class Killer:
    """Sends signals to those who hold a stage, spread evenly over the grid: so many for each that is finished."""

    store: Path
    stages: int
    wanted: int
    draw: random.Random
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    frozen: dict[Process, float] = field(default_factory=dict)
    """Who is stopped, and when it is to go on."""
    noted: dict[tuple[Path, int], str] = field(default_factory=dict)
    """A hold's newest checkpoint when it was first seen, or last hit."""

    def strike(self) -> None:
        """Let go on who was frozen for long enough, and hit whose time has come."""
        for process in [process for process, due in self.frozen.items() if due <= time.monotonic()]:
            self._send(process, signal.SIGCONT)
            del self.frozen[process]
        done = sum(1 for _ in self.store.glob("stages/*/*/*/result-*.json"))
        allowed = min(self.wanted, self.wanted * (done + 2) / self.stages)
        for one in held(self.store):
            if self.sent.total() < allowed and not {one.supervisor, one.trainer} & self.frozen.keys():
                self._hit(one)

    def _hit(self, one: Held) -> None:
        """Hit a holder or its trainer: of new ones every third at once, else when there is a new checkpoint."""
        place, newest = (one.folder.path, one.generation), one.checkpoint
        if place not in self.noted:
            self.noted[place] = newest
            if self.draw.random() > 1 / 3:
                return
        elif newest <= self.noted[place]:
            return
        self.noted[place] = newest
        who = self.draw.choices(("worker", "trainer"), (2, 3))[0]
        process = one.supervisor if who == "worker" else one.trainer
        number = self.draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP))
        if number == signal.SIGSTOP:
            self.frozen[process] = time.monotonic() + self.draw.uniform(*FREEZES[who])
        self._send(process, number)
        self.sent[number.name, who] += 1

    def _send(self, process: Process, number: int) -> None:
        if not process.gone():
            send([process.pid], number)


@dataclass
class Persistence:
    """A user who starts the same command again and again until everything is done."""

    crew: Crew
    killer: Killer
    calls: int = 0
    retries: int = 0

    def go_on(self) -> bool:
        """Look at the command, start it again where it has ended too early, and let the killer strike."""
        last = self.crew.commands[-1] if self.crew.commands else None
        if last is None or last.poll() is not None:
            if last is not None and last.returncode == 0:
                return True
            failed = last is not None and "--retry all runs them once more" in self.crew.said(last)
            self.crew.start(*UNDER_FIRE, *(("--retry", "died") if failed else ()))
            self.calls, self.retries = self.calls + 1, self.retries + failed
        self.killer.strike()
        return False


def test_a_grid_of_chained_tickets_under_a_killer_ends_with_the_same_bits(tmp_path: Path, record: Record) -> None:
    (tmp_path / "thin.py").write_text(THIN)
    (tmp_path / "tickets.yaml").write_text(GRID)
    undisturbed = run_sweep(tmp_path, *USUAL[1:], "--store", "calm", timeout=600)
    assert undisturbed.returncode == 0, undisturbed.stderr
    calm, runs = tmp_path / "calm", tmp_path / "runs"
    stages = len(results(calm))
    killer = Killer(runs, stages, amount(12, 230), random.Random(1))
    with Crew(tmp_path) as crew:
        user = Persistence(crew, killer)
        until(user.go_on, 3600, every=0.02)
        seen = {process for found in owners(runs).values() for owner in found for process in owner.processes}
        until(lambda: all(process.gone() for process in seen), 30)
    lost, wrong = astray(runs, calm)
    given_up = f"; {user.retries} times a stage was given up and run again with --retry died" if user.retries else ""
    for (name, who), found in FOUND.items():
        said = f"{found}{given_up if (name, who) == ('SIGKILL', 'trainer') else ''}"
        record.note(f"{name} to a {who} that holds a stage", killer.sent[name, who], said, lost=lost, wrong=wrong)
    assert (lost, wrong) == (0, 0)
    assert killer.sent.total() >= amount(10, 200), killer.sent
    ends = Counter(outcome for key in results(runs) for outcome in outcomes(runs, key))
    assert ends["published"] <= stages, "nothing is published twice"
    assert ends.total() > stages + killer.sent.total() / 4, f"the signals must have met stages at work: {ends}"
    resumed = [one["provenance"]["resumed_at_step"] > 0 for (one,) in results(runs).values()]
    assert any(resumed)
    tidied = run_sweep(tmp_path, "tickets.yaml", "--gc", "--yes")
    assert tidied.returncode == 0, tidied.stderr
    assert not list(runs.rglob(".draft-*"))
    waste = find_waste(Store(runs), read_plan(runs / "sweeps" / "tickets" / NEWEST).plan, Observer())
    assert (waste.stages, waste.files, waste.running) == ([], [], 0)
