"""One claimed stage from order to end: heartbeats, fencing, the trainer's fate, and publication."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.claims import BEATS_PER_LEASE, LEASE, Claim, Owner
from harness.frontier import Frontier
from harness.hosts import CRASHES, avoided_here, record_fault, soundness_note
from harness.inline import Inline
from harness.machine import machine
from harness.memory import oom_kills
from harness.orders import artifacts, order_for
from harness.plan import Stage
from harness.provenance import source_digest
from harness.publication import publish_made
from harness.sealed import keep_note, read_note
from harness.states import FAILED
from harness.store import digest, file_sha256, read_json, write_whole
from harness.trainer import STARTING, Trainer, serve
from harness.watchdog import FIRST, LONGEST, STALL, WHOLE, Watchdog

GRACE = 25.0
"""Seconds that a trainer asked to stop may take to save and leave; Slurm by default waits 30 before it kills."""
STEPPING = ("train", "rescale")
"""Kinds of stages that tell of their steps, and can save."""

Tell = Callable[..., None]


@dataclass(frozen=True)
class Setup:
    """How this worker runs stages."""

    device: str = "cpu"
    threads: int = 1
    checkpoint_every: float = 300.0
    lease: float = LEASE
    memory: int = 0
    """Bytes of the machine's memory that this worker may use; a stage that needed more waits for a worker with more."""
    gpu_memory: int = 0
    """The same of its GPU's memory."""
    time: float = 0.0
    """Seconds of this worker's whole time limit; 0: it has none."""
    discard_weights: bool = False
    """Whether the weights of trainings that no other stage reads are thrown away, their results kept."""
    scratch: str = ""
    """A folder on this machine's own disk, where checkpoints are written first."""
    world: int = 1
    """How many processes this worker trains with."""
    as_one: bool = False
    """Whether it trains with one process what asks for several."""
    fast: bool = False
    """Whether trainings may differ in their last bits from run to run, to be faster."""
    execution: str = "eager"
    """How trainings run their networks: `eager`, `compiled` or `graphs`."""
    large: bool = False
    """Whether it takes only what ran out of memory or time elsewhere."""
    stall: float = STALL
    """Seconds without progress that are always allowed between two steps (watchdog.py)."""


class Trouble(Exception):
    """No stage's fault, and a reason to take no more."""


class Unwritable(Trouble):
    """The file system is full, read-only or failing."""


class Supervisor:
    """Runs claimed stages in its trainer and publishes what they make."""

    def __init__(
        self,
        frontier: Frontier,
        setup: Setup,
        tell: Tell,
        stopping: Callable[[], bool],
        start: Callable[[str], Trainer | Inline] = Trainer,
    ) -> None:
        self.setup, self.tell, self.stopping, self.start = setup, tell, stopping, start
        self.use(frontier)
        self.beside: Callable[[], None] = lambda: None
        """Called at every heartbeat, beside the claim's own."""
        self.because: Callable[[], Mapping[str, Any]] = dict
        """Why it was asked to stop, in an end's terms."""
        self._next_beat = 0.0
        self.ready = False
        """Whether the newest trainer can be sent stages; false where this was asked to stop while it started."""
        self._killed = oom_kills()
        self._heed()
        self.trainer = self._start()

    def use(self, frontier: Frontier) -> None:
        """Take stages from a plan from now on."""
        self.frontier = frontier
        frontier.has = {"ram": self.setup.memory, "gpu": self.setup.gpu_memory, "time": self.setup.time or math.inf}

    def _heed(self) -> None:
        if said := avoided_here(self.frontier.store):
            raise Trouble(said)

    def _start(self) -> Trainer | Inline:
        """Start a trainer; the first one on a machine's CPU tries out its torch."""
        device, threads = self.setup.device, self.setup.threads
        note = soundness_note(self.frontier.store, threads) if self.start is Trainer and device == "cpu" else None
        if note is not None and read_note(note) is not None:
            note = None  # it was tried before
        trainer = self.start(device) if note is None else Trainer(device, partial(serve, check=threads))
        try:
            self.ready = self._await(trainer)
            if self.ready and note is not None:
                keep_note(note, {"convolutions": "right"})
        except BaseException:
            trainer.kill()  # python would ask it to end, and wait: but to a trainer that means to save and go on
            raise
        return trainer

    def _await(self, trainer: Trainer | Inline) -> bool:
        """Return whether a trainer is ready, or this was asked to stop before. Raises Trouble where it is of no use."""
        deadline, checking = time.monotonic() + STARTING, False
        while time.monotonic() < deadline:
            message = trainer.hear(1.0)
            if message and message["at"] == "ready":
                if message.get("source", source_digest()) != source_digest():
                    raise Trouble("the code was edited since this worker started; start it anew")
                return True
            if self.stopping():  # who is stopped with it, in the middle of its start, says nothing of this machine
                return False
            if message and message["at"] == "checking":
                checking = True
            if message and (message["at"] == "unsound" or (checking and message.get("signal") in CRASHES)):
                raise Trouble(
                    "this machine's torch computes convolutions wrongly, so nothing is trained on its CPU: "
                    f"{message['message']}; what to do about it: harness doctor"
                )
            if message and message["at"] == "unfit":
                raise Trouble(f"device {self.setup.device!r} cannot be used here: {message['message']}")
            if message and message["at"] == "died":
                raise Trouble(f"{message['message']} while loading torch; try: python -c 'import torch'")
        raise Trouble(f"torch was not loaded in {STARTING:.0f} s; the file system that it lies on may hang")

    def beat(self) -> None:
        """Say that this worker lives, between two stages too."""
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + self.setup.lease / BEATS_PER_LEASE
            self.beside()

    def owner(self) -> Owner:
        """Return who claims: this process and its trainer."""
        setup, starved = self.setup, oom_kills() > self._killed
        return Owner.me(*self.trainer.pids, lease=setup.lease, memory=setup.memory, starved=starved)

    def run(self, stage: Stage, claim: Claim) -> str:
        """Run a claimed stage; return how it ended. Raises Trouble, Unwritable where the store cannot be written."""
        self.tell(event="start", label=stage.label, kind=stage.kind, key=stage.key)
        began = time.monotonic()
        try:
            parents = artifacts(self.frontier, stage)
            if parents is None:
                claim.end("stopped", message="a parent's artifact is gone")
                self.frontier.forget()
                return "stopped"
            self._write_spec(stage, claim)
            killed = oom_kills()
            self.trainer.send(self._order(stage, claim, parents))
            end = self._follow(stage, claim)
            if end["outcome"] == "died" and end.get("signal") == "SIGKILL" and oom_kills() > killed:
                end |= {"outcome": "failed", "cause": "oom", "resource": "ram"}
                end["message"] = "the kernel ended the trainer: out of memory"
            outcome = self._conclude(stage, claim, parents, end)
        except OSError as error:
            self.trainer.kill()
            with contextlib.suppress(OSError):
                claim.end("stopped", message=str(error))
            raise Unwritable(f"{claim.folder.path}: {error}") from error
        except ValueError as error:  # such as a metric that JSON cannot hold: this stage's fault, not the worker's
            claim.end("failed", cause="code", message=f"its result cannot be written: {error}")
            end, outcome = {"outcome": "failed", "message": str(error)}, "failed"
        told, shown = outcome, str(end.get("message", "")) if outcome in (*FAILED, "died", "fault") else ""
        if outcome in ("died", "stopped") and (state := self.frontier.state(stage)).name in FAILED:  # not tried again
            told, shown = state.name, state.detail
        self.tell(
            event="end",
            label=stage.label,
            kind=stage.kind,
            outcome=told,
            message=shown,
            seconds=time.monotonic() - began,
        )
        if end["outcome"] == "trouble":
            raise Unwritable(str(end["message"]))
        if end["outcome"] == "lost":
            raise Trouble(str(end["message"]))
        self._heed()
        if outcome in ("failed", "fault") or not self.trainer.alive:
            self._restart()
        return outcome

    def close(self) -> None:
        """End the trainer."""
        self.trainer.kill()

    def _restart(self) -> None:
        self.trainer.kill()
        self.trainer = self._start()

    def _write_spec(self, stage: Stage, claim: Claim) -> None:
        path = claim.folder.path / "spec.json"
        if "spec.json" not in claim.folder.names or digest(read_json(path)) != stage.key:
            write_whole(path, stage.dump())

    def _order(self, stage: Stage, claim: Claim, parents: dict[str, tuple[str, str]]) -> dict[str, Any]:
        setup = self.setup
        return {
            **order_for(stage, self.frontier.store, claim.attempt, claim.earlier, parents),
            "device": setup.device,
            "threads": setup.threads,
            "checkpoint_every": setup.checkpoint_every,
            "scratch": str(Path(setup.scratch) / stage.key) if setup.scratch else "",
            "fast": setup.fast and stage.kind == "train",
            "execution": setup.execution,
        }

    def _follow(self, stage: Stage, claim: Claim) -> dict[str, Any]:
        """Hear the trainer until the stage ends, beating all the while."""
        every, steps = self.setup.lease / BEATS_PER_LEASE, stage.kind in STEPPING
        now, watchdog = time.monotonic(), Watchdog(self.setup.stall, _first(stage))
        next_beat, leave_by = now + every, 0.0
        while True:
            before, message = now, self.trainer.hear(min(0.25, every))
            now = time.monotonic()
            watchdog.elapse(now - before)
            if message is not None and message["at"] == "waiting":  # for what it needs of a cluster: nothing has begun
                watchdog = Watchdog(self.setup.stall, _first(stage))
            elif message is not None:
                watchdog.reset()
                if message["at"] == "end":
                    return message
                if message["at"] == "died":
                    return {"outcome": "died", "message": message["message"], "signal": message.get("signal", "")}
                if message["at"] in ("step", "epoch"):
                    self.tell(event=message.pop("at"), key=stage.key, **message)
            if now >= next_beat:
                next_beat = now + every
                self.beat()
                if not claim.beat():
                    self.trainer.kill()
                    return {"outcome": "gave up", "message": "another worker has taken over"}
            if self.stopping() and not leave_by:
                leave_by = now + (GRACE if steps else 0.0)  # what takes no steps has nothing to save
                self.trainer.send({"stop": True})
            if leave_by and now > leave_by:
                self.trainer.kill()
                return {"outcome": "stopped", "message": "the trainer did not leave in time"}
            if watchdog.expired and not leave_by:
                self.trainer.dump()
                self.trainer.kill()
                return {"outcome": "died", "cause": "stalled", "message": watchdog.message}

    def _conclude(self, stage: Stage, claim: Claim, parents: dict[str, tuple[str, str]], end: dict[str, Any]) -> str:
        """Publish what was made, or write down how the attempt ended."""
        outcome = str(end["outcome"])
        if not claim.current():  # whatever went wrong here, the stage is another's, who may have cleaned up under us
            if "draft" in end:
                (claim.attempt / end["draft"]).unlink(missing_ok=True)
            claim.end("gave up", message="another worker has taken over")
            return "gave up"
        if outcome == "made":
            keep = not self.setup.discard_weights or stage.kind != "train" or stage.key in self.frontier.plan.inner
            published = publish_made(self.frontier, stage, claim, parents, end, keep)
            if self.setup.scratch:
                shutil.rmtree(Path(self.setup.scratch) / stage.key, ignore_errors=True)
            return published
        if outcome == "corrupt":
            outcome = "stopped" if self._set_aside(*parents[end["role"]]) else "died"  # a misread may be repeated
            self.frontier.forget()
        if outcome in ("trouble", "lost"):
            outcome = "stopped"
        details = {k: v for k, v in end.items() if k not in ("at", "outcome")}
        details |= self.because() if end["outcome"] == "stopped" else {}
        if outcome == "fault":
            host, boot = str(end.get("host", machine()[0])), str(end.get("boot", machine()[1]))
            record_fault(self.frontier.store, self.setup.device, str(end["message"]), stage.key, host, boot)
            details["host"] = host
        if details.get("cause") == "oom":
            details["memory"] = self.setup.gpu_memory if details["resource"] == "gpu" else self.setup.memory
        claim.end(outcome, **details)
        return outcome

    def _set_aside(self, path: str, sha256: str) -> bool:
        """Rename an artifact that is certainly damaged, so that its stage counts as in need of a new one."""
        file = Path(path)
        if file.is_file() and file_sha256(file) == sha256:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.replace(file, file.with_name(f"damaged-{file.name}"))
        return True


def _first(stage: Stage) -> int:
    """Return how many times the usual time-out may pass before a stage's first progress."""
    if stage.kind in STEPPING:
        return FIRST
    return LONGEST if stage.kind == "data" or "source" in stage.spec.get("method", {}) else WHOLE
