"""The options of the sweep command that say how stages are run."""

from __future__ import annotations

from dataclasses import dataclass

from harness.claims import LEASE

CAUSES = ("all", "cancelled", "code", "input", "oom", "device", "died", "diverged")


@dataclass(frozen=True)
class Options:
    """How one call wants its stages run; what is None is the sweep file's to say."""

    via: str | None = None
    workers: int | None = None
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
