"""One claimed stage from order to end: heartbeats, fencing, the trainer's fate, and publication."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.claims import BEATS_PER_LEASE, LEASE, Claim, Owner
from harness.frontier import Frontier
from harness.plan import Stage
from harness.store import Artifact, Result, file_sha256, place, publish, remove_dead_drafts, sync, write_whole
from harness.trainer import STARTING, Trainer

STALL = 3600.0
"""Seconds without any word from the trainer after which it counts as hung."""
GRACE = 60.0
"""Seconds that a trainer asked to stop may take to save and leave."""

KEPT = frozenset({"metrics.jsonl", "log", "end.json"})
"""What stays of an attempt when its stage is done."""

Tell = Callable[..., None]


@dataclass(frozen=True)
class Setup:
    """How this worker runs stages."""

    device: str = "cpu"
    threads: int = 1
    checkpoint_every: float = 300.0
    lease: float = LEASE


class Trouble(Exception):
    """The file system is full, read-only or failing: no stage's fault, and a reason to take no more."""


class Supervisor:
    """Runs claimed stages in its trainer and publishes what they make."""

    def __init__(self, frontier: Frontier, setup: Setup, tell: Tell, stopping: Callable[[], bool]) -> None:
        self.frontier, self.setup, self.tell, self.stopping = frontier, setup, tell, stopping
        self.trainer = self._start()

    def _start(self) -> Trainer:
        trainer = Trainer(self.setup.device)
        deadline = time.monotonic() + STARTING
        while time.monotonic() < deadline:
            message = trainer.hear(1.0)
            if message and message["at"] == "ready":
                return trainer
            if message and message["at"] == "unfit":
                trainer.kill()
                raise Trouble(f"device {self.setup.device!r} cannot be used: {message['message']}")
            if message and message["at"] == "died":
                raise Trouble(f"{message['message']} while loading torch; try: python -c 'import torch'")
            if self.stopping():
                break
        return trainer

    def owner(self) -> Owner:
        """Return who claims: this process and its trainer."""
        return Owner.me(self.trainer.pid)

    def run(self, stage: Stage, claim: Claim) -> str:
        """Run a claimed stage; return how it ended. Raises Trouble where the store cannot be written."""
        self.tell(event="start", label=stage.label, kind=stage.kind, key=stage.key)
        began = time.monotonic()
        try:
            parents = self._parents(stage)
            if parents is None:
                claim.end("stopped", message="a parent's artifact is gone")
                self.frontier.forget()
                return "stopped"
            self._write_spec(stage, claim)
            self.trainer.send(self._order(stage, claim, parents))
            end = self._follow(claim)
            outcome = self._conclude(stage, claim, parents, end)
        except OSError as error:
            self.trainer.kill()
            raise Trouble(f"{claim.folder.path}: {error}") from error
        except ValueError as error:  # such as a metric that JSON cannot hold: this stage's fault, not the worker's
            claim.end("failed", cause="code", message=f"its result cannot be written: {error}")
            end, outcome = {"outcome": "failed", "message": str(error)}, "failed"
        shown = str(end.get("message", "")) if outcome in ("failed", "diverged", "died") else ""
        self.tell(
            event="end",
            label=stage.label,
            kind=stage.kind,
            outcome=outcome,
            message=shown,
            seconds=time.monotonic() - began,
        )
        if end["outcome"] == "trouble":
            raise Trouble(str(end["message"]))
        return outcome

    def close(self) -> None:
        """End the trainer."""
        self.trainer.kill()

    def _restart(self) -> None:
        self.trainer.kill()
        self.trainer = self._start()

    def _parents(self, stage: Stage) -> dict[str, tuple[str, str]] | None:
        """Return role -> (path, hash) of the parents' artifacts as they are now."""
        found = {}
        for role, key in stage.parents.items():
            result = self.frontier.result(key, with_artifact=True)
            if result is None:
                return None
            folder = self.frontier.store.path(self.frontier.plan.stages[key].kind, key)
            found[role] = (str(folder / result.artifact.file), result.artifact.sha256)
        return found

    def _write_spec(self, stage: Stage, claim: Claim) -> None:
        if "spec.json" not in claim.folder.names:
            body = {"kind": stage.kind, "parents": dict(stage.parents), **stage.spec}
            write_whole(claim.folder.path / "spec.json", json.dumps(body, indent=1, sort_keys=True).encode())

    def _order(self, stage: Stage, claim: Claim, parents: dict[str, tuple[str, str]]) -> dict[str, Any]:
        return {
            "key": stage.key,
            "kind": stage.kind,
            "spec": dict(stage.spec),
            "store": str(self.frontier.store.root),
            "attempt": str(claim.attempt),
            "earlier": [str(path) for path in claim.earlier],
            "parents": parents,
            "place": stage.place,
            "device": self.setup.device,
            "threads": self.setup.threads,
            "checkpoint_every": self.setup.checkpoint_every,
        }

    def _follow(self, claim: Claim) -> dict[str, Any]:
        """Hear the trainer until the stage ends, beating all the while."""
        every = self.setup.lease / BEATS_PER_LEASE
        now = time.monotonic()
        next_beat, last_word, leave_by = now + every, now, 0.0
        while True:
            message = self.trainer.hear(min(0.25, every))
            now = time.monotonic()
            if message is not None:
                last_word = now
                if message["at"] == "end":
                    return message
                if message["at"] == "died":
                    self._restart()
                    return {"outcome": "died", "message": message["message"]}
                self.tell(event="step", **{k: v for k, v in message.items() if k != "at"})
            if now >= next_beat:
                next_beat = now + every
                if not claim.beat():
                    self._restart()
                    return {"outcome": "gave up", "message": "another worker has taken over"}
            if self.stopping() and not leave_by:
                leave_by = now + GRACE
                self.trainer.send({"stop": True})
            if (leave_by and now > leave_by) or now - last_word > STALL:
                self._restart()
                said = "did not leave in time" if leave_by else f"was silent for {STALL:.0f} s"
                return {"outcome": "stopped" if leave_by else "died", "message": f"the trainer {said}"}

    def _conclude(self, stage: Stage, claim: Claim, parents: dict[str, tuple[str, str]], end: dict[str, Any]) -> str:
        """Publish what was made, or write down how the attempt ended."""
        outcome = str(end["outcome"])
        if not claim.current():  # whatever went wrong here, the stage is another's, who may have cleaned up under us
            if "draft" in end:
                (claim.attempt / end["draft"]).unlink(missing_ok=True)
            claim.end("gave up", message="another worker has taken over")
            return "gave up"
        if outcome == "made":
            return self._publish(stage, claim, parents, end)
        if outcome == "corrupt":
            outcome = "stopped" if self._set_aside(*parents[end["role"]]) else "died"  # a misread may be repeated
            self.frontier.forget()
        if outcome == "trouble":
            outcome = "stopped"
        details = {k: v for k, v in end.items() if k not in ("at", "outcome")}
        claim.end(outcome, **details)
        if outcome == "failed":
            self._restart()
        return outcome

    def _set_aside(self, path: str, sha256: str) -> bool:
        """Rename an artifact that is certainly damaged, so that its stage counts as in need of a new one."""
        file = Path(path)
        if file.exists() and file_sha256(file) == sha256:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.replace(file, file.with_name(f"damaged-{file.name}"))
        return True

    def _publish(self, stage: Stage, claim: Claim, parents: dict[str, tuple[str, str]], end: dict[str, Any]) -> str:
        """Give the artifact its name and link the result, unless somebody has taken over, or a parent has changed."""
        draft = claim.attempt / str(end["draft"])
        for role, key in stage.parents.items():
            now = self.frontier.fresh_result(key)
            if now is not None and now.artifact.sha256 != parents[role][1]:
                claim.end("stopped", message=f"its {role} was rebuilt with other content meanwhile")
                self.frontier.forget()
                return "stopped"
        artifact = Artifact(end["sha256"], end["bytes"])
        self._name(draft, claim.folder.path / artifact.file, artifact)
        before = self.frontier.store.folder(stage.kind, stage.key).result()
        if before is None or before.artifact != artifact or before.parents != self._read(stage, parents):
            result = Result(
                claim.base_edition + 1,
                artifact,
                self._read(stage, parents),
                end["metrics"],
                end["stamp"],
                _provenance(claim, end),
            )
            if not publish(claim.folder.path / f"result-{result.edition:04d}.json", result.dump()):
                claim.end("gave up", message="another worker has published")
                return "gave up"
            if before is not None:
                self.frontier.forget()
        claim.end("published", edition=claim.base_edition + 1)
        _clean(claim)
        return "published"

    def _read(self, stage: Stage, parents: dict[str, tuple[str, str]]) -> dict[str, str]:
        return {key: parents[role][1] for role, key in stage.parents.items()}

    def _name(self, draft: Path, target: Path, artifact: Artifact) -> None:
        """Move a draft to its content's name; a file of that name is kept where it is whole, replaced where not."""
        sync(draft)
        if place(draft, target) or file_sha256(target) == artifact.sha256:
            draft.unlink(missing_ok=True)
        else:
            os.replace(draft, target)


def _clean(claim: Claim) -> None:
    """Remove what a finished stage needs no more: checkpoints, unpublished drafts, what a killed writer left."""
    for attempt in [claim.attempt, *claim.earlier]:
        for file in attempt.iterdir() if attempt.is_dir() else ():
            if file.name not in KEPT:
                file.unlink(missing_ok=True)
    remove_dead_drafts(claim.folder.path)


def _provenance(claim: Claim, end: dict[str, Any]) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "generation": claim.generation,
        "resumed_at_step": end["resumed_at"],
        "seconds": round(end["seconds"], 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "git": _commit(),
    }


@cache
def _commit() -> str:
    """Return the checkout's commit, read from its files; empty where the package is not in one."""
    git = Path(__file__).resolve().parent.parent / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        return (git / head[5:]).read_text().strip() if head.startswith("ref: ") else head
    except OSError:
        return ""
