"""What the library offers: a table per kind, of lazy import paths, so that names are checked without torch."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping
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


def check_choice(setting: str, value: object, choices: tuple[Value, ...]) -> None:
    """Raise ValueError, naming the setting, for a value that is none of the choices."""
    try:
        Knob(choices[0], choices).check(value)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None


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
    """A network: `build(classes, channels, **knobs) -> nn.Module`; `halvings`: how often it halves its input's height.

    `library`: the package whose network it is, named by the knob `name`.
    """

    halvings: int = 0
    library: str = ""


@dataclass(frozen=True)
class MaskMethod(Entry):
    """A score, and what is composed around it.

    `at`: when the network is scored: `init` (before training), `trained` (a dense training), `chain` (the previous
    round of the lottery-ticket chain) or `training` (again and again while the sparse network trains). A knob of that
    name takes its place.
    """

    at: str = "init"


@dataclass(frozen=True)
class Part(Entry):
    """A recipe part: a class with attach, step and detach (see tost.recipe).

    `stage`: a function whose result the part is given, made once for all recipes with the same settings; the knobs are
    that function's. `stays`: settings of which each keeps the part's ghosts to the end of training.
    """

    stage: str = ""
    stays: Mapping[str, Value] = field(default_factory=dict)

    def keeps_ghosts(self, given: Iterable[tuple[str, Value]]) -> bool:
        """Return whether a network is tested with this part's ghosts, under the settings that are given."""
        return any(self.stays.get(knob) == value for knob, value in given)


WIDTH = {"width": Knob(1.0, low=1e-3, high=16.0)}
STEM = {"stem": Knob("original", choices=("original", "small"))}
"""`small` makes the first convolution 3x3 of stride 1 and passes by the max-pool behind it."""

MODELS: Mapping[str, Model] = {
    "resnet18": Model("tost.models.resnet:resnet18", halvings=3, knobs=WIDTH),
    "resnet34": Model("tost.models.resnet:resnet34", halvings=3, knobs=WIDTH),
    "resnet50": Model("tost.models.resnet:resnet50", halvings=3, knobs=WIDTH),
    "resnet20": Model("tost.models.resnet:resnet20", halvings=2, knobs=WIDTH),
    "resnet32": Model("tost.models.resnet:resnet32", halvings=2, knobs=WIDTH),
    "resnet56": Model("tost.models.resnet:resnet56", halvings=2, knobs=WIDTH),
    "resnet104": Model("tost.models.resnet:resnet104", halvings=2, knobs=WIDTH),
    "resnet104-9n2": Model("tost.models.resnet:resnet104_9n2", halvings=2, knobs=WIDTH),
    "resnet32x2": Model("tost.models.resnet:resnet32x2", halvings=2, knobs=WIDTH),
    "vgg16": Model("tost.models.vgg:vgg16", halvings=4, knobs=WIDTH),
    "vgg19": Model("tost.models.vgg:vgg19", halvings=4, knobs=WIDTH),
    "mobilenet": Model("tost.models.mobilenet:mobilenet", halvings=4, knobs=WIDTH),
    "mobilenetv2": Model("tost.models.mobilenet:mobilenetv2", halvings=3, knobs=WIDTH),
}

LIBRARIES: Mapping[str, Model] = {
    "torchvision": Model("tost.models.foreign:torchvision_network", halvings=5, knobs=STEM, library="torchvision"),
    "timm": Model("tost.models.foreign:timm_network", halvings=5, knobs=STEM, library="timm"),
}
"""Networks written `LIBRARY:NAME`."""

PER_CLASS = Knob(10, low=1, high=100_000)
SCOPES = ("global", "layer", "erk")
SCOPE = Knob("global", choices=SCOPES)
REWIND = Knob(0, low=0, high=100_000)
"""The epoch that tickets are rewound to; 0 is the initialisation."""
CONTROL = Knob("none", choices=("none", "shuffled", "fresh"))
"""`shuffled`: positions permuted within each layer; `fresh`: the same mask on another initialisation."""
ENGINE: Mapping[str, Knob] = {
    "at": Knob("init", choices=("init", "trained", "chain")),
    "scope": SCOPE,
    "steps": Knob(1, low=1, high=10_000),
    "rewind": REWIND,
    "control": CONTROL,
}
"""What is composed around a score, and so a knob of any user's own method."""


BN = ("eval", "train")
"""The mode of batch norm while a network is scored."""


def _bn(default: str) -> Knob:
    return Knob(default, choices=BN)


MASKS: Mapping[str, MaskMethod] = {
    "random": MaskMethod("tost.masks.scores:random", knobs={"scope": SCOPE, "control": CONTROL}),
    "erk": MaskMethod("tost.masks.scores:random", knobs={"scope": Knob("erk", choices=("erk",)), "control": CONTROL}),
    "magnitude": MaskMethod("tost.masks.scores:magnitude", knobs={"scope": SCOPE, "control": CONTROL}),
    "omp": MaskMethod(
        "tost.masks.scores:magnitude", at="trained", knobs={"scope": SCOPE, "rewind": REWIND, "control": CONTROL}
    ),
    "lth": MaskMethod(
        "tost.masks.scores:magnitude", at="chain", knobs={"scope": SCOPE, "rewind": REWIND, "control": CONTROL}
    ),
    "gmp": MaskMethod(
        "tost.masks.scores:magnitude",
        at="training",
        knobs={
            "begin": Knob(0.0, low=0.0, high=1.0),
            "end": Knob(0.5, low=0.0, high=1.0),
            "every": Knob(100, low=1, high=10**9),
            "scope": Knob("layer", choices=SCOPES),
        },
    ),
    "taylor": MaskMethod(
        "tost.masks.scores:taylor",
        knobs={
            "at": Knob("trained", choices=("init", "trained")),
            "bn": _bn("eval"),
            "per_class": PER_CLASS,
            "scope": SCOPE,
            "rewind": REWIND,
            "control": CONTROL,
        },
    ),
    "snip": MaskMethod(
        "tost.masks.scores:snip",
        knobs={"bn": _bn("eval"), "per_class": PER_CLASS, "scope": SCOPE, "control": CONTROL},
    ),
    "grasp": MaskMethod(
        "tost.masks.scores:grasp",
        knobs={
            "bn": _bn("train"),
            "temperature": Knob(200.0, low=1e-3, high=1e6),
            "per_class": PER_CLASS,
            "scope": SCOPE,
            "control": CONTROL,
        },
    ),
    "synflow": MaskMethod(
        "tost.masks.scores:synflow",
        knobs={"steps": Knob(100, low=1, high=10_000), "scope": SCOPE, "control": CONTROL},
    ),
}

SOFT_SHAPES = ("swish", "mish", "blend", "hard", "authors")
SKIP_VARIANTS = ("parameter-free", "sum", "authors")
INIT_VARIANTS = ("default", "authors-dense", "authors-masked")
CONVENTIONS = ("authors", "torch")
WINDOW = Knob("default", choices=("default", "early", "permanent"))

PARTS: Mapping[str, Part] = {
    "gsw": Part(
        "tost.recipe.soft_activation:SoftActivation",
        knobs={
            "shape": Knob("swish", choices=SOFT_SHAPES),
            "b0": Knob(1.0, low=1e-3, high=1e3),
            "b1": Knob(100.0, low=1e-3, high=1e5),
            "window": WINDOW,
        },
        stays={"shape": "authors", "window": "permanent"},
    ),
    "gsk": Part(
        "tost.recipe.ghost_skips:GhostSkips",
        knobs={
            "variant": Knob("parameter-free", choices=SKIP_VARIANTS),
            "window": WINDOW,
        },
        stays={"variant": "authors", "window": "permanent"},
    ),
    "lrsi": Part(
        "tost.recipe.rescaled_init:RescaledInit",
        stage="tost.recipe.rescaled_init:find_scales",
        knobs={
            "variant": Knob("default", choices=INIT_VARIANTS),
            "eta": Knob(0.1, low=1e-6, high=1e3),
            "gamma": Knob(1.0, low=1e-6, high=1e9),
            "lr": Knob(0.01, low=1e-6, high=10.0),
            "iterations": Knob(180, low=1, high=1_000_000),
            "clip": Knob(1.0, low=1e-6, high=1e9),
            "floor": Knob(0.01, low=0.0, high=1.0),
        },
    ),
    "ls": Part(
        "tost.recipe.label_smoothing:LabelSmoothing",
        knobs={"alpha": Knob(0.1, low=0.0, high=1.0), "convention": Knob("authors", choices=CONVENTIONS)},
    ),
}

RECIPES: Mapping[str, tuple[str, ...]] = {"default": (), "tost": ("gsw", "gsk", "lrsi", "ls")}


def resolve(path: str) -> Any:
    """Import what a table's `module:attribute` names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def asked_for(function: Callable[..., Any], offered: Mapping[str, Any], knobs: Collection[str] = ()) -> dict[str, Any]:
    """Return what a function asks for, by parameter name, of all that is offered; never its own knobs."""
    accepted = set(inspect.signature(function).parameters) - set(knobs)
    return {name: value for name, value in offered.items() if name in accepted}


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
