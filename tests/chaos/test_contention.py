"""At the same time: many reach for few stages, some are killed; every generation of every stage has one winner."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from harness.claims import Owner, Process
from harness.store import Store
from tests.chaos.conftest import Record, amount
from tests.chaos.contender import STAGES
from tests.chaos.working import Crew
from tests.conftest import send, until

pytestmark = pytest.mark.chaos

AREA = "At the same time"
CONTENDERS = 64


@dataclass
class Told:
    """What the contenders' logs say together."""

    won: dict[tuple[str, int], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    """Stage and generation -> the processes that say that they won it, and when."""
    left: dict[tuple[str, int], float] = field(default_factory=dict)
    published: dict[tuple[str, int], list[int]] = field(default_factory=lambda: defaultdict(list))
    """Stage and edition -> the contenders that say that they published it."""
    late: int = 0

    @classmethod
    def of(cls, logs: Iterable[Path]) -> Told:
        """Read the logs. A killed contender's is whole too: its lines are written one by one."""
        told = cls()
        for path in logs:
            pid = 0
            for line in path.read_text().splitlines():
                match line.split():
                    case ["am", number]:
                        pid = int(number)
                    case ["won", stage, generation, when]:
                        told.won[stage, int(generation)].append((pid, float(when)))
                    case ["left", stage, generation, when]:
                        told.left[stage, int(generation)] = float(when)
                    case ["published", stage, edition]:
                        told.published[stage, int(edition)].append(int(path.name.partition("-")[2]))
                    case ["late", _]:
                        told.late += 1
        return told

    def overlaps(self) -> int:
        """Count the holds of one stage that began before the one before had ended."""
        found = 0
        for stage in STAGES:
            holds = [
                (when, self.left.get((stage, generation), when))  # a killed holder's lasted for an unknown while
                for (name, generation), winners in sorted(self.won.items())
                if name == stage
                for _, when in winners
            ]
            found += sum(began < ended for (_, ended), (began, _) in pairwise(holds))
        return found


def claimed(store: Store) -> dict[tuple[str, int], int]:
    """Return the process that each claim file names, by stage and generation."""
    found = {}
    for stage in STAGES:
        folder = store.folder("mask", stage)
        for generation in range(1, folder.generation + 1):
            owner = Owner.read(folder.claim_path(generation))
            found[stage, generation] = owner.processes[0].pid if owner else 0
    return found


def holder(store: Store, stage: str) -> Process | None:
    """Return the process that holds a stage now."""
    folder = store.folder("mask", stage)
    newest = folder.generation
    owner = Owner.read(folder.claim_path(newest)) if newest and folder.end(newest) is None else None
    return owner.processes[0] if owner and not owner.processes[0].gone() else None


def test_every_generation_has_one_winner_among_many_who_reach_for_it(tmp_path: Path, record: Record) -> None:
    store, draw, wanted, killed = Store(tmp_path), random.Random(2), amount(8, 80), set[int]()
    seconds = amount(5, 60)
    with Crew(tmp_path) as crew:
        crowd = crew.start("tests.chaos.contender", str(tmp_path), str(CONTENDERS), str(seconds))

        def kill_a_holder() -> bool:
            victim = holder(store, draw.choice(STAGES))
            if victim is not None and len(killed) < wanted:
                send([victim.pid], 9)
                killed.add(victim.pid)
            return crowd.poll() is not None

        until(kill_a_holder, seconds + 60, every=seconds / wanted / 4)
        assert crowd.returncode == 0, crew.said(crowd)
    told, claims = Told.of(tmp_path.glob("log-*")), claimed(store)
    doubles = sum(len(winners) - 1 for winners in told.won.values())
    doubles += sum(len(contenders) - 1 for contenders in told.published.values())
    others = sum(claims.get(place) != winners[0][0] for place, winners in told.won.items())
    gone = sum(
        not (path := store.path("mask", stage) / f"result-{edition:04d}.json").exists()
        or path.read_text() != str(contenders[0])
        for (stage, edition), contenders in told.published.items()
    )
    wrong = doubles + others + told.overlaps()
    reached = f"link(2) lets one of them through; the others, {told.late:,} that came in the same moment, look again"
    record.note(f"{CONTENDERS} processes reach for 10 stages", len(claims), reached, lost=gone, wrong=wrong)
    record.note("SIGKILL to the holder of a contended stage", len(killed), "the next claims it at once")
    assert (gone, wrong) == (0, 0)
    assert {claims[place] for place in claims.keys() - told.won.keys()} <= killed, "claimed by nobody who says so"
    assert len(killed) >= amount(4, 40)
    assert told.late > 0, "no two ever reached for the same generation"
    held = Counter(stage for stage, _ in told.won)
    assert all(held[stage] > amount(3, 100) for stage in STAGES), held
    assert told.published
