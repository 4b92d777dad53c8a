"""Accepting older results: deliberately, where only code or files changed, and with a record in the result itself."""

from __future__ import annotations

import contextlib
import getpass
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from harness.claims import Owner, take
from harness.frontier import Frontier
from harness.plan import Stage
from harness.states import state_of
from harness.store import Artifact, Result, file_sha256, place, publish, write_whole

ALONG = ("metrics.jsonl", "log")
"""Files of the attempt that made a result, which come along."""
Older = tuple[Stage, list[str], list[str]]
"""The finished stage before, all that has changed since, and what of it is a change of the experiment."""


def bless(frontier: Frontier, older: Mapping[str, Older]) -> tuple[list[str], bool]:
    """Publish older stages' results under the keys that replace them, parents first.

    Return a line for each, and whether all of them were accepted.
    """
    said, good = [], True
    for key, stage in frontier.plan.stages.items():
        if key in older and frontier.any_result(key) is None:
            refused = _accept(frontier, stage, *older[key])
            as_made = f"accepted: {stage.label}, as {older[key][0].key[:8]} made it"
            said.append(f"  not accepted: {stage.label}: {refused}" if refused else f"  {as_made}")
            good = good and not refused
            frontier.forget()
    return said or ["nothing to accept: no part that must run was finished before under another key"], good


def _accept(frontier: Frontier, stage: Stage, old: Stage, differences: list[str], refused: list[str]) -> str:
    """Accept one older result; return why that cannot be, empty where it was done."""
    if refused:
        return f"it would be another experiment: {'; '.join(refused)}"
    store = frontier.store
    before = store.folder(old.kind, old.key).result()
    if before is None:
        return "the older result is gone"
    roles = {role: before.parents.get(parent) for role, parent in old.parents.items()}
    parents = {}
    for role, parent in stage.parents.items():
        present = frontier.any_result(parent)
        if present is None or present.artifact.sha256 != roles.get(role):
            return f"its {role} is not the one that the older result was made from"
        parents[parent] = present.artifact.sha256
    folder = store.folder(stage.kind, stage.key)
    try:
        copy_artifact(store.path(old.kind, old.key), folder.path, before.artifact)
    except ValueError as error:
        return f"{error}"
    at_work = state_of(folder, frontier.observer).name == "running"
    claim = None if at_work else take(folder, folder.generation, Owner.me())
    if claim is None:
        return "somebody works on it"
    blessed = {
        "from": old.key,
        "differences": differences,
        "by": _user(),
        "host": socket.gethostname(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    told = {**before.provenance, "blessed": blessed, "generation": claim.generation}
    write_whole(folder.path / "spec.json", stage.dump())
    bring_along(store.folder(old.kind, old.key).attempt(int(before.provenance.get("generation", 1))), claim.attempt)
    result = Result(claim.base_edition + 1, before.artifact, parents, before.metrics, before.stamp, told)
    if not publish(folder.path / f"result-{result.edition:04d}.json", result.dump()):
        return "it was finished just now"
    claim.end("published", edition=result.edition)
    return ""


def bring_along(made: Path, attempt: Path) -> None:
    """Copy the files of the attempt that made a result which come along with it."""
    for name in ALONG:
        if (made / name).is_file():
            shutil.copyfile(made / name, attempt / name)


def copy_artifact(source: Path, target: Path, artifact: Artifact) -> bool:
    """Bring an artifact from one stage's folder into another's, by a second name or a copy; False where it is gone.

    Raises ValueError where its bytes are not the ones its result names.
    """
    file = source / artifact.file
    if (target / artifact.file).exists() or not file.exists():
        return file.exists()
    if file_sha256(file) != artifact.sha256:
        raise ValueError(f"{file}: damaged: its bytes are not the ones its result names")
    target.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # another file system, or one without second names
        place(file, target / artifact.file)
        return True
    draft = target / f".copy-{artifact.file}"
    shutil.copyfile(file, draft)
    draft.replace(target / artifact.file)
    return True


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's nameless user
        return "unknown"
