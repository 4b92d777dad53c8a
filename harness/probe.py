"""What has to be asked of a network itself: each question is tried once in a process of its own, and remembered."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.catalog import CATALOGUED, DATASETS
from harness.cell import Cell
from harness.names import DENSE, SMALL, Choice, Names, library_version
from harness.plan import Plan
from harness.plugins import Plugin, freeze
from harness.protocol import Protocol
from harness.sealed import keep_note, read_note
from harness.store import digest
from tost.catalog import MODELS

PROBES_VERSION = 2
"""Raised whenever networks are looked at, or parts attached, in another way."""
IMPORTS_VERSION = 2
"""Raised whenever files of masks are read, or held against networks, in another way."""
CLASSES = 10
"""Classes that networks are built for to be looked at."""
PATIENCE = 120
"""Seconds that networks of the users' own have to be built, and files of masks to be read."""


@dataclass(frozen=True)
class Reach:
    """Of which of a network's weights masks speak: how many, and the others by name; or why there can be no mask."""

    prunable: int = 0
    left_out: Mapping[str, int] | None = None
    refused: str = ""


def reaches(cells: Sequence[Cell], names: Names, cache: Path) -> dict[str, Reach]:
    """Return, by label, what masks reach of the sparse networks that are not the catalog's own.

    All of those have nothing but convolutions and linear layers. A network that cannot be built here is left out: its
    trainer will say so. The first call for some networks takes seconds, because torch is loaded.
    """
    questions: dict[str, dict[str, Any]] = {}
    plugins: dict[str, Plugin] = {}
    for cell in cells:
        label, which = str(cell.axis("arch")), cell.protocol.prunable
        label += "" if which == Protocol().prunable else f" (prunable: {which})"
        if cell.mask.name in (DENSE, SMALL) or cell.arch.name in MODELS or label in questions:
            continue
        entry = names.entry("arch", cell.arch.name)
        made: dict[str, Any] = {"name": cell.arch.name, "args": dict(cell.arch.given)}
        if isinstance(entry, Plugin):
            made |= {"path": entry.path, "source": entry.source}
            plugins[label] = entry
        else:
            made["version"] = library_version(cell.arch.name.partition(":")[0])
        channels = DATASETS[cell.dataset.name].channels if cell.dataset.name in DATASETS else 3
        asked = {"version": [PROBES_VERSION, library_version("torch")], "prunable": which}
        questions[label] = {**asked, "arch": made, "shape": [CLASSES, channels]}
    notes = {label: cache / "probes" / digest(question) for label, question in questions.items()}
    known = {label: found for label, note in notes.items() if (found := read_note(note)) is not None}
    if unknown := {label: question for label, question in questions.items() if label not in known}:
        with tempfile.TemporaryDirectory(prefix="probe-") as folder:
            for label in plugins.keys() & unknown.keys():
                freeze(plugins[label], Path(folder))
            answers = _ask_process("fit", {"networks": unknown, "store": folder}) or {}
        for label, answer in answers.items():
            keep_note(notes[label], answer)
        known |= answers
    return {label: Reach(**known[label]) for label in questions if known.get(label)}


def _ask_process(module: str, question: Any) -> Any:
    """Return the answer of a module of harness.train, run as a process of its own since it loads torch.

    None where it fails or takes too long: the trainer will say why, in the place where it matters.
    """
    command = [sys.executable, "-m", f"harness.train.{module}"]
    text = json.dumps(question)
    try:
        done = subprocess.run(command, capture_output=True, text=True, input=text, check=False, timeout=PATIENCE)
        return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError, IndexError):  # a user's own network may end the process, or print
        return None


def misfit(arch: Choice, parts: Sequence[Choice], cache: Path) -> str:
    """Return why a recipe's parts cannot be attached to `LIBRARY:NAME`, or nothing.

    The answer is kept in `cache`; the first call for a pair takes seconds, because torch is loaded.
    """
    library = arch.name.partition(":")[0]
    question = {
        "version": [PROBES_VERSION, library_version(library), library_version("torch")],
        "arch": [arch.name, dict(arch.given)],
        "parts": [[part.name, dict(part.given)] for part in parts],
    }
    note = cache / "probes" / digest(question)
    if known := read_note(note):
        return str(known["said"])
    said = _ask_process("fit", question)
    if said is None:
        return ""
    keep_note(note, {"said": said})
    return str(said)


@dataclass
class Import:
    """A file of masks that a plan uses with one network and sparsity."""

    label: str
    """Of the mask stage."""
    said: str = ""
    """Why it cannot be used; nothing where it can."""
    pairs: Mapping[str, str] = field(default_factory=dict)
    """Weight -> the mask's name in the file, where the two are paired by their order."""


def imports_of(plan: Plan, cache: Path, todo: Container[str] | None = None) -> list[Import]:
    """Hold the files of masks that a plan uses against its networks and sparsities; of what is equal but seeds, one.

    The answers are kept in `cache` by the files' content. What is asked for the first time takes seconds, because torch
    is loaded and networks are built; a plan without such files asks nothing. With `todo`, only
    those stages are looked at.
    """
    asked: dict[str, tuple[str, dict[str, Any]]] = {}
    for stage in plan.stages.values():
        spec = stage.spec
        if stage.kind == "mask" and "sha256" in spec.get("method", ()) and (todo is None or stage.key in todo):
            data = plan.stages[stage.parents["data"]].spec.get("dataset", {})
            question = {
                "version": [IMPORTS_VERSION, library_version("torch")],
                "path": str(plan.imports[spec["method"]["sha256"]]),
                "spec": {name: spec[name] for name in ("method", "arch", "sparsity", "prunable")},
                "channels": DATASETS[data["name"]].channels if data.get("name", "imagefolder") in CATALOGUED else 0,
            }
            asked.setdefault(digest(question), (stage.label, question))
    known = {key: read_note(cache / "imports" / key) for key in asked}
    known |= _ask({key: asked[key][1] for key, answer in known.items() if answer is None}, plan, cache)
    return [
        Import(
            label, answer["said"], answer["pairs"] if question["spec"]["method"].get("args", {}).get("match") else {}
        )
        for key, (label, question) in asked.items()
        if (answer := known[key]) is not None
    ]


def _ask(questions: Mapping[str, dict[str, Any]], plan: Plan, cache: Path) -> dict[str, dict[str, Any] | None]:
    """Answer questions in a process with torch, with copies of the users' own networks; keep the answers."""
    if not questions:
        return {}
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        for plugin in plan.plugins:
            freeze(plugin, Path(folder))
        found = _ask_process("imported", [{**question, "plugins": folder} for question in questions.values()])
    answers = dict(zip(questions, found or (), strict=found is not None))
    for key, answer in answers.items():
        keep_note(cache / "imports" / key, answer)
    return answers
