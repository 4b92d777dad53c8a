"""What the library offers: a table per kind, of lazy import paths, so that names are checked without torch."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Value = str | int | float | bool


@dataclass(frozen=True)
class Knob:
    """One setting of a method: its default, and what else is allowed (some choices, or a range, bounds included)."""

    default: Value
    choices: tuple[Value, ...] = ()
    low: float = float("-inf")
    high: float = float("inf")

    def check(self, value: object) -> Value:
        """Return the value, or raise ValueError that says what is allowed."""
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"{_short(value)} is not allowed; choose from {', '.join(map(str, self.choices))}")
            return value
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{_short(value)} is not {_article(kind)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value!r} is not a finite number")
        if isinstance(value, int | float) and not self.low <= value <= self.high:
            raise ValueError(f"{value!r} lies outside {self.low:g} .. {self.high:g}")
        return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:56] + " ..."


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]


@dataclass(frozen=True)
class Entry:
    """A line of a table. `version` is raised whenever the same settings would give another result."""

    path: str
    version: int = 1
    knobs: Mapping[str, Knob] = field(default_factory=dict)


@dataclass(frozen=True)
class Model(Entry):
    """A network: `build(classes, channels) -> nn.Module`; `halvings` counts how often it halves its input's height."""

    halvings: int = 0


@dataclass(frozen=True)
class MaskMethod(Entry):
    """A score, and what is composed around it.

    `chain`: the score is read off a network trained with the previous mask of the lottery-ticket chain.
    """

    chain: bool = False


@dataclass(frozen=True)
class Part(Entry):
    """A recipe part: a class with attach, step and detach (see tost.recipe)."""


BN_MODE = Knob("eval", choices=("eval", "train"))
PER_CLASS = Knob(10, low=1, high=100_000)
SCOPE = Knob("global", choices=("global", "layer"))
WINDOW = Knob("default", choices=("default", "early", "permanent"))

MODELS: Mapping[str, Model] = {
    "resnet18": Model("tost.models.resnet:resnet18", halvings=3),
    "resnet20": Model("tost.models.resnet:resnet20", halvings=2),
}

MASKS: Mapping[str, MaskMethod] = {
    "random": MaskMethod("tost.masks.scores:random", knobs={"scope": SCOPE}),
    "magnitude": MaskMethod("tost.masks.scores:magnitude", knobs={"scope": SCOPE}),
    "snip": MaskMethod("tost.masks.scores:snip", knobs={"bn": BN_MODE, "per_class": PER_CLASS, "scope": SCOPE}),
    "synflow": MaskMethod("tost.masks.scores:synflow", knobs={"steps": Knob(100, low=1, high=10_000)}),
    "lth": MaskMethod("tost.masks.scores:magnitude", chain=True),
}

PARTS: Mapping[str, Part] = {
    "gsw": Part(
        "tost.recipe.soft_activation:SoftActivation",
        knobs={
            "shape": Knob("swish", choices=("swish", "mish")),
            "b0": Knob(1.0, low=1e-3, high=1e3),
            "b1": Knob(100.0, low=1e-3, high=1e5),
            "window": WINDOW,
        },
    ),
    "ls": Part(
        "tost.recipe.label_smoothing:LabelSmoothing",
        knobs={"alpha": Knob(0.1, low=0.0, high=1.0), "convention": Knob("authors", choices=("authors", "torch"))},
    ),
}

RECIPES: Mapping[str, tuple[str, ...]] = {"default": (), "tost": ("gsw", "gsk", "lrsi", "ls")}


def resolve(path: str) -> Any:
    """Import what a table's `module:attribute` names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the known name most like the given one, or nothing."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def settings(entry: Entry, given: Mapping[str, Any]) -> dict[str, Value]:
    """Return every knob of an entry, with the given values in place of the defaults.

    Raises ValueError for an unknown knob or a value that is not allowed.
    """
    for name in given:
        if name not in entry.knobs:
            raise ValueError(
                f"{name!r} is not a knob; it has {', '.join(entry.knobs) or 'none'}" + nearest(name, entry.knobs)
            )
    values: dict[str, Value] = {}
    for name, knob in entry.knobs.items():
        try:
            values[name] = knob.check(given.get(name, knob.default))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return values
