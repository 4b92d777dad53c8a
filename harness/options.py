"""The options of the sweep command that say how stages are run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.claims import LEASE
from harness.errors import UserError, short
from harness.form import MOST_WORKERS

CAUSES = ("all", "cancelled", "code", "input", "oom", "device", "died", "diverged")


@dataclass(frozen=True)
class Options:
    """How one call wants its stages run; what is None is the sweep file's to say."""

    via: str | None = None
    workers: int | Literal["auto"] | None = None
    threads: int | None = None
    device: str | None = None
    retry: str = ""
    checkpoint_every: float = 300.0
    lease: float = LEASE
    scratch: str = ""
    until: str = ""
    discard_weights: bool = False
    detach: bool = False

    @property
    def argv(self) -> list[str]:
        """Return what every worker is told."""
        argv = ["--checkpoint-every", str(self.checkpoint_every), "--lease", str(self.lease)]
        argv += ["--scratch", self.scratch] if self.scratch else []
        argv += ["--until", self.until] if self.until else []
        return [*argv, "--discard-weights"] if self.discard_weights else argv


def given_workers(text: str) -> int | Literal["auto"] | None:
    """Return the number of workers that a command line asks for. Raises UserError for what is none."""
    if text in ("", "auto"):
        return "auto" if text else None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_WORKERS:
        raise UserError(f"--workers {short(text)}: write a number from 1 to {MOST_WORKERS}, or auto")
    return int(text)
