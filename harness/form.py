"""The form of a sweep file as pydantic models, and pydantic's complaints in words of our own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from harness.declared import FIGURES, NAME, Claim, Form, Table, known_figures, named_tables, once
from harness.errors import Fault, short
from harness.protocol import Protocol
from harness.reading import Document, Path_
from tost.catalog import nearest

MOST_TRIALS = 100_000
MOST_WORKERS = 1024
PROJECT = r"^[^/\\#?%:\s]([^/\\#?%:\n]{0,94}[^/\\#?%:\s])?$"
"""What W&B takes as a project's name."""
ENTITY = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


class When(Form):
    """A conditional override: where the condition holds, axes or protocol fields are set."""

    condition: str = Field(alias="if")
    """Axes and protocol fields compared with values: `arch == 'vgg16' and sparsity > 0.9`."""
    set: dict[str, Any] = Field(min_length=1)
    """Axis or protocol field: the value that it has there."""


class Launch(Form, strict=True):
    """Where workers live: this machine (`local`), or a cluster profile."""

    via: str = "local"
    """`local`, `debug`, `ray`, or the name of a cluster profile."""
    workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] | Literal["auto"] | None = None
    """Workers on this machine; `auto`: as many as train the most images a second here, which is tried out. Else one
    to a GPU, or to a core.
    """
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of a worker; with ray, CPUs of a process."""
    device: str | None = Field(None, pattern=r"^[a-z]+(:\d+)?$")
    """A torch device, such as `cpu` or `cuda`; else a GPU where the machine has any."""
    gpus: float | None = Field(None, ge=0, le=64)
    """With ray: GPUs of a trial, fractions allowed; else one where the machine has any."""
    address: str | None = None
    """With ray: where its cluster is; else one is started here."""
    fast: bool = False
    """Whether trainings may use what is quicker but gives other last bits from run to run."""
    execution: Literal["eager", "compiled", "graphs"] = "eager"
    """How trainings run their networks: layer by layer, by `torch.compile`, or compiled and replayed as CUDA graphs."""
    stop_after: int | None = Field(None, ge=1)
    """Failures for one cause after which no more stages are begun; else what does not need them is run."""

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_auto(cls, value: object) -> object:
        if value not in (None, "auto") and (type(value) is not int or not 1 <= value <= MOST_WORKERS):
            raise ValueError(f"{short(value)} is not allowed; write a number from 1 to {MOST_WORKERS}, or auto")
        return value


class Wandb(Form, strict=True):
    """Where results are mirrored to on Weights & Biases."""

    project: str = Field(pattern=PROJECT)
    """The project that runs are sent to."""
    entity: str | None = Field(None, pattern=ENTITY)
    """A team or a user; else the default one of whoever's key is used. A group names its team."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`, `online`: sent while the sweep runs; `offline`: by `harness wandb sync` alone; `disabled`: never."""

    @model_validator(mode="before")
    @classmethod
    def _without_gone_keys(cls, given: object) -> object:
        if isinstance(given, dict) and (gone := [key for key in ("shard_by", "artifacts") if key in given]):
            raise ValueError(f"{' and '.join(gone)}: gone; all runs go to one project, without files; leave it out")
        return given


class Asha(Form, strict=True):
    """Asynchronous successive halving (Li et al., 2020): who is behind after `grace` epochs, and after every
    `reduction` times as many, is stopped.
    """

    grace: int = Field(1, ge=1)
    """Epochs that every trial is given."""
    reduction: int = Field(4, ge=2, le=1000)
    """One of so many goes on at every halving."""


class Search(Form):
    """A search for the best settings of every place of the grid, judged on the dev split alone."""

    metric: Literal["dev_accuracy", "dev_loss"] = "dev_accuracy"
    """What trials are judged by."""
    mode: Literal["max", "min"] | None = None
    """Which way the metric is better; follows from it, and may be written down."""
    space: dict[str, Any] = Field(min_length=1)
    """Protocol field, or knob of a part such as `gsw.b1`: `uniform(a, b)`, `loguniform(a, b)`, `integer(a, b)`, or a
    list of values.
    """
    samples: int | dict[str, int]
    """Trials of every place, or by recipe."""
    baseline: str = "default"
    """The recipe that is tuned too, in the grid or not; `none` leaves it out."""
    scheduler: Literal["asha", "none"] | Asha = "asha"
    """What stops bad trials early: successive halving, with its settings as `{asha: {grace: 1}}`, or nothing."""
    searcher: Literal["random", "optuna"] = "random"
    """What proposes settings."""
    seed: int = Field(0, ge=0, lt=2**31)
    """What random draws are made from."""
    write: str | None = None
    """Where the best settings go, relative to the sweep file; else beside the sweep's plan in the store."""

    @field_validator("samples", mode="before")
    @classmethod
    def _samples(cls, value: object) -> object:
        for number in value.values() if isinstance(value, dict) else [value]:
            if type(number) is not int or not 1 <= number <= MOST_TRIALS:
                raise ValueError(
                    f"{short(number)} is not allowed; write the number of trials, from 1 to {MOST_TRIALS:,}, or "
                    "one for each recipe, as {default: 20}"
                )
        return value

    @field_validator("scheduler", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if isinstance(value, dict):
            return Asha.model_validate(value["asha"] or {} if list(value) == ["asha"] else value)
        if value not in ("asha", "none") and not isinstance(value, Asha):
            raise ValueError(f"{short(value)} is not allowed; write asha, none or {{asha: {{grace: 1, reduction: 4}}}}")
        return value

    @model_validator(mode="after")
    def _right_way(self) -> Search:
        if self.mode not in (None, self.best):
            raise ValueError(f"mode {self.mode}: {self.metric} is better the other way; write {self.best}")
        return self

    @property
    def best(self) -> str:
        """Return which way the metric is better."""
        return "max" if self.metric == "dev_accuracy" else "min"

    @property
    def asha(self) -> Asha | None:
        """Return the settings of the scheduler, where there is one."""
        return Asha() if self.scheduler == "asha" else None if self.scheduler == "none" else self.scheduler


class SweepFile(Form):
    """A sweep: the grid of cells, how they are trained, and the tables that come of it."""

    name: str = Field(pattern=f"^{NAME}$")
    """The sweep's name: that of its folder in the store, and of the sweep on the command line."""
    base: str | None = None
    """Another sweep file, relative to this one, whose fields hold where this one has none."""
    protocol: dict[str, Any] = Field(default_factory=dict)
    """How all cells are trained: the name of a preset, or `{preset: NAME, field: value}`; without a preset, `tost`."""
    grid: dict[str, Any] = Field(min_length=1)
    """Axis: a value, or a list of values. Every combination is a cell."""
    also: list[dict[str, Any]] = Field(default_factory=list)
    """Further blocks of cells: the grid with some axes replaced."""
    when: list[When] = Field(default_factory=list)
    """Conditional overrides, applied in order."""
    exclude: list[str] = Field(default_factory=list)
    """Conditions; cells for which one holds are left out."""
    use: dict[str, str] = Field(default_factory=dict)
    """Methods of one's own by name: `./file.py:function`, relative to the sweep file, or `package.module:function`."""
    data: str | None = None
    """The folder of data sets; else `$HARNESS_DATA`, else `./data`."""
    tables: list[Table] = Field(default_factory=list)
    """Names of shapes, shapes with changes as `{shape: NAME, field: value}`, or tables of one's own."""
    figures: list[str] = Field(default_factory=lambda: list(FIGURES))
    """Figures to draw."""
    claims: list[Claim] = Field(default_factory=list)
    """Comparisons that the sweep is to decide, registered before its first result."""
    baselines: list[str] = Field(default_factory=list)
    """CSV files of numbers from elsewhere, relative to the sweep file."""
    launch: Launch = Field(default_factory=lambda: Launch())
    """Where workers live."""
    wandb: Wandb | None = None
    """Where results are mirrored to; without it, nowhere."""
    search: Search | None = None
    """Makes the sweep a search for settings, which trains no table."""
    tuned: str | list[str] = Field(default_factory=list)
    """Files that searches have written, relative to the sweep file, whose settings its cells are trained with."""

    @field_validator("protocol", mode="before")
    @classmethod
    def _preset(cls, value: object) -> object:
        return {"preset": value} if isinstance(value, str) else value

    @field_validator("tables", mode="before")
    @classmethod
    def _shapes(cls, value: object) -> object:
        return named_tables(value)

    @field_validator("tuned", mode="before")
    @classmethod
    def _paths(cls, value: object) -> object:
        for path in value if isinstance(value, list) else [value]:
            if not isinstance(path, str):
                raise ValueError(
                    f"{short(path)} is not allowed; write the path of a file of a search, or a list of them"
                )
        return value

    @field_validator("baselines", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("figures")
    @classmethod
    def _figures(cls, names: list[str]) -> list[str]:
        return known_figures(names)

    @field_validator("tables", "claims")
    @classmethod
    def _named_once(cls, items: list[Any], info: ValidationInfo) -> list[Any]:
        once(str(info.field_name), [item.name for item in items])
        return items


WANTED = {
    "dict_type": "write a mapping (key: value)",
    "model_type": "write a mapping (key: value)",
    "model_attributes_type": "write a mapping (key: value)",
    "list_type": "write a list",
    "tuple_type": "write a list",
    "string_type": "write a text",
    "int_type": "write a whole number",
    "int_from_float": "write a whole number",
    "int_parsing": "write a whole number",
    "float_type": "write a number",
    "bool_type": "write true or false",
    "too_short": "give at least one",
    "string_pattern_mismatch": "it has not the right form",
    "string_too_short": "it is empty",
}


def form_fault(document: Document, error: Any) -> Fault:
    """Turn one of pydantic's errors about a sweep file into a fault at its line."""
    location: Path_ = error["loc"]
    if error["type"] == "missing":
        location = tuple("if" if part == "condition" else part for part in location)
    name = ".".join(map(str, location))
    mark = document.mark(location)
    if error["type"] == "extra_forbidden":
        model = _model_at(location[:-1])
        known = [f.alias or n for n, f in model.model_fields.items()]
        return Fault(mark, f"{name}: unknown key; allowed are {', '.join(known)}{nearest(str(location[-1]), known)}")
    return Fault(mark, f"{name}: {sentence(error)}")


def _model_at(location: Path_) -> type[BaseModel]:
    models: dict[str | int, type[BaseModel]] = {
        "launch": Launch,
        "wandb": Wandb,
        "when": When,
        "tables": Table,
        "claims": Claim,
        "search": Search,
    }
    if location[:2] == ("search", "scheduler"):
        return Asha
    return models.get(location[0], SweepFile) if location else SweepFile


def sentence(error: Any) -> str:
    """Say what was given and what is allowed, for one of pydantic's errors."""
    given = short(error.get("input"))
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "extra_forbidden":
        known = ["preset", *Protocol.model_fields]
        field = str(error["loc"][-1])
        return f"{short(field)} is no field; there are {', '.join(known)}{nearest(field, known)}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == PROJECT:
        return f"{given} is not allowed; a project's name has 1 to 96 characters, none of / \\ # ? % : among them"
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == ENTITY:
        return f"{given} is not allowed; an entity, a user or a team, is letters, digits, dashes and underscores"
    if error["type"] == "string_pattern_mismatch" and NAME in error["ctx"]["pattern"]:
        return f"{given} is not allowed; a name is letters, digits, dots, dashes and underscores, at most 64"
    wanted = WANTED.get(error["type"], f"{error['msg'][0].lower()}{error['msg'][1:]}")
    return f"{given} is not allowed; {wanted}"
