"""The sweep file: its form as pydantic models, its check, one message a fault."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.axes import DENSE, Names, read_choice, read_recipe, read_sparsity, read_whole, spread
from harness.catalog import PRESETS
from harness.errors import Fault, FileError, UserError
from harness.expressions import Condition, parse_condition
from harness.protocol import Protocol, make_protocol
from harness.reading import Document, Path_, merge, read_document
from tost.catalog import PARTS, nearest

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MOST_CELLS = 20_000_000
MOST_BASES = 16


class Form(BaseModel):
    """A part of the sweep file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class When(Form):
    """A conditional override: where the condition holds, axes or protocol fields are set."""

    condition: str = Field(alias="if")
    set: dict[str, Any] = Field(min_length=1)


class Table(Form):
    """A table to print: which axes make its rows and columns; other axes that vary give a block each."""

    name: str = Field(pattern=f"^{NAME}$")
    rows: tuple[str, ...] = Field(min_length=1)
    columns: tuple[str, ...] = Field(min_length=1)
    baseline: str = "default"


TABLES: Mapping[str, Table] = {
    "any-mask": Table(name="any-mask", rows=("mask", "recipe"), columns=("dataset", "sparsity")),
    "components": Table(name="components", rows=("recipe",), columns=("sparsity",)),
    "ablation": Table(name="ablation", rows=("recipe",), columns=("mask", "sparsity")),
    "generality": Table(name="generality", rows=("arch", "recipe"), columns=("dataset", "sparsity")),
}


class Launch(Form):
    """Where workers live: this machine (`local`), or a cluster profile."""

    via: str = "local"
    workers: int | None = Field(None, ge=1, le=1024)
    threads: int | None = Field(None, ge=1, le=1024)
    device: str | None = Field(None, pattern=r"^[a-z]+(:\d+)?$")


class Wandb(Form):
    """Where results are mirrored to."""

    project: str = Field(min_length=1, max_length=128)
    entity: str | None = None
    mode: str = Field("auto", pattern="^(auto|online|offline|disabled)$")


class SweepFile(Form):
    """A sweep: the grid of cells, how they are trained, and the tables that come of it."""

    name: str = Field(pattern=f"^{NAME}$")
    base: str | None = None
    protocol: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Any] = Field(min_length=1)
    also: list[dict[str, Any]] = Field(default_factory=list)
    when: list[When] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    use: dict[str, str] = Field(default_factory=dict)
    data: str | None = None
    tables: list[Table] = Field(default_factory=list)
    launch: Launch = Field(default_factory=lambda: Launch())
    wandb: Wandb | None = None

    @field_validator("protocol", mode="before")
    @classmethod
    def _preset(cls, value: object) -> object:
        return {"preset": value} if isinstance(value, str) else value

    @field_validator("tables", mode="before")
    @classmethod
    def _shapes(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        for item in value:
            if isinstance(item, str) and item not in TABLES:
                raise ValueError(f"{item!r} is no table shape; choose from {', '.join(TABLES)}{nearest(item, TABLES)}")
        return [TABLES[item] if isinstance(item, str) else item for item in value]


Axes = dict[str, list[Any] | range]


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file: every value read, every condition compiled."""

    file: SweepFile
    document: Document
    names: Names
    preset: str
    overrides: Mapping[str, Any]
    blocks: list[Axes]
    rules: list[tuple[Condition, dict[str, Any]]]
    excludes: list[Condition]
    _protocols: dict[Any, Protocol] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the sweep's name, the folder of its plan and report."""
        return self.file.name

    def size(self) -> int:
        """Return the number of grid points before exclusion and uniting, without making them."""
        return sum(_product(len(values) for values in block.values()) for block in self.blocks)

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield the grid's points as axis -> value, before any rule."""
        for block in self.blocks:
            for values in itertools.product(*block.values()):
                yield dict(zip(block, values, strict=True))

    def protocol(self, preset: str, overrides: Mapping[str, Any]) -> Protocol:
        """Return a resolved protocol, the same object for the same settings.

        Raises FileError for a combination that cannot be.
        """
        key = (preset, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(overrides.items())))
        if key not in self._protocols:
            try:
                self._protocols[key] = make_protocol(preset, overrides)
            except ValidationError as error:
                faults = [Fault(self.document.mark(("protocol",)), f"protocol: {_sentence(e)}") for e in error.errors()]
                raise FileError(faults) from None
        return self._protocols[key]


def _product(sizes: Iterator[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def load_sweep(path: Path) -> Sweep:
    """Read and check a sweep file and its bases. Raises FileError with one line per fault, or UserError."""
    document = _with_base(path, [])
    try:
        file = SweepFile.model_validate({k: v for k, v in document.values.items() if k != "base"})
    except ValidationError as error:
        raise FileError([_fault(document, e) for e in error.errors()]) from None
    return _Check(file, document, path.resolve().parent).sweep()


def _with_base(path: Path, seen: list[Path]) -> Document:
    if path.resolve() in seen:
        raise UserError(f"{path}: base files form a circle: {' -> '.join(p.name for p in [*seen, path.resolve()])}")
    if len(seen) >= MOST_BASES:
        raise UserError(f"{path}: over {MOST_BASES} base files, one on another")
    document = read_document(path)
    base = document.values.get("base")
    if base is None:
        return document
    if not isinstance(base, str):
        raise FileError([Fault(document.mark(("base",)), f"base: {base!r} is not the path of a sweep file")])
    return merge(_with_base(path.parent / base, [*seen, path.resolve()]), document)


def _fault(document: Document, error: Any) -> Fault:
    location: Path_ = tuple("if" if part == "condition" else part for part in error["loc"])
    name = ".".join(map(str, location))
    mark = document.mark(location)
    if error["type"] == "extra_forbidden":
        model = _model_at(location[:-1])
        known = [f.alias or n for n, f in model.model_fields.items()]
        return Fault(mark, f"{name}: unknown key; allowed are {', '.join(known)}{nearest(str(location[-1]), known)}")
    return Fault(mark, f"{name}: {_sentence(error)}")


def _model_at(location: Path_) -> type[BaseModel]:
    models: dict[str | int, type[BaseModel]] = {"launch": Launch, "wandb": Wandb, "when": When, "tables": Table}
    return models.get(location[0], SweepFile) if location else SweepFile


def _sentence(error: Any) -> str:
    """Turn a pydantic error into what was given and what is allowed."""
    given = repr(error.get("input"))
    given = given if len(given) <= 60 else given[:56] + " ..."
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "string_pattern_mismatch" and NAME in error["ctx"]["pattern"]:
        return f"{given} is not allowed; a name is letters, digits, dots, dashes and underscores, at most 64"
    where = f"{error['loc'][-1]}: " if error["loc"] and error["loc"][0] in Protocol.model_fields else ""
    return f"{where}{given} is not allowed; {error['msg'][0].lower()}{error['msg'][1:]}"


class _Check:
    """Reads every value of a well-formed file and gathers all faults."""

    def __init__(self, file: SweepFile, document: Document, folder: Path) -> None:
        self.file, self.document = file, document
        self.names = Names(file.use, folder)
        self.faults: list[Fault] = []
        self.readers: dict[str, Callable[[Any], Any]] = {
            "dataset": lambda v: read_choice("dataset", v, self.names),
            "arch": lambda v: read_choice("arch", v, self.names),
            "mask": lambda v: read_choice("mask", v, self.names),
            "sparsity": read_sparsity,
            "recipe": lambda v: read_recipe(v, self.names),
            "seed": read_whole,
            "ticket_seed": read_whole,
            "world": _world,
            "protocol": lambda v: _split_preset({"preset": v} if isinstance(v, str) else v),
        }

    def sweep(self) -> Sweep:
        """Return the checked sweep, or raise FileError with everything found."""
        preset: str = "tost"
        overrides: dict[str, Any] = {}
        try:
            preset, overrides = _split_preset(self.file.protocol)
            make_protocol(preset, overrides)
        except ValidationError as error:
            for e in error.errors():
                self.fault(("protocol", *e["loc"][:1]), f"protocol: {_unknown_field(e) or _sentence(e)}")
        except ValueError as error:
            self.fault(("protocol", "preset"), f"protocol: {error}")
        for name in self.file.use:
            if not name.isidentifier():
                self.fault(("use", name), f"use: {name!r} is not a plain word")
        grid = self.axes(self.file.grid, ("grid",))
        blocks = [{**grid}] if self.file.grid else []
        for index, block in enumerate(self.file.also):
            blocks.append({**grid, **self.axes(block, ("also", index))})
        if not self.faults:
            self.complete(blocks)
        rules = [self.rule(when, index) for index, when in enumerate(self.file.when)]
        excludes = [self.condition(text, ("exclude", i)) for i, text in enumerate(self.file.exclude)]
        self.tables()
        if self.faults:
            raise FileError(self.faults)
        return Sweep(self.file, self.document, self.names, preset, overrides, blocks, rules, excludes)

    def fault(self, path: Path_, message: str) -> None:
        """Note one fault."""
        self.faults.append(Fault(self.document.mark(path), message))

    def reader(self, axis: str) -> Callable[[Any], Any]:
        """Return the reader of an axis's values. Raises ValueError for a name that is no axis."""
        if axis in self.readers:
            return self.readers[axis]
        if axis in Protocol.model_fields:
            return lambda value: self.field(axis, value)
        part, dot, knob = axis.partition(".")
        if dot and part in PARTS:
            if knob not in PARTS[part].knobs:
                knobs = PARTS[part].knobs
                raise ValueError(f"{part} has no knob {knob!r}; it has {', '.join(knobs)}{nearest(knob, knobs)}")
            return PARTS[part].knobs[knob].check
        known = [*self.readers, *Protocol.model_fields, *(f"{p}.{k}" for p, e in PARTS.items() for k in e.knobs)]
        raise ValueError(
            f"{axis!r} is no axis; there are {', '.join(self.readers)}, any protocol field and any part.knob"
            + nearest(axis, known)
        )

    def field(self, name: str, value: Any) -> Any:
        """Check one protocol field by itself; combinations are checked when cells are made."""
        given = {name: value, **({"epochs": 100_000} if name in ("milestones", "warmup") else {})}
        try:
            return getattr(make_protocol("tost", given), name)
        except ValidationError as error:
            raise ValueError(_sentence(error.errors()[0])) from None

    def axes(self, block: Mapping[str, Any], path: Path_) -> Axes:
        """Read a block of axes."""
        found: Axes = {}
        for axis, value in block.items():
            here = (*path, axis)
            try:
                read = self.reader(axis)
                values = spread([value] if axis == "milestones" and isinstance(value, list) else value)
            except ValueError as error:
                self.fault(here, f"{'.'.join(map(str, here))}: {error}")
                continue
            if axis in ("seed", "ticket_seed") and isinstance(values, range) and values[0] >= 0:
                found[axis] = values
                continue
            found[axis] = self.values(read, values, here, isinstance(value, list))
        return found

    def values(self, read: Callable[[Any], Any], values: list[Any] | range, path: Path_, listed: bool) -> list[Any]:
        """Read the values of one axis, each fault at its own line."""
        found = []
        for index, value in enumerate(values):
            try:
                found.append(read(value))
            except ValueError as error:
                self.fault((*path, index) if listed else path, f"{'.'.join(map(str, path))}: {error}")
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

    def condition(self, text: str, path: Path_) -> Condition:
        """Compile a condition."""
        names: dict[str, Any] = {
            "dataset": lambda v: read_choice("dataset", v, self.names).name,
            "arch": lambda v: read_choice("arch", v, self.names).name,
            "mask": lambda v: read_choice("mask", v, self.names).name,
            "recipe": lambda v: read_recipe(v, self.names).label,
            "sparsity": lambda v: read_sparsity(v).share,
            "seed": None,
            "ticket_seed": None,
            **dict.fromkeys(Protocol.model_fields),
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

    def tables(self) -> None:
        """Check that the tables' rows and columns are axes."""
        for index, table in enumerate(self.file.tables):
            for axis in (*table.rows, *table.columns):
                try:
                    self.reader(axis)
                except ValueError as error:
                    self.fault(("tables", index), f"tables: {error}")
            try:
                read_recipe(table.baseline, self.names)
            except ValueError as error:
                self.fault(("tables", index), f"tables: baseline: {error}")


def _world(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 4096:
        raise ValueError(f"{value!r} is not allowed; write the number of processes a cell trains with")
    return value


def _split_preset(value: object) -> tuple[str, dict[str, Any]]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not allowed; write a preset's name or {{preset: NAME, field: value}}")
    preset = value.get("preset", "tost")
    if preset not in PRESETS:
        raise ValueError(f"{preset!r} is no preset; choose from {', '.join(PRESETS)}{nearest(str(preset), PRESETS)}")
    return preset, {k: v for k, v in value.items() if k != "preset"}


def _unknown_field(error: Any) -> str:
    if error["type"] != "extra_forbidden":
        return ""
    known = ["preset", *Protocol.model_fields]
    name = str(error["loc"][-1])
    return f"{name!r} is no field; there are {', '.join(known)}{nearest(name, known)}"
