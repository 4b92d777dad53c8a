"""A checked search: what is tuned, how trials are judged, and how many each recipe gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import Fault, FileError, UserError
from harness.form import Search, SweepFile
from harness.names import Names
from harness.protocol import Protocol
from harness.reading import Document, Path_
from harness.recipes import Recipe, read_recipe, recipe_set
from harness.space import Dimension, read_dimension

Read = Callable[[str], Callable[[Any], Any]]

MEASURING = ("epochs", "dev", "report", "select", "milestones", "match_cost", "prunable", "on_collapse", "resize")
"""Protocol fields that say what is trained and how it is judged, so that trials would not compare."""


@dataclass(frozen=True)
class Hunt:
    """A search's settings, every value read."""

    form: Search
    space: tuple[Dimension, ...]
    baseline: Recipe | None
    samples: Mapping[str, int]
    """Recipe -> trials; empty where all get the same."""

    def trials(self, recipe: Recipe) -> int:
        """Return how many trials a recipe's settings get."""
        return self.samples[recipe.text] if isinstance(self.form.samples, dict) else self.form.samples

    def space_of(self, recipe: Recipe) -> tuple[Dimension, ...]:
        """Return what has an effect on a recipe: not the knobs of a part that it lacks."""
        parts = {part.name for part in recipe.parts}
        return tuple(d for d in self.space if "." not in d.axis or d.axis.partition(".")[0] in parts)


def read_search(file: SweepFile, names: Names, document: Document, reader: Read, faults: list[Fault]) -> Hunt | None:
    """Check a sweep file's search against its grid; faults are added to those found so far."""
    if (form := file.search) is None:
        return None

    def fault(path: Path_, message: str) -> None:
        faults.append(Fault(document.mark(("search", *path)), f"{'.'.join(map(str, ('search', *path)))}: {message}"))

    space = [found for axis in form.space if (found := _dimension(file, axis, reader, fault)) is not None]
    baseline, samples = None, dict[str, int]()
    try:
        baseline = None if form.baseline == "none" else read_recipe(form.baseline, names)
        if isinstance(form.samples, dict):
            samples = {read_recipe(name, names).text: n for name, n in form.samples.items()}
            _all_named(samples, {*_recipes(file, names), *([baseline.text] if baseline else [])})
    except ValueError as error:
        fault(("samples",) if baseline or form.baseline == "none" else ("baseline",), str(error))
    for block in (file.grid, *file.also):
        if isinstance(seed := block.get("seed", 0), list) or not isinstance(seed, int):
            fault((), "a search trains one seed; write seed: 0. The seeds of a table belong into the sweep it is for")
            break
    if file.protocol.get("dev") == "none":
        fault((), "trials are judged on the dev split, but the protocol's dev is none")
    return Hunt(form, tuple(space), baseline, samples) if not faults else None


def _dimension(file: SweepFile, axis: str, reader: Read, fault: Callable[[Path_, str], None]) -> Dimension | None:
    """Read one line of the space; None where something is wrong with it."""
    try:
        tuned = axis in Protocol.model_fields or "." in axis
        if not tuned or axis in MEASURING:
            raise ValueError("only how a cell trains can be tuned: fields of the protocol such as lr, and part.knob")
        if any(axis in block for block in (file.grid, *file.also)):
            raise ValueError("it is an axis of the grid too; leave it out of one of them")
        if any(axis in when.set for when in file.when):
            raise ValueError("`when` sets it too; leave it out of one of them")
        found, read = read_dimension(axis, file.search.space[axis] if file.search else None), reader(axis)
        for value in found.ends:
            read(list(value) if isinstance(value, tuple) else value)
    except FileError as error:
        fault(("space", axis), error.faults[0].message)
    except ValueError as error:
        fault(("space", axis), str(error))
    else:
        return found
    return None


def _recipes(file: SweepFile, names: Names) -> set[str]:
    """Return the recipes that a sweep file names."""
    found = set[str]()
    rules = [when.set for when in file.when if "recipe" in when.set]
    for block in (file.grid, *file.also, *rules):
        value = block.get("recipe", "default")
        for item in value if isinstance(value, list) else [value]:
            members = recipe_set(item, names) if isinstance(item, str) else [item]
            found.update(read_recipe(member, names).text for member in members)
    return found


def _all_named(samples: Mapping[str, int], recipes: set[str]) -> None:
    """Raise ValueError where a recipe has no number of trials, or a number no recipe."""
    if missing := sorted(recipes - set(samples)):
        raise ValueError(f"says nothing of {', '.join(missing)}; name every recipe, the baseline too")
    if useless := sorted(set(samples) - recipes):
        raise ValueError(f"{', '.join(useless)}: no such recipe in the grid")


def refuse_for_search(file: Path, via: str, part: bool, miniature: bool, detach: bool) -> None:
    """Raise UserError for what a search does not do."""
    refused = {
        "--only and --limit": part,
        "--miniature": miniature,
        "--detach": detach,
        f"--via {via}": via not in ("local", "ray"),
    }
    for what in [what for what, given in refused.items() if given]:
        raise UserError(
            f"{file}: {what} is not for a file with `search:`, which runs under Ray Tune, here or on the "
            "cluster of `launch: {via: ray, address: ...}`"
        )
