"""The training protocol: every choice that defines a number, explicit, none of them 'auto'."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from harness.catalog import LOSSES, OPTIMIZERS, PRESETS, SCHEDULES
from harness.errors import short
from tost.catalog import nearest

VIEW_FIELDS = ("report",)
"""Fields that choose a column of a table and change no training."""
PLANNED_FIELDS = ("match_cost",)
"""Fields that enter a training's key in another form, and no ticket's."""
ALONE = {"alone": True}
"""The validation context in which fields are checked one by one and not against each other."""
AUGMENTS = ("standard", "none")
AUGMENT = re.compile(r"(crop|flip)=(0|[1-9]\d{0,3}|true|false)\b")
MOST_CROP = 256
"""Pixels of padding for a random crop."""
MASK_FIELDS = ("prunable", "on_collapse")
"""Fields that a mask depends on, and a training only through its mask."""


class Protocol(BaseModel):
    """How a network is trained and judged. The defaults are preset `tost`; times are in epochs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    optimizer: str = "sgd"
    """`sgd` or `adamw`."""
    lr: float = Field(0.1, gt=0, le=1e3)
    """The learning rate before the schedule."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of `sgd`."""
    nesterov: bool = False
    """Of `sgd`: Nesterov's form of momentum."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Of `adamw`: the decay of the first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Of `adamw`: the decay of the second moment."""
    weight_decay: float = Field(2e-4, ge=0, le=10)
    """On all parameters, batch norm's among them."""
    schedule: str = "multistep"
    """`multistep` or `cosine`."""
    milestones: tuple[float, ...] = (90.0, 135.0)
    """Of `multistep`: epochs at which the learning rate drops. Where only `epochs` is overridden, they move with it."""
    gamma: float = Field(0.1, gt=0, le=1)
    """Of `multistep`: the factor of a drop."""
    warmup: float = Field(0.0, ge=0)
    """Epochs in which the learning rate rises linearly from 0."""
    loss: str = "cross_entropy"
    """The training loss that recipe parts may change."""
    epochs: int = Field(182, ge=1, le=100_000)
    """Epochs of training; or `match_cost(RECIPE)`: longer by what that recipe costs more."""
    batch: int = Field(128, ge=1, le=1_000_000)
    """Images of a step, of all processes together; the last, smaller batch of an epoch is kept."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: forward and backward pass under autocast, weights in fp32."""
    augment: str = "standard"
    """`standard`: random crops, and horizontal flips where the data set's entry says that they keep the label's
    meaning; `none`; or settings, `{flip: true, crop: 4}`: `crop` is the padding in pixels; what is left out is as in
    `standard`.
    """
    dev: str = "standard"
    """The dev split, cut from the training images: `first:N`, `stratified:SHARE`, `none`, or the data set's own."""
    select: Literal["dev_accuracy"] = "dev_accuracy"
    """What the best epoch is chosen by."""
    report: Literal["test@last", "test@best-dev"] = "test@last"
    """The column that tables show as `accuracy`; both are measured."""
    prunable: Literal["conv+linear", "conv", "conv+linear+frozen", "conv+frozen"] = "conv+linear"
    """The weights that masks speak of; `conv` leaves the classifier dense, `+frozen` adds those not trained."""
    resize: int = Field(0, ge=0, le=1024)
    """The side that images are resized to; 0: as they are."""
    on_collapse: Literal["allow", "error", "keep_one"] = "allow"
    """What a mask does that leaves a layer nothing: it is reported, refused, or keeps that layer's best weight."""
    batch_norm: Literal["synced", "local"] = "synced"
    """Whose images a batch norm sees where several processes train: the whole batch's, or its own process's.

    It is in the key for one process too, where both are the same: how many train is not, and may change on the way.
    """
    match_cost: str = ""
    """A recipe: training is lengthened by what that recipe costs more. Written `epochs: match_cost(RECIPE)`."""

    @field_validator("optimizer", "schedule", "loss")
    @classmethod
    def _known(cls, name: str, info: Any) -> str:
        table: Mapping[str, Any] = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "loss": LOSSES}[info.field_name]
        if name not in table:
            raise ValueError(f"{short(name)} is unknown; choose from {', '.join(table)}{nearest(name, table)}")
        return name

    @field_validator("augment", mode="before")
    @classmethod
    def _augment(cls, value: object) -> str:
        return read_augment(value)

    @field_validator("milestones", mode="before")
    @classmethod
    def _as_tuple(cls, value: object) -> object:
        return tuple(float(v) if type(v) is int else v for v in value) if isinstance(value, list | tuple) else value

    @field_validator("dev")
    @classmethod
    def _dev(cls, value: str) -> str:
        if not re.fullmatch(r"standard|none|first:[1-9]\d{0,8}|stratified:0?\.\d{1,6}", value) or value.rstrip(
            "0."
        ).endswith(":"):
            raise ValueError(f"{short(value)} is not allowed; write standard, none, first:5000 or stratified:0.1")
        return value

    @model_validator(mode="after")
    def _together(self, info: ValidationInfo) -> Protocol:
        if info.context == ALONE:
            return self
        if self.schedule == "multistep" and (
            list(self.milestones) != sorted(set(self.milestones))
            or not all(0 < m < self.epochs for m in self.milestones)
        ):
            raise ValueError(f"milestones {list(self.milestones)} must rise and lie inside the {self.epochs} epochs")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.warmup >= self.epochs:
            raise ValueError(
                f"warmup of {self.warmup:g} epochs is no shorter than the {self.epochs} epochs of training"
            )
        if self.dev == "none" and self.report == "test@best-dev":
            raise ValueError("report test@best-dev needs a dev split, but dev is none")
        return self

    def augmented(self, pad: int, flip: bool) -> tuple[int, bool]:
        """Return the padding of random crops and whether images are flipped, where `standard` is as given here."""
        if self.augment in AUGMENTS:
            return (0, False) if self.augment == "none" else (pad, flip)
        settings = dict(AUGMENT.findall(self.augment))
        return int(settings.get("crop", pad)), settings.get("flip", "true" if flip else "false") == "true"

    @cached_property
    def training(self) -> dict[str, Any]:
        """Return what a training's key holds: the fields that are read, those at their default left out."""
        read = {*OPTIMIZERS[self.optimizer].fields, *SCHEDULES[self.schedule].fields}
        sometimes = {f for table in (OPTIMIZERS, SCHEDULES) for entry in table.values() for f in entry.fields}
        skipped = {*VIEW_FIELDS, *MASK_FIELDS, *PLANNED_FIELDS, "resize", "dev", "augment"} | (sometimes - read)
        fields = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in ((name, getattr(self, name)) for name in type(self).model_fields)
            if name not in skipped and value != type(self).model_fields[name].default
        }
        used = {
            "optimizer": OPTIMIZERS[self.optimizer],
            "schedule": SCHEDULES[self.schedule],
            "loss": LOSSES[self.loss],
        }
        versions = {kind: entry.version for kind, entry in used.items() if entry.version != 1}
        return fields | ({"versions": versions} if versions else {})

    @cached_property
    def first_drop(self) -> float:
        """Return the progress at which the learning rate first drops; for a smooth schedule, where `tost` would."""
        return self.milestones[0] / self.epochs if self.schedule == "multistep" and self.milestones else 90 / 182


def read_augment(value: object) -> str:
    """Return an augmentation as one text: `standard`, `none`, or its settings as `crop=4 flip=false`.

    Raises ValueError.
    """
    if isinstance(value, str) and value not in AUGMENTS:
        found: dict[str, Any] = {name: json.loads(text) for name, text in AUGMENT.findall(value)}
        value = found if _shown(found) == value.replace(",", "") else value
    if isinstance(value, str) and value in AUGMENTS:
        return value
    if not isinstance(value, dict) or not value:
        raise ValueError(f"augment: {short(value)} is not allowed; write standard, none or {{flip: false, crop: 4}}")
    for name, given in value.items():
        if name not in ("crop", "flip"):
            raise ValueError(f"augment has no setting {short(name)}; there are crop and flip")
        if name == "flip" and type(given) is not bool:
            raise ValueError(f"augment: flip: {short(given)} is not allowed; write true or false")
        if name == "crop" and (type(given) is not int or not 0 <= given <= MOST_CROP):
            raise ValueError(
                f"augment: crop: {short(given)} is not allowed; write the padding in pixels, from 0 to {MOST_CROP}"
            )
    return "none" if value == {"crop": 0, "flip": False} else _shown(value)


def _shown(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={json.dumps(value)}" for name, value in sorted(settings.items()))


def matched_recipe(epochs: object) -> str:
    """Return the recipe of `match_cost(RECIPE)`, or nothing for any other value of `epochs`."""
    found = re.fullmatch(r"\s*match_cost\(([^()]*)\)\s*", epochs) if isinstance(epochs, str) else None
    return found[1].strip() if found else ""


def as_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return protocol fields as written, `epochs: match_cost(RECIPE)` turned into the field that it stands for, and the
    settings of `augment` into one text.
    """
    fields = dict(values)
    if recipe := matched_recipe(fields.get("epochs")):
        del fields["epochs"]
        fields["match_cost"] = recipe
    if isinstance(fields.get("augment"), dict):
        with contextlib.suppress(ValueError):  # said when the protocol is made
            fields["augment"] = read_augment(fields["augment"])
    return fields


def make_protocol(preset: str, overrides: Mapping[str, Any]) -> Protocol:
    """Return a preset with overrides.

    Where only the number of epochs is overridden, milestones and warm-up keep their place relative to it.
    Raises ValueError for an unknown preset, pydantic's ValidationError for a wrong field.
    """
    if preset not in PRESETS:
        raise ValueError(f"{short(preset)} is no preset; choose from {', '.join(PRESETS)}{nearest(preset, PRESETS)}")
    fields = dict(PRESETS[preset])
    epochs = overrides.get("epochs")
    if type(epochs) is int and epochs > 0:
        usual = Protocol(**fields)
        fields["milestones"] = tuple(m * epochs / usual.epochs for m in usual.milestones)
        fields["warmup"] = usual.warmup * epochs / usual.epochs
    return Protocol(**{**fields, **overrides})


def split_preset(value: object) -> tuple[str, dict[str, Any]]:
    """Return a preset's name and the fields that a value of the axis `protocol` lays over it. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"{short(value)} is not allowed; write a preset's name or {{preset: NAME, field: value}}")
    preset = value.get("preset", "tost")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(
            f"{short(preset)} is no preset; choose from {', '.join(PRESETS)}{nearest(str(preset), PRESETS)}"
        )
    return preset, as_fields({k: v for k, v in value.items() if k != "preset"})
