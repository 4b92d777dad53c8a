"""Which result is compared with which: the same cell under the baseline, and what the two shared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.declared import PLAIN
from harness.names import DENSE
from harness.report.frame import Frame, Line
from harness.report.identity import MOVING

MASKS = "mask not shared"
WEIGHTS = "initial weights not shared"
ORDER = "another order of the images"
REBUILT = "their masks are of one stage made twice with different content"


@dataclass(frozen=True)
class Pair:
    """A line, the one it is compared with, and what they do not share."""

    line: Line
    base: Line
    lacks: str = ""
    others: tuple[str, ...] = ()
    """Settings in which the two differ beside what is compared, being no axis of the grid."""

    @property
    def comparable(self) -> bool:
        """Return whether their difference says anything: parents that disagree, and other data, are never compared."""
        return self.lacks not in (ORDER, REBUILT)


def lacking(line: Line, base: Line) -> str:
    """Return what keeps two results from being paired; nothing where mask, initial weights and order agree."""
    one, other = line.identity, base.identity
    if one.order != other.order:
        return ORDER
    if one.mask == MOVING or other.mask == MOVING:
        return MASKS
    if one.mask != other.mask:
        return REBUILT if one.mask_key and one.mask_key == other.mask_key else MASKS
    return "" if one.theta0 == other.theta0 else WEIGHTS


def pairs(frame: Frame, compared: Mapping[str, str], lines: Sequence[Line] | None = None) -> dict[int, Pair]:
    """Return for every line its pair with the baseline: `compared` says which value the baseline has of some axes.

    All else agrees: the other axes and the seeds. Knobs of recipe parts are left out where recipes are compared, which
    carry them in their labels; a recipe without knobs stands for the only one of its name, or for none of several. By
    the line's id(); lines of the baseline have none.
    """
    some = frame.lines if lines is None else lines
    names = [
        axis
        for axis in dict.fromkeys([*frame.axes, *frame.varying])
        if axis not in (*compared, "world", *(("sparsity",) if compared.get("mask") == DENSE else ()))
        and not ("." in axis and "recipe" in compared)
    ]
    knob = any("." in axis for axis in compared)

    def place(line: Line, values: Mapping[str, str]) -> tuple[str, ...]:
        own = (line.facts.recipe if knob and name == "recipe" else line.axis(name) for name in names)
        return (*own, *values.values())

    at: dict[tuple[str, ...], Line] = {}
    bare: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in some:
        own = {axis: line.axis(axis) for axis in compared}
        at.setdefault(place(line, own), line)
        bare[place(line, {**own, "recipe": line.facts.recipe} if "recipe" in own else own)].append(line)
    found = {}
    for line in some:
        wanted = place(line, {axis: _wanted(line, axis, value) for axis, value in compared.items()})
        base = at.get(wanted) or (bare[wanted][0] if len(bare.get(wanted, ())) == 1 else None)
        if base is not None and base is not line:
            found[id(line)] = Pair(line, base, lacking(line, base), _others(line, base, compared))
    return found


def _others(line: Line, base: Line, compared: Mapping[str, str]) -> tuple[str, ...]:
    """Return the protocol fields in which two lines differ unasked, as `lr 0.05 and 0.1`, and unequal tuning."""
    own, its = line.facts.protocol, base.facts.protocol
    asked = {"match_cost", "milestones", "warmup"} if "epochs" in compared else set()
    found = [
        f"{name} {own.get(name)} and {its.get(name)}"
        for name in dict.fromkeys([*own, *its])
        if own.get(name) != its.get(name) and name not in compared and name not in asked
    ]
    if (line.facts.trials or 0) != (base.facts.trials or 0):
        found.append(f"trials of tuning {line.facts.trials or 0} and {base.facts.trials or 0}")
    return tuple(found)


def _wanted(line: Line, axis: str, value: str) -> str:
    return line.facts.plain_mask if (axis, value) == ("mask", PLAIN) else value
