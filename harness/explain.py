"""A sweep in plain words, before it runs: what will run, what it costs, what is compared, what is missing."""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.cell import Cell
from harness.declared import EFFECT, PLAIN, Claim, Table
from harness.frontier import Survey
from harness.names import DENSE, SMALL
from harness.outlook import Outlook
from harness.planfile import SavedPlan
from harness.report.captions import protocols, shared
from harness.report.frame import Frame, Line
from harness.report.guard import refusal
from harness.report.identity import identify
from harness.report.metrics import metric
from harness.report.pairing import Pair, pairs
from harness.report.tables import blocks_of
from harness.reviewing import Remark, remarks
from harness.spec import Sweep
from harness.specs import Specs
from harness.store import Store
from harness.terminal import command
from harness.tracking.settings import size_warning
from harness.words import count, listed

FOUND = {
    "init": "found before training",
    "trained": "found in a dense network after its training",
    "chain": "found at the end of a chain of trainings, each on four fifths of the weights of the one before",
    "training": "found while the sparse network trains",
    "file": "read from a file",
    SMALL: "no mask: a narrower dense network of as many parameters",
}
"""When a mask is found -> in words."""
PARTS = {
    "gsw": "ghost soft neurons",
    "gsk": "ghost skips",
    "lrsi": "re-scaled initialisation",
    "ls": "label smoothing",
}
WIDEST = 110
"""Columns of the text on a wide terminal, and where it is no terminal."""


@dataclass(frozen=True)
class Explanation:
    """Sentences about a sweep, by what they are about."""

    name: str
    runs: Sequence[str]
    there: Sequence[str] = ()
    costs: Sequence[str] = ()
    compared: Sequence[str] = ()
    remarks: Sequence[Remark] = ()

    def dump(self) -> dict[str, Any]:
        """Return it as plain values."""
        told = {name: list(getattr(self, name)) for name in ("runs", "there", "costs", "compared")}
        return {**told, "remarks": [{"about": remark.about, "said": remark.said} for remark in self.remarks]}

    def text(self, width: int = 0) -> str:
        """Return it as a person reads it, in paragraphs no wider than the terminal."""
        wide = width or min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
        missing = [remark.said for remark in self.remarks] or ["Nothing that is looked for here."]
        sections = {
            "What runs": self.runs,
            "What is there": self.there,
            "What it costs": self.costs,
            "What is compared": self.compared,
            "What a reviewer would miss": missing,
        }
        lines = [self.name]
        for head, sentences in sections.items():
            lines += ["", head, *(_wrapped(sentence, wide) for sentence in sentences)] if sentences else []
        return "\n".join(lines)


def _wrapped(sentence: str, width: int) -> str:
    return textwrap.fill(
        sentence, width, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def explain(
    sweep: Sweep,
    saved: SavedPlan,
    survey: Survey,
    outlook: Outlook,
    whole: Sequence[Cell],
    beyond: Sequence[str] = (),
) -> Explanation:
    """Explain the cells of a plan; what a reviewer would miss is looked for in those of the `whole` file.

    `beyond`: what masks do not reach of its networks.
    """
    lines = unmeasured(saved)
    return Explanation(
        sweep.name,
        [*_runs(sweep, saved, lines, beyond)],
        [*_there(saved, survey, outlook.frontier.store)],
        [*_costs(outlook)],
        [*_compared(saved, lines)],
        remarks(sweep, whole),
    )


def unmeasured(saved: SavedPlan) -> list[Line]:
    """Return a plan's cells as a report's lines, without results."""
    stages = saved.plan.stages
    return [
        Line(
            dict(zip(saved.axes, cell.labels, strict=True)),
            cell.facts,
            cell.key,
            identity=identify(saved.plan, stages[cell.key], None),
        )
        for cell in saved.cells
    ]


def _runs(sweep: Sweep, saved: SavedPlan, lines: Sequence[Line], beyond: Sequence[str]) -> Iterator[str]:
    """Say what will be trained, with which masks and recipes, and how much of it is shared."""
    cells = [cell for cell, _ in saved.plan.cells]
    yield f"{count(len(cells), 'cell')}: {listed(_labels(cells, 'arch'))} on {listed(_labels(cells, 'dataset'))}."
    yield from _masks(sweep, cells)
    yield from (f"Network {said}." for said in beyond)
    yield from _recipes(cells)
    yield from list(protocols(lines))[1:]
    yield f"Reported: {listed(str(line.facts.protocol.get('report')) for line in lines)}."
    trainings = sum(stage.kind == "train" for stage in saved.plan.stages.values())
    own = len({key for _, key in saved.plan.cells})
    said = f"{count(trainings, 'training')}: {own:,} of the cells"
    if more := trainings - own:
        said += f" and {more:,} that masks and tickets need, each made once for all cells that share it"
    yield f"{said}; if every cell made its own, there would be {saved.plan.unshared_trainings():,}."
    if united := saved.plan.united:
        yield f"{count(united, 'point')} of the file repeat others, and are trained once."
    runs = sum(stage.kind != "data" for stage in saved.plan.stages.values())
    if saved.wandb and (warning := size_warning(saved.wandb["project"], runs)):
        yield warning


def _labels(cells: Sequence[Cell], axis: str) -> list[str]:
    return list(dict.fromkeys(str(cell.axis(axis)) for cell in cells))


def _masks(sweep: Sweep, cells: Sequence[Cell]) -> Iterator[str]:
    specs, when = Specs(sweep.names), dict[str, dict[str, None]]()
    for mask in dict.fromkeys(cell.mask for cell in cells if cell.mask.name != DENSE):
        when.setdefault(SMALL if mask.name == SMALL else specs.at(mask), {})[mask.label] = None
    if when:
        sparse = [cell for cell in cells if cell.mask.name != DENSE]
        shown = "; ".join(f"{listed(masks)} ({FOUND.get(at, at)})" for at, masks in when.items())
        yield f"Masks: {shown}; at {listed(_labels(sparse, 'sparsity'))} of weights removed."
    if dense := sum(cell.mask.name == DENSE for cell in cells):
        yield f"{count(dense, 'dense network')} beside them." if when else "All networks are dense."


def _recipes(cells: Sequence[Cell]) -> Iterator[str]:
    used = dict.fromkeys(part.name for cell in cells for part in cell.recipe.parts)
    known = [
        f"{name} {'are' if words.endswith('s') else 'is'} {words}" for name, words in PARTS.items() if name in used
    ]
    yield f"Recipes: {listed(_labels(cells, 'recipe'))}" + (f"; {listed(known)}." if known else ".")


def _there(saved: SavedPlan, survey: Survey, store: Store) -> Iterator[str]:
    """Say what of it is finished, and what failed."""
    plan = saved.plan
    left = {key for key in survey.todo if plan.stages[key].kind == "train"}
    cells = sum(key not in survey.todo for _, key in plan.cells)
    if not survey.todo:
        yield "All of it is finished; nothing would run."
        return
    yield f"{cells:,} of {count(len(plan.cells), 'cell')} finished; {count(len(left), 'training')} to run."
    others = Counter(state.label for state in survey.todo.values() if state.name != "todo")
    if others:
        shown = ", ".join(f"{number:,} {name}" for name, number in sorted(others.items()))
        yield f"Stages that were begun: {shown}; {command('status', saved.plan.name, store=store.root)} shows them."


def _costs(outlook: Outlook) -> Iterator[str]:
    """Say what the rest costs, as far as records tell."""
    if not outlook.todo:
        yield "Nothing more."
    for line in outlook.lines():
        text = line.strip()
        yield f"{text[0].upper()}{text[1:]}."


def _compared(saved: SavedPlan, lines: Sequence[Line]) -> Iterator[str]:
    """Say what every table and claim compares, and what compared cells share."""
    declared, frame = saved.declared, Frame.of(lines)
    for table in declared.tables:
        yield from _table(table, frame)
    for claim in declared.claims:
        yield _claim(claim, [lines[number] for number in declared.members[claim.name]])
    if not declared.tables and not declared.claims:
        yield "No table and no claim: every cell goes to cells.csv, and nothing is compared; write tables: [any-mask]."


def _table(table: Table, frame: Frame) -> Iterator[str]:
    found: list[Pair] = []
    refused, blocks = dict[str, None](), list(blocks_of(table, frame))
    for _, _, lines in blocks:
        if said := refusal(table, lines):
            refused[said] = None
        elif EFFECT not in table.rows:
            found += pairs(frame, table.compared, lines).values()
    rows = f"{listed(table.rows)} in rows, {listed(table.columns)} in columns"
    apart = f", in {len(blocks)} blocks by {listed(axis for axis in blocks[0][1])}" if len(blocks) > 1 else ""
    yield f"Table {table.name} shows {listed(table.values)} with {rows}{apart}."
    for said in list(refused)[:1]:
        yield f"Table {table.name} cannot be made of {len(refused)} of {count(len(blocks), 'block')}: {said}."
    if EFFECT in table.rows:
        yield (
            f"Table {table.name} compares no pairs: a part's effect is the mean, over all combinations of the others, "
            "of the difference it makes."
        )
    elif any(metric(value).compared for value in table.values):
        if not found and table.compared and all(_is_baseline(table, line) for _, _, lines in blocks for line in lines):
            yield f"Table {table.name} has nothing but {_baseline(table)}, which the others would be compared with."
        else:
            yield _told(f"Table {table.name}", f"{_baseline(table)} of the same place and seed", found)


def _is_baseline(table: Table, line: Line) -> bool:
    """Return whether a cell is one that a table compares others with."""
    return all(value != PLAIN and line.axis(axis) == str(value) for axis, value in table.compared.items())


def _baseline(table: Table) -> str:
    return listed(
        "the same mask without its control" if (axis, value) == ("mask", PLAIN) else f"{axis} {value}"
        for axis, value in table.compared.items()
    )


def _told(what: str, base: str, found: Sequence[Pair]) -> str:
    if not found:
        return f"{what} compares nothing: no cell has {base} beside it."
    return " ".join([f"{what} compares {count(len(found), 'cell')} with {base}.", *shared(found)])


def _claim(claim: Claim, lines: Sequence[Line]) -> str:
    first, second = map(str, claim.compare[claim.axis])
    found = pairs(Frame.of(lines), {claim.axis: second}, lines)
    mine = [found[id(line)] for line in lines if id(line) in found and line.axis(claim.axis) == first]
    return " ".join(
        [
            f"Claim {claim.name}: {first} differs from {second} in {claim.value}, where {claim.margin:g} is the "
            f"smallest difference that matters; decided with {count(claim.seeds, 'seed')} over "
            f"{count(len(mine), 'pair')}.",
            *shared(mine),
        ]
    )
