"""Taking over another store's finished stages: what two people, or two clusters, have trained becomes one store."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from harness.bless import bring_along, copy_artifact
from harness.claims import Observer, Owner, take
from harness.states import state_of
from harness.store import KINDS, Folder, Result, Store, digest, publish, read_json, write_whole


@dataclass
class Merged:
    """What became of the other store's stages."""

    taken: int = 0
    had: int = 0
    """Finished here already, with the same content."""
    differ: list[str] = field(default_factory=list)
    """Finished here already, with other content: ours stays."""
    damaged: list[str] = field(default_factory=list)
    unfinished: int = 0
    busy: int = 0
    """Worked on here at the moment."""


def merge(ours: Store, theirs: Store) -> Merged:
    """Copy every finished stage that is not finished here, checked against its own hashes; change nothing of theirs."""
    merged = Merged()
    for kind in KINDS:
        for path in sorted((theirs.root / "stages" / kind).glob("*/*")):
            take_stage(ours, kind, theirs.folder(kind, path.name), merged)
    take_beside(ours, theirs)
    return merged


def take_beside(ours: Store, theirs: Store) -> None:
    """Copy what stages and results refer to beside them: frozen sources, imported files, differences to commits."""
    for extra in ("plugins", "imports", "provenance"):
        for path in sorted((theirs.root / extra).glob("*")):
            _bring(path, ours.root / extra / path.name)


def take_stage(ours: Store, kind: str, other: Folder, merged: Merged) -> None:
    """Take over one stage of another store, if it is finished there and not here."""
    result, key = other.result(), other.path.name
    here = ours.folder(kind, key)
    if result is None:
        if _diverged(here, other):
            merged.taken += 1
        else:
            merged.unfinished += 1
        return
    if (mine := here.result()) is not None:
        if mine.artifact == result.artifact:
            with contextlib.suppress(ValueError):  # a damaged copy of theirs is no reason to stop
                copy_artifact(other.path, here.path, result.artifact)
            merged.had += 1
        else:
            merged.differ.append(f"{kind} {key[:8]}")
        return
    spec = read_json(other.path / "spec.json")
    if spec is None or digest(spec) != key:
        merged.damaged.append(f"{kind} {key[:8]}: its spec.json does not belong to its key")
        return
    try:
        copy_artifact(other.path, here.path, result.artifact)
    except ValueError as error:
        merged.damaged.append(f"{kind} {key[:8]}: {error}")
        return
    at_work = state_of(here, Observer()).name == "running"
    claim = None if at_work else take(here, here.generation, Owner.me())
    if claim is None:
        merged.busy += 1
        return
    write_whole(here.path / "spec.json", json.dumps(spec, indent=1, sort_keys=True).encode())
    bring_along(other.attempt(int(result.provenance.get("generation", 1))), claim.attempt)
    told = {**result.provenance, "merged_from": str(other.path.parents[3]), "generation": claim.generation}
    copy = Result(claim.base_edition + 1, result.artifact, result.parents, result.metrics, result.stamp, told)
    if publish(here.path / f"result-{claim.base_edition + 1:04d}.json", copy.dump()):
        claim.end("published", edition=claim.base_edition + 1)
        merged.taken += 1


def _diverged(here: Folder, other: Folder) -> bool:
    """Take over that a training diverged, which is a result too; return whether that was so."""
    end, spec = other.end(other.generation), read_json(other.path / "spec.json")
    if end is None or end.get("outcome") != "diverged" or here.generation or spec is None:
        return False
    claim = take(here, 0, Owner.me()) if digest(spec) == other.path.name else None
    if claim is None:
        return False
    write_whole(here.path / "spec.json", json.dumps(spec, indent=1, sort_keys=True).encode())
    claim.end("diverged", **{k: v for k, v in end.items() if k not in ("outcome", "seconds")})
    return True


def _bring(path: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        draft = target.with_name(f".copy-{target.name}")
        shutil.copytree(path, draft, dirs_exist_ok=True)
        draft.rename(target)
    else:
        write_whole(target, path.read_bytes())
