"""Judged claims as a table, with all that must be said of them below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.planfile import SavedPlan
from harness.registry import replaced
from harness.report.claims import Judged
from harness.report.grids import Entry, Grid
from harness.report.stats import effect_p, holm
from harness.store import Store

COLUMNS = ("difference", "margin", "verdict", "registered")


def as_grid(judged: Sequence[Judged], before: Sequence[str] = ()) -> Grid:
    """Return the claims as a table; `before` tells of claims that were registered and are no more."""
    grid = Grid("claims", ("claim",), ("",))
    for name, one in zip(_names(judged), judged, strict=True):
        claim, record = one.claim.claim, one.claim.record
        effect = _entry(one)
        label = one.verdict + (" (exploratory)" if one.exploratory else "")
        words = replace(effect, words=label) if one.found else Entry(words="not judged")
        said = (
            effect,
            Entry(words=f"±{claim.margin:g}"),
            words,
            Entry(words=f"{record['date'][:10]} {one.claim.hash}" if record else "no"),
        )
        grid.entries.update({((name,), (column,)): e for column, e in zip(COLUMNS, said, strict=True)})
    grid.caption = " ".join([*_sentences(judged), *before])
    return grid


def _names(judged: Sequence[Judged]) -> list[str]:
    """Return the names of claims, with the sweep's where claims of several sweeps have one name."""
    found = [one.claim.claim.name for one in judged]
    sweeps = [one.claim.folder.parents[1].name for one in judged]
    return [name if found.count(name) == 1 else f"{name} ({its})" for name, its in zip(found, sweeps, strict=True)]


def _entry(one: Judged) -> Entry:
    if one.found is None:
        return Entry(words="–")
    terms = tuple((cell, seed, ((p.line, 1.0), (p.base, -1.0))) for (cell, seed), (_, p) in one.used.items())
    lines = tuple(line for _, p in one.used.values() for line in (p.line, p.base))
    value = one.claim.claim.value
    used = tuple(pair for _, pair in one.used.values())
    return Entry(value=value, lines=lines, pairs=used, effect=one.found, terms=terms)


def _sentences(judged: Sequence[Judged]) -> list[str]:
    said = [
        "Claims as registered, one effect each: the mean over its cells of the difference between what is compared, "
        "seeds as the random unit (Student's t over the seeds' means; a mixed-effects model, REML, where cells have "
        "holes). Equivalent: the interval lies within the margin; better or worse: it lies on one side of 0 and is not "
        "equivalent; else undecided. The cells are those of the grid: nothing is said of others."
    ]
    names = _names(judged)
    for name, one in zip(names, judged, strict=True):
        claim = one.claim.claim
        where = f" where {claim.where}" if claim.where else ""
        head = f"{name}: {one.first} against {one.second}, {claim.value}{where}; {len(one.asked)} pairs"
        said.append("; ".join([head, *one.remarks]) + ".")
    effects = {name: one.found for name, one in zip(names, judged, strict=True) if one.found is not None}
    if len(effects) > 1:
        ps = holm([effect_p(found) for found in effects.values()])
        shown = ", ".join(f"{name} {p:.2g}" for name, p in zip(effects, ps, strict=True))
        said.append(
            f"Each verdict errs by itself at 5 %; p of no difference, adjusted for these together (Holm): {shown}."
        )
    return said


def replaced_claims(saved: SavedPlan, store: Store) -> list[str]:
    """Return what must be said of a sweep's earlier claims."""
    said = []
    for record, analyses in replaced(saved, store):
        found = [f"{analysis.get('verdict')} at {analysis.get('seeds')} seeds" for analysis in analyses]
        verdicts = ", ".join(found) or "never judged"
        name = record.get("claim", {}).get("name")
        said.append(f"{name} ({str(record.get('date'))[:10]} {record.get('hash')}): {verdicts}")
    return [f"Registered earlier, and replaced since: {'; '.join(said)}."] if said else []
