"""What a running stage may ask and tell: whether to stop, how far it has come, and the checkpoints it leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.rows import line_of
from harness.store import write_whole
from harness.train.checkpoint import Checkpoints, pack
from harness.train.layout import LAYOUTS
from harness.train.order import Order
from harness.train.run import Training
from harness.train.training import state_tensors

TELL_EVERY = 0.5
"""Seconds between two progress messages."""


class Stopped(Exception):
    """The stage was asked to stop and has saved where it stands."""


class Desk:
    """Where orders are worked on: whether to stop, and whom to tell."""

    def __init__(self, hear: Callable[[dict[str, Any]], object]) -> None:
        self.hear = hear
        self.stop = threading.Event()

    def tell(self, **message: Any) -> None:
        """Tell the supervisor something."""
        self.hear(message)


GO_ON, SAVE, STOP = range(3)
"""What a process wishes to do after a step; where several train together, the largest wish is done by all."""


class Watch:
    """Sees the loop's steps: tells of progress, saves checkpoints by time, and stops the loop when asked to.

    Of several processes that train together only the first tells and saves.
    """

    def __init__(self, order: Order, control: Desk) -> None:
        self.order, self.control = order, control
        self.attempt = Path(order.attempt)
        self.checkpoints = Checkpoints(self.attempt, order.scratch)
        now = time.monotonic()
        self.next_save, self.next_tell = now + order.checkpoint_every, now
        self.resumed_at = self.resumed = 0
        self.since, self.steps = now, 0
        self.began, self.first_step = now, 0.0
        """When this attempt began, and how many seconds later its first step was done."""
        self.writing = 0.0
        """Seconds that the loop has waited for checkpoints and metrics to be written."""
        self.stamp: dict[str, Any] = {}

    def begin(self, training: Training) -> None:
        """See the loop begin: write the rows of the checkpoint that this attempt goes on from; its own follow them."""
        self.stamp |= {"theta0": training.theta0, "layout": LAYOUTS[training.layout], "execution": training.execution}
        if self.order.fast:
            self.stamp["fast"] = True
        self.resumed_at, self.resumed = training.done, training.position.resumed
        if len(worlds := training.position.worlds) > 1:
            self.stamp["worlds"] = worlds
        if (rows := training.position.rows) and self.order.rank == 0:
            write_whole(self.attempt / "metrics.jsonl", "".join(map(line_of, rows)).encode())

    def after_step(self, training: Training, due: Callable[[], None]) -> None:
        """See a step done."""
        self.steps += 1
        now = time.monotonic()
        self.first_step = self.first_step or now - self.began
        stopping, first = self.control.stop.is_set(), self.order.rank == 0
        wish = training.group.most(STOP if stopping else SAVE if first and now >= self.next_save else GO_ON)
        if wish != GO_ON:
            due()
            if first:
                self.save(training)
            self.next_save = time.monotonic() + self.order.checkpoint_every
        if wish == STOP:
            self.checkpoints.settle()
            raise Stopped
        if first and now >= self.next_tell:
            if self.order.world == 1:  # the clock of one process says nothing to the others, who would have to join in
                due()
            self.tell(training, now)

    def at(self, done: int, of: int) -> None:
        """See how far a stage that is no training has come."""
        if self.control.stop.is_set():
            raise Stopped
        now = time.monotonic()
        if now >= self.next_tell:
            left = (of - done) * (now - self.since) / done if done else 0.0
            self.control.tell(at="step", unit="iteration", epoch=done + 1, epochs=of, loss=None, speed=None, left=left)
            self.next_tell = now + TELL_EVERY

    def alive(self) -> None:
        """See that work goes on where no step is done; else it would be taken for a stall."""
        now = time.monotonic()
        if self.order.rank == 0 and now >= self.next_tell:
            self.control.tell(at="alive")
            self.next_tell = now + TELL_EVERY

    def after_epoch(self, training: Training) -> None:
        """See an epoch done: add its row to the metrics."""
        if self.order.rank:
            return
        began = time.monotonic()
        with open(self.attempt / "metrics.jsonl", "a") as file:
            file.write(line_of(training.position.rows[-1]))
        self.writing += time.monotonic() - began
        self.control.tell(at="epoch", row=training.position.rows[-1])

    def save(self, training: Training) -> None:
        """Write a checkpoint."""
        began = time.monotonic()
        rests_on = {**self.order.read, "epochs": str(training.epochs)}
        self.checkpoints.write(*pack(training.done, training.position, state_tensors(training), rests_on))
        self.writing += time.monotonic() - began

    def tell(self, training: Training, now: float) -> None:
        """Tell the supervisor where the loop stands, and how fast it is, in images a second."""
        at, total = training.position, training.steps * training.epochs
        speed = self.steps * training.batch / max(now - self.since, 1e-9)
        left = (total - training.done) * training.batch / speed
        loss = at.loss_sum / at.seen if at.seen else None
        self.control.tell(
            at="step",
            epoch=at.epoch + 1,
            epochs=training.epochs,
            loss=loss,
            speed=speed,
            left=left,
        )
        self.next_tell, self.since, self.steps = now + TELL_EVERY, now, 0
