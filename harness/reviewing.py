"""What a reviewer would miss in a sweep: one sentence each, with what to write in the file to mend it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.catalog import PRESETS
from harness.cell import Cell
from harness.differing import differing, unlike_trials
from harness.names import DENSE, SMALL, Choice
from harness.plugins import Plugin
from harness.protocol import Protocol
from harness.spec import Sweep
from harness.words import count, listed
from tost.catalog import PARTS

CHANCE = ("random", "erk")
"""Masks that look at no weight."""
ENOUGH = 3
"""Seeds below which an interval seldom tells anything."""
WIDTHS = {2: 12.7}
"""Seeds -> standard errors on either side of a 95 % t interval."""
SHORT = 20
"""Epochs below which a training is for trying things out."""
SHOWN = 3
"""Places that a remark names."""

Cells = Sequence[Cell]
Place = tuple[str, ...]


@dataclass(frozen=True)
class Remark:
    """What is missing, by a name that stays, and the sentence about it."""

    about: str
    said: str


def remarks(sweep: Sweep, cells: Cells) -> list[Remark]:
    """Return what a reviewer would miss in a sweep; of a search, which makes no table, what is unfair in it."""
    checks = {"tuning": _searched} if sweep.search else CHECKS
    return [Remark(about, said) for about, check in checks.items() for said in check(sweep, cells)]


def at(cells: Iterable[Cell], *axes: str) -> dict[Place, list[Cell]]:
    """Return cells by the labels that they have on some axes."""
    found: dict[Place, list[Cell]] = defaultdict(list)
    for cell in cells:
        found[tuple(str(cell.axis(axis)) for axis in axes)].append(cell)
    return found


def where(places: Sequence[Place], of: int) -> str:
    """Say at which of a number of places something is so; nothing where that is all of them."""
    if len(places) == of:
        return ""
    more = f" and {len(places) - SHOWN:,} more" if len(places) > SHOWN else ""
    return f" at {'; '.join(' '.join(place) for place in places[:SHOWN])}{more}"


def _labels(cells: Iterable[Cell], axis: str) -> list[str]:
    return list(dict.fromkeys(str(cell.axis(axis)) for cell in cells))


def _control(cell: Cell) -> str:
    return "small" if cell.mask.name == SMALL else str(cell.mask.get("control", "none"))


def _found(cells: Cells) -> list[Cell]:
    """Return the cells whose mask somebody had to find: not dense, at random, or a control."""
    return [c for c in cells if c.mask.name not in (DENSE, *CHANCE) and _control(c) == "none"]


def _dense(sweep: Sweep, cells: Cells) -> Iterator[str]:
    places = at(cells, "dataset", "arch")
    bare = [place for place, here in places.items() if all(cell.mask.name != DENSE for cell in here)]
    if bare:
        yield (
            f"No dense network stands beside the sparse ones{where(bare, len(places))}, so that nobody sees what "
            "sparsity costs; write also: [{mask: dense, recipe: default}]."
        )


def _seeds(sweep: Sweep, cells: Cells) -> Iterator[str]:
    axes = dict.fromkeys(name for cell in cells for name, _ in cell.extra)
    entries = at(cells, "dataset", "arch", "mask", "sparsity", "recipe", *axes)
    seeds = {place: len({cell.seed for cell in here}) for place, here in entries.items()}
    few = [place for place, number in seeds.items() if number < ENOUGH]
    if not few:
        return
    fewest = min(seeds.values())
    of = "" if len(few) == len(seeds) else f" for {len(few):,} of {count(len(seeds), 'entry')}"
    says = (
        "a number has no spread and a difference no interval"
        if fewest == 1
        else f"an interval of {fewest} reaches {WIDTHS[fewest]} standard errors to either side"
    )
    yield f"Only {count(fewest, 'seed')}{of}: {says}; write seed: 0..{ENOUGH - 1}."


def _tickets(sweep: Sweep, cells: Cells) -> Iterator[str]:
    places = at(cells, "dataset", "arch", "mask", "sparsity", "recipe")
    if any(len({c.seed for c in here}) > 1 and len({c.ticket_seed for c in here}) == 1 for here in places.values()):
        yield (
            "All seeds share one ticket, so that an interval says nothing of other tickets; leave ticket_seed out, and "
            "every seed has its own."
        )


def _random(sweep: Sweep, cells: Cells) -> Iterator[str]:
    places = at(_found(cells), "dataset", "arch")
    by_chance = {
        place
        for place, here in at(cells, "dataset", "arch").items()
        if any(cell.mask.name in CHANCE or _control(cell) == "shuffled" for cell in here)
    }
    if bare := [place for place in places if place not in by_chance]:
        masks = listed(_labels(_found(cells), "mask"), SHOWN)
        yield (
            f"No random mask stands beside {masks}{where(bare, len(places))}, so that nobody sees what choosing "
            "weights gains; add random to mask."
        )


def _default(sweep: Sweep, cells: Cells) -> Iterator[str]:
    places = at(cells, "dataset", "arch", "mask")
    bare = [place for place, here in places.items() if all(cell.recipe.parts for cell in here)]
    if bare:
        recipes = listed(_labels((cell for place in bare for cell in places[place]), "recipe"), SHOWN)
        yield (
            f"No default stands beside {recipes}{where(bare, len(places))}, so that nothing says what they gain; add "
            "default to recipe."
        )


def _differing(sweep: Sweep, cells: Cells) -> Iterator[str]:
    for found in differing(cells):
        rule = ", by a rule under when" if any(found.field in when.set for when in sweep.file.when) else ""
        one, other = found.values
        yield (
            f"{found.axis.capitalize()} {found.labels[0]} has {found.field} {one} and {found.labels[1]} {other}{rule} "
            f"({found.example}), so that their difference is also that of {found.field}; give both one value, or make "
            f"it an axis: {found.field}: [{one}, {other}]."
        )


def _tuned(sweep: Sweep, cells: Cells) -> Iterator[str]:
    for axis, (one, n), (other, m), example in unlike_trials(cells):
        yield (
            f"The settings of {axis} {one} took {count(n, 'trial')} of a search and those of {other} {m or 'none'} "
            f"({example}), so that a gain may be the search's; give both as many there (samples, baseline) and name "
            "its file under tuned."
        )


def _searched(sweep: Sweep, cells: Cells) -> Iterator[str]:
    hunt = sweep.search
    if hunt is None:
        return
    if hunt.baseline is None and all(cell.recipe.parts for cell in cells):
        yield (
            f"Only {listed(_labels(cells, 'recipe'), SHOWN)} is tuned, so that a gain over default may be the "
            "search's; leave baseline: none out, and default gets as many trials."
        )
    if len(set(hunt.samples.values())) > 1:
        shown = ", ".join(f"{recipe} {number}" for recipe, number in hunt.samples.items())
        most = max(hunt.samples.values())
        yield f"Recipes are not tried as often as one another ({shown}); write one number: samples: {most}."


def _ghosts(sweep: Sweep, cells: Cells) -> Iterator[str]:
    stay = [cell for cell in cells if any(_keeps_ghosts(part) for part in cell.recipe.parts)]
    if stay:
        yield (
            f"Ghosts stay to the end in {listed(_labels(stay, 'recipe'), SHOWN)}, so that another network is tested "
            "than the sparse one; leave out window: permanent and the authors' forms, or say so beside every number."
        )


def _keeps_ghosts(part: Choice) -> bool:
    """Return whether a part is tested with its ghosts; one of the user's own, where it is told to by its window."""
    if part.name in PARTS:
        return PARTS[part.name].keeps_ghosts(part.given)
    return part.get("window", "") == "permanent"


def _controls(sweep: Sweep, cells: Cells) -> Iterator[str]:
    found = _found(cells)
    if not found or any(_control(cell) != "none" for cell in cells):
        return
    name = next((c.mask.name for c in found if "control" in sweep.names.entry("mask", c.mask.name).knobs), "")
    moved = f"{{{name}: {{control: shuffled}}}} and {{{name}: {{control: fresh}}}}, and " if name else ""
    yield (
        "No control tells whether a mask's gain is of its positions, its initial weights or its size; add to mask "
        f"{moved}small_dense."
    )


def _cost(sweep: Sweep, cells: Cells) -> Iterator[str]:
    dear = [cell.recipe for cell in cells if any(_dear(sweep, part.name) for part in cell.recipe.parts)]
    if dear and all(not cell.protocol.match_cost for cell in cells):
        recipe = max(dear, key=lambda recipe: len(recipe.parts)).text
        yield (
            f"{recipe} takes steps that default does not, and nothing tells what default makes of as many; add under "
            f"also: {{recipe: default, epochs: match_cost({recipe})}}."
        )


def _dear(sweep: Sweep, part: str) -> bool:
    """Return whether a recipe's part costs more than elementwise operations, as far as can be known."""
    entry = sweep.names.entry("part", part)
    return isinstance(entry, Plugin) or bool(PARTS[part].stage)


def _claims(sweep: Sweep, cells: Cells) -> Iterator[str]:
    recipes = {cell.recipe.label: len(cell.recipe.parts) for cell in cells}
    if sweep.claims or len(recipes) < 2:
        return
    most, least = max(recipes, key=lambda r: recipes[r]), min(recipes, key=lambda r: recipes[r])
    seeds = max(2, len({cell.seed for cell in cells}))
    yield (
        "Recipes are compared and no claim says beforehand what shall decide; write claims: [{name: helps, compare: "
        f"{{recipe: [{_quoted(most)}, {_quoted(least)}]}}, margin: 0.5, seeds: {seeds}}}]."
    )


def _quoted(label: str) -> str:
    return label if label.replace("-", "").replace("+", "").isalnum() else f'"{label}"'


def _narrow(sweep: Sweep, cells: Cells) -> Iterator[str]:
    compared = len(_labels(cells, "recipe")) > 1 or len({*_labels(cells, "mask")} - {DENSE}) > 1
    only = {axis: label for axis in ("dataset", "arch") if len(label := _labels(cells, axis)) == 1}
    if compared and only:
        kinds = {"dataset": "data set", "arch": "network"}
        what = " and ".join(f"one {kinds[axis]} ({label[0]})" for axis, label in only.items())
        more = " and to ".join(only)
        yield f"All of it is of {what}: nothing is known of others; add some to {more}, or say so in every claim."


def _short(sweep: Sweep, cells: Cells) -> Iterator[str]:
    brief = sorted({cell.protocol.epochs for cell in cells if cell.protocol.epochs < SHORT})
    if brief:
        quick = " (preset quick)" if brief[0] == PRESETS["quick"]["epochs"] and sweep.preset == "quick" else ""
        yield (
            f"{count(brief[0], 'epoch')} of training{quick} are for trying things out; write protocol: tost, which has "
            f"{Protocol().epochs}, or more epochs."
        )


CHECKS: Mapping[str, Callable[[Sweep, Cells], Iterator[str]]] = {
    "seeds": _seeds,
    "dense": _dense,
    "random": _random,
    "default": _default,
    "settings": _differing,
    "tuning": _tuned,
    "tickets": _tickets,
    "ghosts": _ghosts,
    "controls": _controls,
    "cost": _cost,
    "claims": _claims,
    "narrow": _narrow,
    "short": _short,
}
