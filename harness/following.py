"""Watches workers that live elsewhere until nothing is left for them, and submits what becomes ready meanwhile."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import FrameType

from harness.allocation import APART, FIRST_PAUSE, LONGEST_PAUSE
from harness.claims import Observer
from harness.demand import demand
from harness.display import Display
from harness.errors import SchedulerUnavailable
from harness.index import stand
from harness.launch import Job, Launcher
from harness.planfile import SavedPlan
from harness.rounds import Round, go_round
from harness.states import FAILED
from harness.store import Store
from harness.words import count, span

SELDOM = 60.0
"""Seconds that the pauses between two questions to the scheduler grow to while no job is submitted or waits."""


@dataclass
class Following:
    """One call of the command that waits for the workers it has submitted. Ended, it changes nothing for them."""

    saved: SavedPlan
    store: Store
    launcher: Launcher
    observer: Observer
    stop: threading.Event = field(default_factory=threading.Event)
    trouble: list[str] = field(default_factory=list)
    """What keeps workers from starting, for good."""
    _said: set[str] = field(default_factory=set)
    _waiting: str = ""
    """What jobs waited for when that was last said."""
    _silent_since: float | None = None
    """When the scheduler did not answer first, of all the times since it last did."""

    def run(self, display: Display) -> bool:
        """Follow until all is done, or cannot be; return whether a person ended it before."""
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        pause, by_hand = APART, True
        try:
            with display.shown():
                while not self.stop.is_set():
                    seen = go_round(self.saved, self.store, self.launcher, self.observer, by_hand)
                    by_hand = by_hand and (seen.elsewhere or bool(seen.unanswered))
                    silent = self._silent_since is not None
                    self._heed_silence(seen, display)
                    waiting = self._show(seen, display)
                    if self._over(seen):
                        self._send_home(display)
                        return False
                    if seen.unanswered:
                        pause = min(LONGEST_PAUSE, 2 * pause) if silent else FIRST_PAUSE
                    else:
                        pause = APART if waiting or seen.submitted or seen.elsewhere else min(SELDOM, 1.5 * pause)
                    self._wait(pause, seen, display)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.stop.set()

    def _heed_silence(self, seen: Round, display: Display) -> None:
        """Say once that the scheduler does not answer, and once that it does again."""
        if seen.unanswered and self._silent_since is None:
            self._silent_since = time.monotonic()
            longest = span(LONGEST_PAUSE)
            display.say(f"{seen.unanswered}; what runs goes on; it is asked again, after pauses of up to {longest}")
            display.line(0, "the scheduler does not answer")
        elif self._silent_since is not None and not (seen.over or seen.unanswered or seen.elsewhere):
            display.say(f"the scheduler answers again, after {span(time.monotonic() - self._silent_since)}")
            self._silent_since = None

    def _wait(self, seconds: float, seen: Round, display: Display) -> None:
        """Wait for the next question; end early where the store shows that all is done, or that more could be done than
        when the scheduler last answered.
        """
        plan = self.saved.plan
        for seconds_passed in range(2, int(seconds) + 1, 2):
            if self.stop.wait(2.0):
                return
            standing = stand(plan, self.store, self.observer)
            display.stages(len(plan.stages) - len(standing.states))
            heard = seconds_passed >= APART and not seen.unanswered
            if not standing.states or (heard and demand(plan, standing, self.launcher, seen.jobs) - seen.wanted):
                return

    def _send_home(self, display: Display) -> None:
        """End workers that still wait for their turn, since nothing is left for them."""
        try:
            if waiting := [job for job in self.launcher.poll() if job.state == "pending"]:
                self.launcher.cancel(waiting)
        except SchedulerUnavailable as error:
            display.say(f"{error}; jobs that still wait are not cancelled: each leaves when it finds nothing to do")

    def _show(self, seen: Round, display: Display) -> bool:
        """Say what is new; return whether jobs wait for their turn."""
        plan, standing = self.saved.plan, seen.standing
        display.stages(len(plan.stages) - len(standing.states))
        for sentence in seen.submitted:
            self._say(display, f"submitted {sentence}")
        if seen.reached:
            self._say(display, str(seen.reached))
        for key, state in standing.states.items():
            if state.name in FAILED:
                self._say(display, f"{state.name}: {plan.stages[key].label}: {state.detail}")
        for sentence in seen.notes(self.launcher):
            self._say(display, sentence)
        if seen.unanswered or seen.elsewhere:
            return False
        if (said := seen.waiting(self.launcher)) and said != self._waiting:
            display.say(said)
        self._waiting = said
        states = Counter(job.state for job in seen.jobs)
        display.line(0, f"{count(states['running'], 'worker')} running, {states['pending']} waiting")
        return bool(states["pending"])

    def _say(self, display: Display, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            display.say(sentence)

    def _over(self, seen: Round) -> bool:
        """Return whether nothing more can come."""
        if seen.over:
            return True
        if seen.unanswered or seen.elsewhere:
            return False
        if seen.reached and not seen.jobs:
            return True
        if seen.cancelled and not seen.jobs:
            self.trouble.append("the sweep was cancelled; run it again to go on")
            return True
        hopeless = [job for job in seen.jobs if self._stuck(job)]
        if seen.jobs and len(hopeless) == len(seen.jobs) and not seen.submitted:
            self.trouble.append(f"nothing that was submitted can ever start: {self._stuck(hopeless[0])}")
            return True
        return False

    def _stuck(self, job: Job) -> str:
        return self.launcher.never(job) if job.state == "pending" else ""
