"""Recipes: sets of parts by name, written with + and -, and whole sets of recipes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.errors import short
from harness.names import Choice, Names, read_choice, single
from harness.offered import offers
from tost.catalog import PARTS, RECIPES, nearest

SETS = ("subsets", "leave-one-out", "cumulative")


@dataclass(frozen=True)
class Recipe:
    """A set of recipe parts with their settings, in catalog order."""

    text: str
    parts: tuple[Choice, ...] = ()
    quiet: frozenset[str] = frozenset()
    """Knobs, as `part.knob`, that the label leaves out: those that a search has set."""

    @cached_property
    def label(self) -> str:
        """Return the recipe as a table prints it."""
        shown = [(p.name, k, v) for p in self.parts for k, v in p.given if f"{p.name}.{k}" not in self.quiet]
        given = [f"{part}.{k}={v}" if len(self.parts) > 1 else f"{k}={v}" for part, k, v in shown]
        return self.text + (f"({', '.join(given)})" if given else "")


def read_recipe(value: object, names: Names) -> Recipe:
    """Read a recipe: a name, parts joined by +, or a name less parts (`tost-gsw`), with knobs where wanted."""
    text, given = single(value)
    words = re.findall(r"([-+]?)\s*(\w+)", text)
    if not re.fullmatch(r"\s*\w+(\s*[-+]\s*\w+)*\s*", text) or len(words) > 64:
        raise ValueError(
            f"{short(text)} is no recipe; write a name, parts joined by + (gsw+ls), or less a part (tost-gsw)"
        )
    known = [*RECIPES, *PARTS, *names.use]
    if any(word not in known for _, word in words):
        known += [name for name in offers("part") if name not in known]
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
    return Recipe(_recipe_name(order, known), _part_choices(order, given, text, names))


def recipe_set(text: str, names: Names) -> list[str]:
    """Return the recipes of `subsets(R)`, `leave-one-out(R)` or `cumulative(R)`; of any other text, itself.

    `subsets`: every combination of R's parts, none and all among them; `leave-one-out`: R without each part in turn;
    `cumulative`: `default`, then one part more at a time, up to R.
    """
    match = re.fullmatch(r"\s*([a-z-]+)\s*\((.*)\)\s*", text, re.DOTALL)
    if match is None:
        return [text]
    if match[1] not in SETS:
        raise ValueError(
            f"{short(match[1])} is no set of recipes; choose from {', '.join(SETS)}{nearest(match[1], SETS)}"
        )
    whole = read_recipe(match[2].strip(), names)
    parts = [part.name for part in whole.parts]
    if len(parts) > 10:
        raise ValueError(f"{short(text)}: over ten parts")
    if match[1] == "leave-one-out":
        chosen = [[p for p in parts if p != left] for left in parts]
    elif match[1] == "cumulative":
        chosen = [parts[:count] for count in range(len(parts) + 1)]
    else:
        chosen = [list(c) for size in range(len(parts) + 1) for c in itertools.combinations(parts, size)]
    return ["+".join(parts) or "default" for parts in chosen]


def _recipe_name(order: Sequence[str], known: Sequence[str]) -> str:
    """Return one name for one set of parts, however it was written: tost, tost-gsw, tost+mine, gsw+ls."""
    for recipe, base in RECIPES.items():
        less = [part for part in known if part in base and part not in order]
        if len(base) > 2 and len(less) <= 1:
            return "".join(
                [recipe, *(f"-{part}" for part in less), *(f"+{part}" for part in order if part not in base)]
            )
    return "+".join(order) or "default"


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
