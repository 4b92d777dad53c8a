"""Read and check a sweep file: every fault is found in one go, each with its line."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.axes import read_number, read_sparsity, read_whole, read_world, spread
from harness.catalog import DATASETS
from harness.check_declared import check_declared
from harness.errors import Fault, FileError, UserError, short, usable_path
from harness.expressions import Condition, parse_condition
from harness.form import SweepFile, When, form_fault
from harness.names import DENSE, SPECIAL, Names, read_choice
from harness.offered import offers
from harness.plugins import find_plugin
from harness.protocol import ALONE, Protocol, make_protocol, matched_recipe, split_preset
from harness.reading import Document, Path_, merge, read_document
from harness.recipes import read_recipe, recipe_set
from harness.search import read_search
from harness.spec import Axes, Sweep, complaints
from harness.tuned import read_tuned
from tost.catalog import MASKS, MODELS, PARTS, RECIPES, nearest

MOST_BASES = 16
MOST_FAULTS = 100
MOST_VALUES = 10_000
MOST_LISTED = 2_000_000
"""Values of all axes of a file together, ranges that stand alone not counted: 100 bytes of memory each."""


def load_sweep(path: Path) -> Sweep:
    """Read and check a sweep file and its bases. Raises FileError with one line per fault, or UserError."""
    document = _with_base(path, [])
    try:
        file = SweepFile.model_validate({k: v for k, v in document.values.items() if k != "base"})
    except ValidationError as error:
        raise FileError([form_fault(document, e) for e in error.errors()]) from None
    return _Check(file, document, path.absolute().parent).sweep()


def _with_base(path: Path, seen: list[Path]) -> Document:
    document = read_document(path)
    here = path.resolve()
    if here in seen:
        raise UserError(
            f"{path}: base files form a circle: {' -> '.join(p.name for p in [*seen, here])}; take `base:` out of one"
        )
    if len(seen) >= MOST_BASES:
        raise UserError(f"{path}: over {MOST_BASES} base files, one on another; put some of them together")
    base = document.values.get("base")
    if base is None:
        return document
    try:
        if not isinstance(base, str):
            raise ValueError(f"{short(base)} is not the path of a sweep file")
        usable_path(base, path.parent)
    except ValueError as error:
        raise FileError([Fault(document.mark(("base",)), f"base: {error}")]) from None
    return merge(_with_base(path.parent / base, [*seen, here]), document)


class _Check:
    """Reads every value of a well-formed file and gathers all faults."""

    def __init__(self, file: SweepFile, document: Document, folder: Path) -> None:
        self.file, self.document = file, document
        self.names = Names(file.use, folder)
        self.faults: list[Fault] = []
        self.listed = 0
        self.told: set[str] = set()
        self.readers: dict[str, Callable[[Any], Any]] = {
            "dataset": lambda v: read_choice("dataset", v, self.names),
            "arch": lambda v: read_choice("arch", v, self.names),
            "mask": lambda v: read_choice("mask", v, self.names),
            "sparsity": read_sparsity,
            "recipe": lambda v: read_recipe(v, self.names),
            "seed": read_whole,
            "ticket_seed": read_whole,
            "world": read_world,
            "protocol": self.protocol,
        }

    def sweep(self) -> Sweep:
        """Return the checked sweep, or raise FileError with everything found."""
        preset: str = "tost"
        overrides: dict[str, Any] = {}
        try:
            preset, overrides = split_preset(self.file.protocol)
            make_protocol(preset, overrides)
            if recipe := overrides.get("match_cost"):
                read_recipe(recipe, self.names)
        except ValidationError as error:
            for e, said in zip(error.errors(), complaints(error), strict=True):
                self.fault(("protocol", *e["loc"][:1]), f"protocol: {said}")
        except ValueError as error:
            self.fault(("protocol", "preset"), f"protocol: {error}")
        self.uses()
        grid = self.axes(self.file.grid, ("grid",))
        blocks = [{**grid}]
        for index, block in enumerate(self.file.also):
            if not block:
                self.fault(("also", index), "also: an empty block repeats the grid; give it at least one axis")
            blocks.append({**grid, **self.axes(block, ("also", index))})
        if not self.faults:
            self.complete(blocks)
        rules = [self.rule(when, index) for index, when in enumerate(self.file.when)]
        excludes = [self.condition(text, ("exclude", i)) for i, text in enumerate(self.file.exclude)]
        tables, claims = check_declared(self.file, self.names.folder, self.reader, self.condition, self.fault)
        search = (
            read_search(self.file, self.names, self.document, self.reader, self.faults) if self.file.search else None
        )
        if self.faults:
            raise FileError(self.faults)
        tuned = read_tuned(self.file.tuned, self.document, self.names.folder, self.reader)
        return Sweep(
            self.file,
            self.document,
            self.names,
            preset,
            overrides,
            blocks,
            rules,
            excludes,
            search,
            tuned,
            tables,
            claims,
        )

    def fault(self, path: Path_, message: str) -> None:
        """Note one fault; after a hundred, give up."""
        self.faults.append(Fault(self.document.mark(path), message))
        if len(self.faults) >= MOST_FAULTS:
            raise FileError(self.faults)

    def uses(self) -> None:
        """Check that the user's own methods are there, used or not, and hide no name of the catalog."""
        taken = {*DATASETS, *MODELS, *MASKS, *PARTS, *RECIPES, *SPECIAL, DENSE}
        for name, reference in self.file.use.items():
            try:
                if not name.isidentifier() or keyword.iskeyword(name):
                    raise ValueError("a name is a plain word")
                if name in taken:
                    raise ValueError("the catalog has that name already; choose another")
                find_plugin(reference, self.names.folder)
            except (ValueError, OSError) as error:
                self.fault(("use", name), f"use: {short(name)}: {error}")
                self.told.add(str(error))

    def reader(self, axis: str) -> Callable[[Any], Any]:
        """Return the reader of an axis's values. Raises ValueError for a name that is no axis."""
        if axis in self.readers:
            return self.readers[axis]
        if axis in Protocol.model_fields:
            return lambda value: self.field(axis, value)
        part, dot, knob = axis.partition(".")
        if dot and (part in PARTS or part in self.names.use or part in offers("part")):
            knobs = self.names.entry("part", part).knobs
            if knob not in knobs:
                raise ValueError(f"{part} has no knob {short(knob)}; it has {', '.join(knobs)}{nearest(knob, knobs)}")
            return knobs[knob].check
        known = [*self.readers, *Protocol.model_fields, *(f"{p}.{k}" for p, e in PARTS.items() for k in e.knobs)]
        raise ValueError(
            f"{short(axis)} is no axis; there are {', '.join(self.readers)}, any protocol field and any part.knob"
            + nearest(axis, known)
        )

    def field(self, name: str, value: Any) -> Any:
        """Check one protocol field by itself; combinations are checked when cells are made."""
        if name == "epochs" and (recipe := matched_recipe(value)):
            read_recipe(recipe, self.names)
            return value
        if name == "match_cost":
            raise ValueError("write epochs: match_cost(RECIPE)")
        try:
            return getattr(Protocol.model_validate({name: value}, context=ALONE), name)
        except ValidationError as error:
            raise ValueError(complaints(error)[0].removeprefix(f"{name}: ")) from None

    def protocol(self, value: object) -> tuple[str, dict[str, Any]]:
        """Read a value of the axis `protocol`: a preset, or one with overrides."""
        preset, overrides = split_preset({"preset": value} if isinstance(value, str) else value)
        try:
            make_protocol(preset, overrides)
        except ValidationError as error:
            raise ValueError("; ".join(complaints(error))) from None
        if recipe := overrides.get("match_cost"):
            read_recipe(recipe, self.names)
        return preset, overrides

    def axes(self, block: Mapping[str, Any], path: Path_) -> Axes:
        """Read a block of axes."""
        found: Axes = {}
        for axis, value in block.items():
            here = (*path, axis)
            try:
                read = self.reader(axis)
                one = axis == "milestones" and isinstance(value, list) and not any(isinstance(v, list) for v in value)
                values = spread([value] if one and value else value)
                if isinstance(values, range) and axis in ("seed", "ticket_seed"):
                    found[axis] = values
                    self.values(read, [(values[0], None), (values[-1], None)], here)
                    continue
                if len(values) > MOST_VALUES and axis not in ("seed", "ticket_seed"):
                    raise ValueError(f"has {len(values):,} values; at most {MOST_VALUES:,} are allowed")
            except ValueError as error:
                self.fault(here, f"{'.'.join(map(str, here))}: {error}")
                continue
            pairs: list[tuple[Any, int | None]] = [(v, None) for v in values] if isinstance(values, range) else values
            pairs = self.recipe_sets(pairs, here) if axis == "recipe" else pairs
            self.listed += len(pairs)
            if self.listed > MOST_LISTED:
                self.fault(here, f"with this axis the file lists over {MOST_LISTED:,} values; write a..b for seeds")
                raise FileError(self.faults)
            found[axis] = self.values(read, pairs, here)
        return found

    def recipe_sets(self, pairs: list[tuple[Any, int | None]], path: Path_) -> list[tuple[Any, int | None]]:
        """Put in place of every set of recipes, such as `subsets(tost)`, its members."""
        found: list[tuple[Any, int | None]] = []
        for value, index in pairs:
            try:
                members = recipe_set(value, self.names) if isinstance(value, str) else [value]
                found += [(member, index) for member in members]
            except ValueError as error:
                self.fault(path if index is None else (*path, index), f"{'.'.join(map(str, path))}: {error}")
        return found

    def values(self, read: Callable[[Any], Any], values: list[tuple[Any, int | None]], path: Path_) -> list[Any]:
        """Read the values of one axis, each fault at its own line."""
        found = []
        for value, index in values:
            try:
                found.append(read(value))
            except ValueError as error:
                here = path if index is None else (*path, index)
                if str(error) not in self.told:
                    self.fault(here, f"{'.'.join(map(str, path))}: {error}")
        return found

    def complete(self, blocks: list[Axes]) -> None:
        """Fill in the axes that may be left out, and ask for those that may not."""
        for index, block in enumerate(blocks):
            path: Path_ = ("grid",) if index == 0 else ("also", index - 1)
            for axis in ("dataset", "arch", "mask"):
                if axis not in block:
                    self.fault(path, f"{path[0]}: the axis {axis!r} is missing")
            if all(getattr(mask, "name", "") == DENSE for mask in block.get("mask", [])):
                block["sparsity"] = [read_sparsity(0)]
            elif "sparsity" not in block:
                self.fault(path, f"{path[0]}: the axis 'sparsity' is missing; write for example sparsity: [90%, 98%]")
            block.setdefault("recipe", [read_recipe("default", self.names)])
            block.setdefault("seed", [0])
            parts = {part.name for recipe in block["recipe"] for part in getattr(recipe, "parts", ())}
            for axis in block:
                if "." in axis and axis.partition(".")[0] not in parts and index == 0:
                    self.fault((*path, axis), f"{path[0]}: {axis} has no effect: no recipe here has that part")

    def condition(self, text: str, path: Path_) -> Condition:
        """Compile a condition."""
        names: dict[str, Callable[[Any], Any]] = {
            "dataset": lambda v: read_choice("dataset", v, self.names).name,
            "arch": lambda v: read_choice("arch", v, self.names).name,
            "mask": lambda v: read_choice("mask", v, self.names).name,
            "recipe": lambda v: read_recipe(v, self.names).label,
            "sparsity": lambda v: read_sparsity(v).share if isinstance(v, str) else read_number(v),
            **dict.fromkeys(("seed", "ticket_seed", "world"), read_number),
            **{name: _field_reader(self, name) for name in Protocol.model_fields},
        }
        try:
            return parse_condition(text, names)
        except ValueError as error:
            self.fault(path, f"{path[0]}: {error}")
            return lambda cell: False

    def rule(self, when: When, index: int) -> tuple[Condition, dict[str, Any]]:
        """Compile a conditional override."""
        condition = self.condition(when.condition, ("when", index, "if"))
        found: dict[str, Any] = {}
        for axis, value in when.set.items():
            try:
                found[axis] = self.reader(axis)(value)
            except (ValueError, FileError) as error:
                self.fault(("when", index, "set", axis), f"when.set.{axis}: {error}")
        return condition, found


def _field_reader(check: _Check, name: str) -> Callable[[Any], Any]:
    return lambda value: check.field(name, value)
