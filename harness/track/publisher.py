"""The publisher: brings one target of W&B to what the store says, and survives what the server does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from harness.claims import Lease, Observer
from harness.errors import printable
from harness.index import stand
from harness.planfile import SavedPlan
from harness.states import State
from harness.store import Store
from harness.track.about import About, about_stages
from harness.track.delivery import Delivery
from harness.track.desk import Stalled
from harness.track.ledger import Ledger, Shown, read_turns, write_turns
from harness.track.lives import checkpoints
from harness.track.page import Page, without_turn
from harness.track.target import Target, Wish, plans_of, renewed, shards_of
from harness.track.writer import Writer, signature
from harness.words import count

LOOK = 100
"""Stages that are sent, and then looked at, together."""
SHOWN = 32
"""Running trainings that are shown live: each costs the server a request every half minute."""
TRIES = 3
"""Times that a run is sent in one pass before it is left for the next."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0
T = TypeVar("T")


@dataclass
class Progress:
    """What one pass found and did."""

    stages: int = 0
    seen: int = 0
    runs: int = 0
    """Runs that the store has something to say of."""
    whole: int = 0
    """Those whose newest word is known to have come."""
    left: int = 0
    """Stages that are not over yet."""
    refused: dict[str, str] = field(default_factory=dict)
    """Runs that the server would not have, with its reason."""
    fault: str = ""
    """What ended the pass before its time."""

    @property
    def complete(self) -> bool:
        """Return whether the server has all that there is to say now."""
        return not self.fault and not self.refused and self.seen == self.stages


@dataclass
class Task:
    """A stage whose pages differ from what was published."""

    key: str
    signature: str
    pages: list[Page]


@dataclass
class Publisher:
    """Publishes the sweeps of one target; holds its lease."""

    store: Store
    wish: Wish
    target: Target
    folder: Path
    lease: Lease
    delivery: Delivery
    say: Callable[[str], None]
    report: Callable[[Progress], None] = lambda progress: None
    finished_only: bool = False
    observer: Observer = field(default_factory=Observer)
    faults: int = 0
    """Passes in a row that the server, or the store's file system, ended."""
    refusals: int = 0
    """Passes in a row that left out runs which the server would not have."""
    _said: set[str] = field(default_factory=set)
    _live: dict[str, str] = field(default_factory=dict)
    """Run that is open -> the digest of its page."""

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder, "sent" if self.delivery.online else "kept", self.lease.generation)
        self.fresh = not self.ledger.entries and self.lease.generation == 1
        self.turns = read_turns(self.folder)
        self.delivery.closed = self._live.clear

    def one_pass(self, rebuild: bool = False) -> Progress:
        """Publish all that is new. A fault of the server ends it early; the next one goes on from there."""
        progress = Progress()
        try:
            for tasks in chunks(self._tasks(progress, rebuild), LOOK):
                if not self.lease.held:
                    raise Stalled("another process publishes here now")
                if not self._publish(tasks, progress):
                    raise Stalled("it takes no run at all: " + next(iter(progress.refused.values())))
                self.report(progress)
        except (Stalled, OSError) as error:  # the server, or the store's file system
            self.delivery.close()
            progress.fault = str(error)
            self.tell(f"wandb: {self.target}: {error}; trainings go on, what is missing is sent later")
        for why in dict.fromkeys(progress.refused.values()) if not progress.fault else ():
            runs = [run for run, reason in progress.refused.items() if reason == why]
            self.tell(f"wandb: {count(len(runs), 'run')} left for later: {why} ({runs[0]})")
        self.faults = self.faults + 1 if progress.fault else 0
        self.refusals = self.refusals + 1 if progress.refused else 0
        self.report(progress)
        return progress

    @property
    def pause(self) -> float:
        """Return the seconds to wait before the server is tried again."""
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.faults, 10)) if self.faults else 0.0

    def writer(self, abouts: Mapping[str, About]) -> Writer:
        """Return what makes pages, in the project that each stage belongs to."""
        shards = shards_of(self.folder, self.wish.project, self.wish.shard_by, list(abouts.values()))
        return Writer(self.store, shards.of, self.wish.artifacts, self.turns)

    def begun(self, progress: Progress, rebuild: bool) -> Iterator[tuple[About, State | None, Any, Writer]]:
        """Yield the stages that have been begun, parents first, with their state, or their edition where done."""
        self.wish = renewed(self.store, self.wish)
        plans = plans_of(self.store, self.wish, self.tell)
        abouts = about_stages(plans)
        writer = self.writer(abouts)
        states, done, held = self._standing(plans, rebuild)
        progress.stages = len(abouts)
        self._let_go(abouts)
        for key, about in abouts.items():
            state = states.get(key) if key not in done else None
            progress.left += state is not None and not state.over and key not in held
            progress.seen += 1
            if key in done:
                yield about, None, done[key], writer
            elif state is not None and state.generation:
                yield about, state, [*vars(state).values(), *self._checkpoints(about, state)], writer

    def _tasks(self, progress: Progress, rebuild: bool) -> Iterator[Task]:
        """Yield the stages whose pages differ from what was published."""
        for about, state, of, writer in self.begun(progress, rebuild):
            key, sign = about.stage.key, signature(about, writer, of)
            entry = self.ledger.entries.get(key)
            if entry is not None and entry.signature == sign:
                progress.runs += len(entry.runs)
                progress.whole += len(entry.runs)
                continue
            all_pages = self.pages(writer, about, state)
            pages = [page for page in all_pages if self._wanted(page)]
            progress.runs += len(pages)
            later = len(pages) < len(all_pages) or any(page.state == "running" for page in pages)
            if pages:
                yield Task(key, "" if later else sign, pages)

    def _wanted(self, page: Page) -> bool:
        """Return whether a page is to be sent now."""
        if self.finished_only or not self.delivery.online:
            return page.final or (page.gone and self.delivery.online)
        return page.state != "running" or page.id in self._live or len(self._live) < SHOWN

    def _let_go(self, abouts: Mapping[str, About]) -> None:
        """End the runs that are open of stages that no sweep has any more."""
        for run in [run for run in self._live if run.split("-")[0] not in abouts]:
            self.delivery.leave(run)
            self._live.pop(run, None)

    def _standing(self, plans: Sequence[SavedPlan], rebuild: bool) -> tuple[dict[str, State], dict[str, Any], set[str]]:
        """Return the states of what is unfinished, the editions of what is done, what a failed stage holds back."""
        states: dict[str, State] = {}
        done: dict[str, Any] = {}
        held: set[str] = set()
        for saved in plans:
            standing = stand(saved.plan, self.store, self.observer, rebuild, keep=False)
            done |= {key: [found.edition, found.sha256] for key, found in standing.done.items()}
            states |= standing.states
            held |= standing.blocked(saved.plan).keys()
        return states, done, held

    def _checkpoints(self, about: About, state: State | None) -> list[str]:
        goes_on = state is not None and not state.over and about.stage.kind == "train"
        return checkpoints(self.store.folder("train", about.stage.key)) if goes_on else []

    def pages(self, writer: Writer, about: About, state: State | None) -> list[Page]:
        """Return a stage's pages; a run whose rows contradict what it was shown gives way to a new one."""
        known = self.ledger.runs(about.stage.key)
        pages = writer.pages(about, state, list(known))
        if spoilt := [page.id for page in pages if page.id in known and contradicts(page, known[page.id])]:
            self.turn(spoilt)
            pages = writer.pages(about, state, list(known))
        return pages

    def turn(self, runs: Sequence[str]) -> None:
        """Give runs that cannot be put right a new id each; the old ones are told as superseded."""
        for run in map(without_turn, runs):
            self.turns[run] = self.turns.get(run, 0) + 1
        write_turns(self.folder, self.turns)

    def _publish(self, tasks: Sequence[Task], progress: Progress) -> bool:
        """Send the pages of some stages, look whether they have come, and note those that have.

        Return whether any did.
        """
        known = {run: shown for task in tasks for run, shown in self.ledger.runs(task.key).items()}
        pages = [page for task in tasks for page in task.pages]
        new = [page for page in pages if page.digest not in (self._digest(known, page), self._live.get(page.id))]
        there = set() if self.fresh else self.delivery.came([page for page in new if page.state != "running"])
        missing = [page for page in new if page.id not in there]
        refused: dict[str, str] = {}
        for attempt in range(TRIES if missing else 0):
            if attempt == 0:
                self._note(tasks, {page.id: _shown(page, "") for page in missing})
            refused = self.delivery.send(missing)
            for page in missing:
                if page.state == "running" and page.id not in refused:
                    self._live[page.id] = page.digest
            ended = [page for page in missing if page.state != "running"]
            came = self.delivery.came([page for page in ended if page.id not in refused], patience=1.0 + attempt)
            missing = [page for page in missing if page.id in refused or (page in ended and page.id not in came)]
            if not missing:
                break
        for page in missing:
            progress.refused[page.id] = refused.get(page.id, "not all of it came")
        left = {page.id for page in missing}
        come = {page.id: _shown(page, page.digest) for page in pages if page.state != "running" and page.id not in left}
        for run in come:
            self._live.pop(run, None)
        self._note(tasks, come, {task.key for task in tasks if not left & {page.id for page in task.pages}})
        progress.whole += len(pages) - len(left)
        return len(left) < len(new) or len(new) < 2

    @staticmethod
    def _digest(known: Mapping[str, Shown], page: Page) -> str:
        return known[page.id].digest if page.id in known else ""

    def _note(self, tasks: Sequence[Task], shown: Mapping[str, Shown], whole: Collection[str] = ()) -> None:
        """Note what runs were shown, or are about to be; and the stages of which everything has come."""
        for task in tasks:
            mine = {page.id: shown[page.id] for page in task.pages if page.id in shown}
            had = self.ledger.runs(task.key)
            self.ledger.note(task.key, task.signature if task.key in whole else "", {**had, **mine})

    def tell(self, sentence: str) -> None:
        """Say something once."""
        if sentence not in self._said:
            self._said.add(sentence)
            self.say(printable(sentence))


def _shown(page: Page, digest: str) -> Shown:
    return Shown(digest, len(page.rows), page.prefix(len(page.rows)))


def contradicts(page: Page, shown: Shown) -> bool:
    """Return whether a page's rows are others than those that its run was shown."""
    if page.gone:
        return False
    if len(page.rows) < shown.rows:
        return page.final
    return page.prefix(shown.rows) != shown.prefix if shown.rows else False


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield items in lists of a size, the last one shorter."""
    some: list[T] = []
    for item in items:
        some.append(item)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some
