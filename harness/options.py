"""The options of the sweep command that say how stages are run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from harness.claims import LEASE
from harness.errors import UserError, short
from harness.form import MOST_WORKERS, Launch
from harness.supervisor import Setup

CAUSES = ("all", "cancelled", "code", "input", "oom", "time", "device", "died", "stalled", "diverged")


@dataclass(frozen=True)
class Options:
    """How one call wants its stages run; what is empty is the sweep file's to say."""

    via: str = ""
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
    fast: bool = False
    """Whether trainings may be fast at the price of numbers that differ in their last bits from run to run."""
    stop_after: int | None = None
    """Failures for one cause after which no more stages are begun."""
    execution: str = "eager"
    """How trainings run their networks."""
    told: bool = False
    """Whether anybody has said where workers live."""

    def over(self, launch: Launch, here: bool = False) -> Options:
        """Return them with what they leave to a sweep file filled in; `here`: workers stay here unless told."""
        return replace(
            self,
            via=self.via or ("local" if here else launch.via),
            workers=self.workers or launch.workers,
            threads=self.threads or launch.threads,
            device=self.device or launch.device,
            fast=self.fast or launch.fast,
            execution="eager" if here else launch.execution,
            stop_after=self.stop_after or launch.stop_after,
            told=bool(self.via) or "via" in launch.model_fields_set,
        )

    @property
    def most(self) -> int | None:
        """Return the number of workers asked for, None where it is left to the machine."""
        return self.workers if isinstance(self.workers, int) else None

    @property
    def argv(self) -> list[str]:
        """Return what every worker is told."""
        argv = ["--checkpoint-every", str(self.checkpoint_every), "--lease", str(self.lease)]
        argv += ["--scratch", self.scratch] if self.scratch else []
        argv += ["--until", self.until] if self.until else []
        argv += ["--fast"] if self.fast else []
        return [*argv, "--discard-weights"] if self.discard_weights else argv

    def setup(self, device: str, threads: int) -> Setup:
        """Return the same for a worker within this process."""
        refuse_graphs(self.execution, device)
        return Setup(
            device,
            threads,
            self.checkpoint_every,
            self.lease,
            discard_weights=self.discard_weights,
            scratch=self.scratch,
            fast=self.fast,
            execution=self.execution,
        )


def refuse_graphs(execution: str, device: str) -> None:
    """Raise UserError where trainings are to be replayed as CUDA graphs on a device that is no GPU."""
    if execution == "graphs" and device.partition(":")[0] != "cuda":
        raise UserError(
            f"launch.execution: graphs replays CUDA graphs, and the device is {device}; "
            "write eager or compiled, or use a GPU (--device cuda)"
        )


def given_workers(text: str) -> int | Literal["auto"] | None:
    """Return the number of workers that a command line asks for. Raises UserError for what is none."""
    if text in ("", "auto"):
        return "auto" if text else None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_WORKERS:
        raise UserError(f"--workers {short(text)}: write a number from 1 to {MOST_WORKERS}, or auto")
    return int(text)
