"""What a sweep file declares of its report: tables, figures, claims, and numbers from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from harness.catalog import METRICS
from harness.errors import short
from tost.catalog import nearest

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
EFFECT = "effect"
"""In a table's rows: not recipes, but the effects of their parts and of pairs of them."""
PLAIN = "plain"
"""As a baseline's mask: the same mask without its control."""
GUARDED = ("content", "dev", "select", "report", "epochs", "precision", "prunable")
"""What a table does not mix inside one data set unless told to: `content` is that of the data set's files."""
RESERVED = ("cells", "claims", "report", "files")
FIGURES = {
    "accuracy": "accuracy against sparsity, a line per recipe, the dense network's beside it",
    "gain": "gain over the baseline, masks against sparsities",
    "curves": "learning curves, the ghost window shaded",
    "density": "density of every layer, a line per mask",
    "overlap": "intersection over union of the masks",
    "near-zero": "share of near-zero activations, layer by layer",
    "cost": "accuracy against the operations of training",
}


class Form(BaseModel):
    """A part of the sweep file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def known_metric(name: str) -> str:
    """Return the name of a metric. Raises ValueError for any other."""
    if name not in METRICS:
        raise ValueError(f"{short(name)} is no metric; choose from {', '.join(METRICS)}{nearest(name, METRICS)}")
    return name


class Table(Form):
    """A table to print: which axes make its rows and columns; other axes that vary give a block each."""

    name: str = Field(pattern=f"^{NAME}$")
    """Its name, and that of its files."""
    rows: tuple[str, ...] = Field(min_length=1)
    """Axes whose values make the rows; `effect` in place of `recipe`: the effects of parts and of pairs of them."""
    columns: tuple[str, ...] = Field(min_length=1)
    """Axes whose values make the columns."""
    blocks: tuple[str, ...] = ()
    """Axes that give a block each before the others do."""
    values: tuple[str, ...] = Field(("accuracy",), min_length=1)
    """Metrics that each entry shows."""
    baseline: str | dict[str, str | int | float] = "default"
    """What the rest is compared with: a recipe, or one value for each of some axes."""
    emphasis: Literal["best", "significant", "none"] = "none"
    """What is bold: the highest mean, or what differs from the baseline significantly."""
    family: Literal["table", "block"] = "table"
    """The differences that are tested together: of all its blocks, or block by block."""
    mix: tuple[str, ...] = ()
    """What it may have side by side that is otherwise refused: some of `content`, `dev`, `select`, `report`, `epochs`,
    `precision`, `prunable`.
    """

    @field_validator("values")
    @classmethod
    def _values(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(known_metric, names)))

    @field_validator("baseline", mode="before")
    @classmethod
    def _baseline(cls, value: object) -> object:
        for one in value.values() if isinstance(value, dict) else [value]:
            if type(one) not in ((str, int, float) if isinstance(value, dict) else (str,)):
                raise ValueError(
                    f"{short(one)} is not allowed; write a recipe, or axes with one value each, as {{lr: 0.1}}"
                )
        return value

    @field_validator("mix")
    @classmethod
    def _mix(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in GUARDED:
                raise ValueError(f"{short(name)}: choose from {', '.join(GUARDED)}{nearest(name, GUARDED)}")
        return names

    @model_validator(mode="after")
    def _distinct(self) -> Table:
        axes = [*self.rows, *self.columns, *self.blocks]
        if twice := [axis for axis in axes if axes.count(axis) > 1]:
            raise ValueError(f"{twice[0]!r} stands twice in its rows, columns and blocks")
        if EFFECT in self.rows and ("recipe" in axes or len(self.values) > 1):
            raise ValueError("a table of effects has no axis recipe, whose parts it tells apart, and one value")
        return self

    @property
    def written(self) -> dict[str, str | int | float]:
        """Return what the baseline is as it is written: axis -> value."""
        return {"recipe": self.baseline} if isinstance(self.baseline, str) else dict(self.baseline)

    @property
    def compared(self) -> dict[str, str]:
        """Return what the baseline is: axis -> label."""
        return {axis: str(value) for axis, value in self.written.items()}


SIZES = ("accuracy", "kept", "density_with_ghosts", "inference_flops", "training_flops", "ghost_operations")
TABLES: Mapping[str, Table] = {
    table.name: table
    for table in (
        Table(name="any-mask", rows=("mask", "recipe"), columns=("dataset", "sparsity")),
        Table(name="components", rows=("recipe",), columns=("sparsity",)),
        Table(name="generality", rows=("arch", "recipe"), columns=("dataset", "sparsity")),
        Table(name="ablation", rows=("recipe",), columns=("mask", "sparsity")),
        Table(name="factorial", rows=(EFFECT,), columns=("mask", "sparsity")),
        Table(name="controls", rows=("recipe", "mask"), columns=("dataset", "sparsity"), baseline={"mask": PLAIN}),
        Table(name="accounting", rows=("arch", "mask", "recipe"), columns=("sparsity",), values=SIZES),
        Table(
            name="diagnostics",
            rows=("arch", "mask", "recipe"),
            columns=("sparsity",),
            values=("near_zero", "silent_channels", "dead_filters", "empty_layers"),
        ),
    )
}


class Claim(Form):
    """One sentence that a sweep is to decide, registered before its first result."""

    name: str = Field(pattern=f"^{NAME}$")
    """Its name in the store and in the report."""
    compare: dict[str, tuple[Any, Any]] = Field(min_length=1, max_length=1)
    """One axis, and two of its values: the first is said to differ from the second."""
    where: str = ""
    """A condition on the cells it is about; else all."""
    over: tuple[str, ...] = ()
    """The axes whose cells it pools; else all that vary."""
    value: str = "accuracy"
    """The metric that is compared, one of the accuracies."""
    margin: float = Field(gt=0)
    """The smallest difference that matters, in the value's unit (points of accuracy)."""
    seeds: int = Field(ge=2, le=10_000)
    """How many seeds it is decided with, in one analysis of all of them."""

    @field_validator("value")
    @classmethod
    def _value(cls, name: str) -> str:
        if METRICS[known_metric(name)] != "accuracy":
            allowed = ", ".join(metric for metric, kind in METRICS.items() if kind == "accuracy")
            raise ValueError(f"{short(name)}: a claim is about an accuracy, of which more is better: {allowed}")
        return name

    @model_validator(mode="before")
    @classmethod
    def _once(cls, given: object) -> object:
        if isinstance(given, dict) and "looks" in given:
            raise ValueError(
                f"looks {short(given['looks'])}: no interim analyses are made, one of all its seeds decides; leave "
                "`looks` out"
            )
        return given

    @property
    def axis(self) -> str:
        """Return the axis whose values are compared."""
        return next(iter(self.compare))


class Declared(Form):
    """All of it, as a plan's file holds it."""

    tables: list[Table] = Field(default_factory=list)
    figures: list[str] = Field(default_factory=lambda: list(FIGURES))
    claims: list[Claim] = Field(default_factory=list)
    baselines: dict[str, str] = Field(default_factory=dict)
    """Path, as the sweep file has it -> SHA-256 of the store's copy."""
    file: str = ""
    """The sweep file, as it was named on the command line."""
    members: dict[str, list[int]] = Field(default_factory=dict)
    """Claim -> its cells, by their places in the plan."""

    @field_validator("claims", mode="before")
    @classmethod
    def _earlier(cls, claims: list[dict[str, Any] | Claim]) -> list[dict[str, Any] | Claim]:
        """Leave out the interim analyses that plans of an earlier version name."""
        return [c if isinstance(c, Claim) else {k: v for k, v in c.items() if k != "looks"} for c in claims]


def named_tables(value: object) -> object:
    """Put in place of every name of a shape the shape. Raises ValueError for an unknown one."""
    if not isinstance(value, list):
        return value
    for item in value:
        if isinstance(item, str) and item not in TABLES:
            raise ValueError(f"{short(item)} is no table shape; choose from {', '.join(TABLES)}{nearest(item, TABLES)}")
    return [_shape(item) for item in value]


def _shape(item: object) -> object:
    """Return a shape by name, with other fields laid over it where it is written `{shape: NAME, ...}`."""
    if isinstance(item, str):
        return TABLES[item]
    if isinstance(item, dict) and "shape" in item:
        shape = item["shape"]
        if not isinstance(shape, str) or shape not in TABLES:
            known = f"{', '.join(TABLES)}{nearest(str(shape), TABLES)}"
            raise ValueError(f"{short(shape)} is no table shape; choose from {known}")
        return {**TABLES[shape].model_dump(), **{k: v for k, v in item.items() if k != "shape"}}
    return item


def known_figures(names: list[str]) -> list[str]:
    """Return the names of figures, each once. Raises ValueError for an unknown one."""
    for name in names:
        if name not in FIGURES:
            raise ValueError(f"{short(name)} is no figure; choose from {', '.join(FIGURES)}{nearest(name, FIGURES)}")
    return list(dict.fromkeys(names))


def once(kind: str, names: list[str]) -> None:
    """Raise ValueError where two of a kind have one name, or a table that of another file of the report."""
    lower = [name.lower() for name in names]
    if kind == "tables" and (taken := [name for name in lower if name in RESERVED]):
        raise ValueError(f"a table cannot be named {taken[0]!r}: the report has a file of that name; choose another")
    if twice := [name for name in lower if lower.count(name) > 1]:
        raise ValueError(f"two {kind} are named {twice[0]!r}; they would be the same file")
