"""Claims judged: one effect over all cells of each, seeds as the random unit, against the registered margin."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.declared import Claim
from harness.planfile import SavedPlan
from harness.registry import UNSAID, Registered, registered
from harness.report.frame import Frame, Line
from harness.report.metrics import metric
from harness.report.pairing import Pair, pairs
from harness.report.stats import Effect, effect, sign_flip_p, verdict
from harness.store import Store, digest

UNDECIDED = "undecided"

Differences = Mapping[tuple[str, str], tuple[float, Pair]]
"""(cell, seed) -> difference, and what it is of."""


@dataclass
class Judged:
    """What can be said of a claim now."""

    claim: Registered
    first: str
    second: str
    asked: Sequence[Pair]
    """Its pairs, of the registered seeds."""
    found: Effect | None = None
    """The effect in its analysis."""
    verdict: str = ""
    """Empty as long as it is not to be judged."""
    used: Differences = field(default_factory=dict)
    changed: bool = False
    """Whether the results are others now than in the analysis."""
    remarks: list[str] = field(default_factory=list)

    @property
    def exploratory(self) -> bool:
        """Return whether some of its cells had a result before it was registered."""
        return bool(self.claim.record.get("results"))


def judge(saved: SavedPlan, lines: Sequence[Line], store: Store) -> list[Judged]:
    """Judge a sweep's claims that may be judged, once: the analysis is kept. `lines`: one a cell, in order."""
    return [_judge(one, [lines[n] for n in saved.declared.members[one.claim.name]]) for one in registered(saved, store)]


def _judge(one: Registered, lines: Sequence[Line]) -> Judged:
    claim = one.claim
    first, second = map(str, claim.compare[claim.axis])
    found = pairs(Frame.of(lines), {claim.axis: second}, lines)
    every = [found[id(line)] for line in lines if id(line) in found and line.axis(claim.axis) == first]
    judged = Judged(one, first, second, [pair for pair in every if pair.line.axis("seed") in one.seeds])
    if not one.record:
        judged.remarks.append("not registered: the sweep command registers it before it starts anything")
        return judged
    if judged.exploratory:
        before, cells = one.record["results"], one.record.get("cells")
        judged.remarks.append(f"exploratory: {before} of its {cells} cells had a result before it was registered")
    ready = _ready(judged.asked, claim.value)
    if one.analysis or set(one.seeds) <= ready:
        _analyse(judged)
    if not judged.verdict:
        judged.remarks.append(f"to be judged at {claim.seeds} seeds ({len(ready)} are done)")
    _say_more(judged, every)
    return judged


def _differences(found: Sequence[Pair], claim: Claim) -> dict[tuple[str, str], tuple[float, Pair]]:
    read, place = metric(claim.value).read, _placer(claim, found)
    differences = {}
    for pair in found:
        own, base = read(pair.line), read(pair.base)
        if pair.comparable and own is not None and base is not None:
            differences[place(pair.line)] = (own - base, pair)
    return differences


def _placer(claim: Claim, found: Sequence[Pair]) -> Callable[[Line], tuple[str, str]]:
    """Return a function from a line to its cell and seed; a ticket's seed tells cells apart where it is an axis."""
    tickets = any(pair.line.axis("ticket_seed") != pair.line.axis("seed") for pair in found)
    unsaid = {claim.axis, *UNSAID} - ({"ticket_seed"} if tickets else set())

    def place(line: Line) -> tuple[str, str]:
        shown = [label for axis, label in line.labels.items() if axis not in unsaid]
        return " ".join(shown), line.axis("seed")

    return place


def _lost(pair: Pair, value: str) -> bool:
    """Return whether a pair will never have a difference."""
    read = metric(value).read
    if any(line.given_up for line in (pair.line, pair.base)):
        return True
    measured = pair.line.measured and pair.base.measured
    return bool(measured) and (not pair.comparable or read(pair.line) is None or read(pair.base) is None)


def _ready(found: Sequence[Pair], value: str) -> set[str]:
    """Return the seeds all of whose pairs are measured, or lost for good."""
    waiting = {
        pair.line.axis("seed")
        for pair in found
        if not (pair.line.measured and pair.base.measured) and not _lost(pair, value)
    }
    return {pair.line.axis("seed") for pair in found} - waiting


def _analyse(judged: Judged) -> None:
    """Judge by the pairs of all registered seeds; the analysis that was made first is what stands."""
    claim = judged.claim.claim
    used = _differences(judged.asked, claim)
    place = _placer(claim, judged.asked)
    now = effect({at: difference for at, (difference, _) in used.items()}) if used else None
    lines = {line.key: line for _, pair in used.values() for line in (pair.line, pair.base)}
    data = digest(sorted(f"{key} {m.edition} {m.sha256}" for key, line in lines.items() if (m := line.measured)))
    kept = judged.claim.analysis
    if kept is None:
        if now is None or {place(pair.line)[0] for pair in judged.asked} != {cell for cell, _ in used}:
            judged.remarks.append("not judged: no pair of one of its cells can be compared")
            return
        kept = {"data": data, "verdict": _verdict(judged, now), "effect": vars(now)}
        try:
            kept = judged.claim.keep(kept)
        except OSError as error:
            judged.remarks.append(f"its analysis could not be kept in the store ({error.strerror})")
    judged.used, judged.found, judged.verdict = used, Effect(**kept["effect"]), str(kept["verdict"])
    judged.changed = kept["data"] != data
    if judged.changed:
        today = _shown(now) if now else "nothing"
        judged.remarks.append(f"its results have changed since its analysis, which stands; now they say {today}")


def _verdict(judged: Judged, found: Effect) -> str:
    """Return the verdict on an effect; who diverges more than the other is neither better nor equivalent."""
    said = verdict(found, judged.claim.claim.margin)
    own, its = _diverged(judged)
    favoured = {"better", "equivalent"} if own > its else {"worse", "equivalent"} if its > own else set()
    return UNDECIDED if said in favoured else said


def _diverged(judged: Judged) -> tuple[int, int]:
    """Return in how many pairs the first diverged and the second did not, and the other way about."""
    counts = Counter(("diverged" in pair.line.reason, "diverged" in pair.base.reason) for pair in judged.asked)
    return counts[True, False], counts[False, True]


def _shown(found: Effect) -> str:
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _say_more(judged: Judged, every: Sequence[Pair]) -> None:
    claim, found = judged.claim.claim, judged.found
    if lost := sum(_lost(pair, claim.value) for pair in judged.asked):
        judged.remarks.append(f"{lost} of {len(judged.asked)} pairs have no difference (failed, or not comparable)")
    own, its = _diverged(judged)
    if own != its:
        more, less = (judged.first, judged.second) if own > its else (judged.second, judged.first)
        kept = found is not None and judged.verdict != verdict(found, claim.margin)
        what = f"so that {verdict(found, claim.margin)} is not said" if found and kept else "which counts against it"
        judged.remarks.append(f"{more} diverged in {abs(own - its)} more pairs than {less}, {what}")
    for said, number in Counter(said for pair in judged.asked for said in pair.others).most_common(3):
        judged.remarks.append(f"they differ in {said} too ({number} pairs)")
    if judged.asked and len({pair.line.axis("ticket_seed") for pair in judged.asked}) < len(judged.claim.seeds):
        judged.remarks.append("several seeds share a ticket: what is told is the noise of training, not of tickets")
    if found is None or judged.changed:
        return
    cells: dict[str, list[float]] = defaultdict(list)
    for (cell, _), (difference, _) in judged.used.items():
        cells[cell].append(difference)
    means = sorted(statistics.fmean(values) for values in cells.values())
    if len(means) > 1:
        below = sum(mean < 0 for mean in means)
        judged.remarks.append(f"cells from {means[0]:+.2f} to {means[-1]:+.2f}, {below} of {len(means)} below 0")
    seeds = defaultdict(list)
    for (_, seed), (difference, _) in judged.used.items():
        seeds[seed].append(difference)
    if (p := sign_flip_p([statistics.fmean(values) for values in seeds.values()])) is not None:
        judged.remarks.append(f"p of no difference by flipping the signs of the seeds' means: {p:.2g}")
    if not found.known:
        judged.remarks.append("no interval: a cell has fewer than two pairs, or all seeds are equal")
    elif judged.verdict == "equivalent" and found.low * found.high > 0:
        judged.remarks.append("it differs from 0, but by less than the margin")
    added = [pair for pair in every if pair.line.axis("seed") not in judged.claim.seeds]
    values = {place: d for place, (d, _) in _differences([*judged.asked, *added], claim).items()}
    if len(values) > len(_differences(judged.asked, claim)):
        later = effect(values)
        judged.remarks.append(f"with seeds added later, which is not the registered test: {_shown(later)} ({later.n})")
