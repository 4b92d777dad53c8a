"""What becomes of a made artifact: its content's name, the result beside it, and the attempts cleared away."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.claims import Claim
from harness.frontier import Frontier
from harness.plan import Stage
from harness.provenance import provenance
from harness.store import Artifact, Result, file_sha256, forget_index, place, publish, remove_dead_drafts, sync

KEPT = frozenset({"metrics.jsonl", "log", "end.json"})
"""What stays of an attempt when its stage is done."""

Parents = Mapping[str, tuple[str, str]]
"""Role -> (path, SHA-256) of a parent's artifact as it was read."""


def publish_made(
    frontier: Frontier, stage: Stage, claim: Claim, parents: Parents, end: Mapping[str, Any], keep: bool = True
) -> str:
    """Name the artifact and link the result, unless somebody has taken over, or a parent has changed; say which.

    Without `keep`, the result stands alone: its artifact is thrown away, and made again should another stage need it.
    """
    draft = claim.attempt / str(end["draft"])
    for role, key in stage.parents.items():
        now = frontier.fresh_result(key)
        if now is not None and now.artifact.sha256 != parents[role][1]:
            claim.end("stopped", message=f"its {role} was rebuilt with other content meanwhile")
            frontier.forget()
            return "stopped"
    artifact = Artifact(end["sha256"], end["bytes"])
    if keep:
        name(draft, claim.folder.path / artifact.file, artifact)
    else:
        draft.unlink()
    before = frontier.store.folder(stage.kind, stage.key).result()
    read = {key: parents[role][1] for role, key in stage.parents.items()}
    if before is None or before.artifact != artifact or before.parents != read:
        told = provenance(frontier.store, str(end["stamp"].get("device", ""))) | history(claim, end)
        result = Result(claim.base_edition + 1, artifact, read, end["metrics"], end["stamp"], told)
        if not publish(claim.folder.path / f"result-{result.edition:04d}.json", result.dump()):
            claim.end("gave up", message="another worker has published")
            return "gave up"
        if before is not None:
            frontier.forget()
            forget_index(frontier.store)
        claim.end("published", edition=claim.base_edition + 1)
    else:
        claim.end("restored", edition=before.edition)  # the same content: its file is there again
    clean(claim)
    return "published"


def name(draft: Path, target: Path, artifact: Artifact) -> None:
    """Move a draft to its content's name; a file of that name is kept where it is whole, replaced where not."""
    sync(draft)
    if target.is_dir():
        target.rename(target.with_name(f"damaged-{target.name}"))
    if place(draft, target) or file_sha256(target) == artifact.sha256:
        draft.unlink(missing_ok=True)
    else:
        os.replace(draft, target)


def history(claim: Claim, end: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result says of the attempts it took; seconds are of all of them, as far as they could say."""
    ends = [claim.folder.end(generation) for generation in range(1, claim.generation)]
    before = sum(float(said.get("seconds", 0.0)) for said in ends if said)
    return {
        "generation": claim.generation,
        "attempts_untold": sum(said is None or "seconds" not in said for said in ends),
        "resumed": end["resumed"],
        "resumed_at_step": end["resumed_at"],
        "seconds": round(end["seconds"], 3),
        "seconds_of_all_attempts": round(before + end["seconds"], 3),
        "device_seconds": round(end["device_seconds"], 3),
        "cpu_seconds": round(end.get("cpu_seconds", 0.0), 3),
        "first_step_after": round(end.get("first_step", 0.0), 3),
        "writing_seconds": round(end.get("writing", 0.0), 3),
        "peak_memory": end.get("peak_memory", 0),
        "device_memory": end.get("device_memory", 0),
    }


def clean(claim: Claim) -> None:
    """Remove what a finished stage needs no more: checkpoints, unpublished drafts, what a killed writer left."""
    for attempt in [claim.attempt, *claim.earlier]:
        for file in attempt.iterdir() if attempt.is_dir() else ():
            if file.name not in KEPT and file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            elif file.name not in KEPT:
                file.unlink(missing_ok=True)
    remove_dead_drafts(claim.folder.path)
