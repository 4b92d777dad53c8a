"""Claims judged: one effect over all cells of each, seeds as the random unit, against the registered margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.planfile import SavedPlan
from harness.registry import UNSAID, Registered, registered
from harness.report.frame import Frame, Line
from harness.report.metrics import metric
from harness.report.pairing import Pair, pairs
from harness.report.stats import (
    Effect,
    decidable_spread,
    effect,
    look_level,
    seeds_needed,
    verdict,
)
from harness.store import Store

LEVEL = 0.95

Differences = Mapping[tuple[str, str], tuple[float, Pair]]
"""(cell, seed) -> difference, and what it is of."""


@dataclass
class Judged:
    """What can be said of a claim now."""

    claim: Registered
    first: str
    second: str
    wanted: int
    """Pairs that the claim has among its registered seeds."""
    lost: int = 0
    """Those of them that will never have a difference: failed, or not comparable."""
    found: Effect | None = None
    verdict: str = ""
    """Empty as long as it is not to be judged."""
    level: float = LEVEL
    look: int = 0
    used: Differences = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def judge(saved: SavedPlan, lines: Sequence[Line], store: Store) -> list[Judged]:
    """Judge a sweep's claims that may be judged: each is a look, which is noted. `lines`: one a cell, in order."""
    return [_judge(one, [lines[n] for n in saved.declared.members[one.claim.name]]) for one in registered(saved, store)]


def _judge(one: Registered, lines: Sequence[Line]) -> Judged:
    claim = one.claim
    first, second = map(str, claim.compare[claim.axis])
    seeds = set(one.seeds)
    found = pairs(Frame.of(lines), {claim.axis: second}, lines)
    every = [found[id(line)] for line in lines if id(line) in found and line.axis(claim.axis) == first]
    asked = [pair for pair in every if pair.line.axis("seed") in seeds]
    judged = Judged(one, first, second, len(asked))
    if not one.record:
        judged.remarks.append("not registered: the sweep command registers it before it starts anything")
        return judged
    late = int(one.record.get("results", 0))
    if late:
        judged.remarks.append(f"registered when {late} of its {one.record.get('cells')} cells had a result already")
    differences = _differences(asked, claim.value)
    judged.lost = sum(_lost(pair, claim.value) for pair in asked)
    ready = _ready(asked, claim.value)
    if claim.looks == "once" and ready == seeds:
        _look(judged, differences)
    elif claim.looks == "sequential" and len(ready) > 1:
        _look(judged, {place: said for place, said in differences.items() if place[1] in ready}, sequential=True)
    else:
        judged.remarks.append(_before(judged, ready))
    _say_more(judged, every, seeds)
    return judged


def _differences(found: Sequence[Pair], value: str) -> dict[tuple[str, str], tuple[float, Pair]]:
    read = metric(value).read
    differences = {}
    for pair in found:
        own, base = read(pair.line), read(pair.base)
        if pair.comparable and own is not None and base is not None:
            differences[_cell(pair.line), pair.line.axis("seed")] = (own - base, pair)
    return differences


def _cell(line: Line) -> str:
    return " ".join(value for axis, value in line.labels.items() if axis not in UNSAID)


def _lost(pair: Pair, value: str) -> bool:
    """Return whether a pair will never have a difference."""
    read = metric(value).read
    if any(line.given_up for line in (pair.line, pair.base)):
        return True
    measured = pair.line.measured and pair.base.measured
    return bool(measured) and (not pair.comparable or read(pair.line) is None or read(pair.base) is None)


def _ready(found: Sequence[Pair], value: str) -> set[str]:
    """Return the seeds all of whose pairs are measured, or lost for good."""
    open_seeds = {
        pair.line.axis("seed")
        for pair in found
        if not (pair.line.measured and pair.base.measured) and not _lost(pair, value)
    }
    return {pair.line.axis("seed") for pair in found} - open_seeds


def _look(judged: Judged, used: Differences, sequential: bool = False) -> None:
    """Judge by some differences, and note the look."""
    if not used:
        judged.remarks.append("no pair of its cells can be compared")
        return
    one = judged.claim
    lines = {line.key: line for _, pair in used.values() for line in (pair.line, pair.base)}
    data = sorted(
        f"{key} {line.measured.edition} {line.measured.sha256}" for key, line in lines.items() if line.measured
    )
    number = one.number_of(data)
    judged.level = look_level(number, LEVEL) if sequential else LEVEL
    judged.used = used
    judged.found = effect({place: difference for place, (difference, _) in used.items()}, judged.level)
    judged.verdict = verdict(judged.found, one.claim.margin)
    said = {"mean": judged.found.mean, "seeds": judged.found.n, "level": judged.level, "verdict": judged.verdict}
    try:
        judged.look = one.look(data, said)
    except OSError as error:
        judged.look = number
        judged.remarks.append(f"this look could not be noted in the store ({error.strerror})")
    if not sequential and judged.look > 1:
        judged.remarks.append(
            f"look {judged.look}: its results were not the same at the first look, so its error is not 5 %"
        )
    decided = [look for look in one.looks()[: judged.look] if look.get("verdict") != "undecided"]
    if sequential and decided and judged.verdict != decided[0]["verdict"]:
        judged.remarks.append(f"decided as {decided[0]['verdict']} at an earlier look, which stands")


def _before(judged: Judged, ready: set[str]) -> str:
    """Say, before anything is looked at, what the planned seeds will be able to decide."""
    claim = judged.claim.claim
    most = decidable_spread(claim.seeds, claim.margin)
    return (
        f"not judged before all {claim.seeds} seeds are done ({len(ready)} are); they decide it, whatever the effect, "
        f"if the standard deviation between seeds is at most {most:.2g}"
    )


def _say_more(judged: Judged, every: Sequence[Pair], seeds: set[str]) -> None:
    claim, found = judged.claim.claim, judged.found
    if judged.lost:
        judged.remarks.append(f"{judged.lost} of {judged.wanted} pairs have no difference (failed, or not comparable)")
    if found is None:
        return
    if judged.verdict == "undecided":
        needed = seeds_needed(found.spread, claim.margin, judged.level) if found.spread == found.spread else None
        more = f"about {needed} seeds would decide" if needed else "no number of seeds up to 1,000 would surely decide"
        judged.remarks.append(
            f"with the spread seen ({found.spread:.2g}) {more}; to add them is to register another claim"
        )
    added = [pair for pair in every if pair.line.axis("seed") not in seeds]
    values = {place: d for place, (d, _) in _differences(every, claim.value).items()}
    if added and claim.looks == "once" and len(values) > len(judged.used):
        later = effect(values, LEVEL)
        judged.remarks.append(
            f"with {later.n - found.n} seeds added after that look: {later.mean:+.2f} "
            f"[{later.low:+.2f}, {later.high:+.2f}], which is not the registered test"
        )
