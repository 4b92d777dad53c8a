"""The values of a grid's axes: how they are written, read, named and compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.catalog import DATASETS
from harness.errors import short, usable_path
from harness.plugins import Plugin, find_plugin, installed_plugins
from tost.catalog import MASKS, MODELS, PARTS, RECIPES, Entry, Value, nearest, settings

DENSE = "dense"
IMP_LEVELS = 16
MOST_VALUES = 1_000_000


@dataclass(frozen=True)
class Choice:
    """A named method with the settings that differ from its defaults."""

    name: str
    given: tuple[tuple[str, Value], ...] = ()
    folder: str = ""

    @cached_property
    def label(self) -> str:
        """Return the name as a table prints it."""
        shown = f"{self.name}:{Path(self.folder).name}" if self.name == "imagefolder" else self.name
        return shown + (f"({', '.join(f'{k}={v}' for k, v in self.given)})" if self.given else "")


@dataclass(frozen=True)
class Sparsity:
    """The share of weights removed: an exact density, or a level of the lottery-ticket ladder."""

    density: Fraction = Fraction(1)
    level: int = 0

    @cached_property
    def share(self) -> float:
        """Return the nominal share removed, for sorting and conditions."""
        return float(1 - (Fraction(4, 5) ** self.level if self.level else self.density))

    @cached_property
    def label(self) -> str:
        """Return the percentage as a table prints it."""
        return f"{100 * self.share:.2f}%" if self.level else f"{100 * self.share:.10g}%"

    @property
    def canonical(self) -> dict[str, Any]:
        """Return what a key holds."""
        return {"imp": self.level} if self.level else {"density": str(self.density)}

    @property
    def chain_level(self) -> int:
        """Return the level of the last chain network above this sparsity, the one it is cut from."""
        if self.level:
            return self.level - 1
        level = 0
        while Fraction(4, 5) ** (level + 1) > self.density:
            level += 1
        return level


@dataclass(frozen=True)
class Recipe:
    """A set of recipe parts with their settings, in catalog order."""

    text: str
    parts: tuple[Choice, ...] = ()

    @cached_property
    def label(self) -> str:
        """Return the recipe as a table prints it."""
        given = [f"{p.name}.{k}={v}" if len(self.parts) > 1 else f"{k}={v}" for p in self.parts for k, v in p.given]
        return self.text + (f"({', '.join(given)})" if given else "")


class Names:
    """All names that an axis may use: the catalog's, the user's own, and those of installed plug-ins."""

    def __init__(self, use: Mapping[str, str], folder: Path) -> None:
        self.use, self.folder = dict(use), folder
        self.plugins: dict[tuple[str, str], Plugin] = {}

    def entry(self, kind: str, name: str) -> Entry:
        """Return the table line of a name. Raises ValueError naming what is allowed, and the nearest name."""
        table: Mapping[str, Entry] = {"dataset": DATASETS, "arch": MODELS, "mask": MASKS, "part": PARTS}[kind]
        if name in table:
            return table[name]
        if (kind, name) not in self.plugins:
            reference = self.use.get(name) or installed_plugins(f"tost.{kind}s").get(name)
            if reference is None:
                known = [*table, *([DENSE] if kind == "mask" else []), *self.use]
                said = {"dataset": "data set", "arch": "architecture", "mask": "mask method", "part": "recipe part"}[
                    kind
                ]
                raise ValueError(f"{short(name)} is no {said}; choose from {', '.join(known)}{nearest(name, known)}")
            plugin = find_plugin(reference, self.folder)
            plugin.check(kind)
            self.plugins[kind, name] = plugin
        return self.plugins[kind, name]


def _single(value: object) -> tuple[str, Mapping[str, Any]]:
    """Split `name` or `{name: {knob: value}}`."""
    if isinstance(value, str):
        return value, {}
    if isinstance(value, dict) and len(value) == 1:
        name, given = next(iter(value.items()))
        if given is None or isinstance(given, dict):
            return str(name), given or {}
    raise ValueError(f"{short(value)} is not allowed; write a name or {{name: {{knob: value}}}}")


def read_choice(kind: str, value: object, names: Names) -> Choice:
    """Read a value of the axes dataset, arch or mask."""
    name, given = _single(value)
    folder = ""
    if kind == "dataset" and name.startswith("imagefolder"):
        name, _, place = name.partition(":")
        if not place:
            raise ValueError("write imagefolder:PATH with the folder that holds train/ and test/")
        folder = str(usable_path(place, names.folder))
    if kind == "mask" and name == DENSE:
        if given:
            raise ValueError("dense has no knobs")
        return Choice(DENSE)
    entry = names.entry(kind, name)
    if isinstance(entry, Plugin) and kind == "dataset" and "folder" in entry.parameters:
        if "folder" not in given:
            raise ValueError(f"{name} reads a folder; write {{{name}: {{folder: PATH}}}}")
        folder = str(usable_path(str(given["folder"]), names.folder))
        given = {k: v for k, v in given.items() if k != "folder"}
    try:
        full = settings(entry, given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return Choice(name, tuple((k, v) for k, v in full.items() if v != entry.knobs[k].default), folder)


def read_recipe(value: object, names: Names) -> Recipe:
    """Read a recipe: a name, parts joined by +, or a name less parts (`tost-gsw`), with knobs where wanted."""
    text, given = _single(value)
    words = re.findall(r"([-+]?)\s*(\w+)", text)
    if not re.fullmatch(r"\s*\w+(\s*[-+]\s*\w+)*\s*", text) or len(words) > 64:
        raise ValueError(
            f"{short(text)} is no recipe; write a name, parts joined by + (gsw+ls), or less a part (tost-gsw)"
        )
    known = [*RECIPES, *dict.fromkeys([*PARTS, *(p for parts in RECIPES.values() for p in parts)]), *names.use]
    chosen: set[str] = set()
    for sign, word in words:
        if word not in known:
            raise ValueError(
                f"{short(word)} is no recipe or part; choose from {', '.join(known)}{nearest(word, known)}"
            )
        parts = set(RECIPES.get(word, (word,)))
        if sign == "-" and not parts <= chosen:
            raise ValueError(f"{short(text)} takes away {word}, which is not in it")
        if sign == "+" and parts & chosen:
            raise ValueError(f"{short(text)} has {word} twice")
        chosen = chosen - parts if sign == "-" else chosen | parts
    order = [part for part in known if part in chosen]
    missing = [part for part in order if part not in PARTS and part not in names.use]
    if missing:
        raise ValueError(f"{short(text)} needs the parts {', '.join(missing)}, which this version does not have")
    return Recipe(_recipe_name(words, order, known), _part_choices(order, given, text, names))


def _recipe_name(words: Sequence[tuple[str, str]], order: Sequence[str], known: Sequence[str]) -> str:
    """Return one name for one set of parts, however it was written."""
    first = words[0][1]
    if not order or first not in RECIPES or first == "default":
        return "+".join(order) or "default"
    base = RECIPES[first]
    less = [f"-{part}" for part in known if part in base and part not in order]
    return "".join([first, *less, *(f"+{part}" for part in order if part not in base)])


def _part_choices(order: Sequence[str], given: Mapping[str, Any], text: str, names: Names) -> tuple[Choice, ...]:
    """Read the knobs of a recipe's parts: directly under a recipe of one part, by part otherwise."""
    nested = {order[0]: given} if len(order) == 1 and set(given) != set(order) else given
    for part in nested:
        if part not in order:
            has = ", ".join(order) or "none"
            raise ValueError(f"{short(part)} is no part of {short(text)}, which has {has}{nearest(str(part), order)}")
    choices = []
    for part in order:
        knobs = nested.get(part)
        if knobs is not None and not isinstance(knobs, dict):
            raise ValueError(f"{part}: write its knobs as {{knob: value}}")
        choices.append(read_choice("part", {part: knobs or {}}, names))
    return tuple(choices)


def read_sparsity(value: object) -> Sparsity:
    """Read 0.9, 90%, imp:12, or a ladder level by its rounded percentage (20.00 ... 97.19)."""
    text = str(value).strip()
    hint = f"{short(value)} is no sparsity; write a share below 1 (0.9), a percentage (90%), or a ladder level (imp:12)"
    if isinstance(value, bool) or len(text) > 30:
        raise ValueError(hint)
    if match := re.fullmatch(r"imp:(\d+)", text):
        level = int(match[1])
        if not 1 <= level <= 60:
            raise ValueError(f"{short(text)} is not allowed; ladder levels run from imp:1 to imp:60")
        return Sparsity(level=level)
    number = text.removesuffix("%").strip()
    if not re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,2})?", number):
        raise ValueError(hint)
    share = Fraction(number) / (100 if text.endswith("%") else 1)
    if not 0 <= share < 1:
        raise ValueError(hint)
    for level in range(1, IMP_LEVELS + 1):
        if round(float(share) * 100, 2) == round(100 * (1 - 0.8**level), 2) and share != 0:
            return Sparsity(level=level)
    return Sparsity(1 - share)


def read_whole(value: object) -> int:
    """Read a seed."""
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{short(value)} is not allowed; write whole numbers from 0 on, or a range such as 0..4")
    return value


def spread(value: object) -> list[tuple[Any, int | None]] | range:
    """Return the values of an axis, each with its place in the file's list: a list's items, `a..b` as a range.

    Raises ValueError for an empty axis and for one of over a million values.
    """
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(-?\d{1,18})\s*\.\.\s*(-?\d{1,18})\s*", value)):
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise ValueError(f"{value!r} is an empty range; it runs from the smaller to the larger number")
        if last - first >= MOST_VALUES:
            raise ValueError(f"{value!r} has {last - first + 1:,} values; at most {MOST_VALUES:,} are allowed")
        return range(first, last + 1)
    if value is None or (isinstance(value, list) and not value):
        raise ValueError("is empty; give at least one value, or leave the axis out")
    flat: list[tuple[Any, int | None]] = []
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        inner = spread(item) if isinstance(item, str) and ".." in item and isinstance(value, list) else [(item, None)]
        if len(flat) + len(inner) > MOST_VALUES:
            raise ValueError(f"has over {MOST_VALUES:,} values")
        place = index if isinstance(value, list) else None
        flat.extend((v, place) for v in inner) if isinstance(inner, range) else flat.append((item, place))
    return flat
