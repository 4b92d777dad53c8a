"""What stands under a table: what the numbers are, how they came about, and what a reader must be warned of."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence

from harness.declared import PLAIN, Table
from harness.errors import short
from harness.report.frame import Line
from harness.report.grids import ALL, Grid
from harness.report.guard import told
from harness.report.metrics import metric
from harness.report.pairing import ORDER, REBUILT, Pair
from harness.report.remarks import MOST, activations, beyond, devices, origins, several, some, tuned, warnings
from harness.words import count

UNITS = (
    "Densities and shares in percent; k, M, G, T: 10³, 10⁶, 10⁹, 10¹²; FLOPs: two a multiply-add, zeros left out, "
    "of one image (inference) or of all training; operations: of all training."
)


def caption(table: Table, grid: Grid) -> str:
    """Say what the numbers are and how they came about."""
    lines = grid.lines
    sentences = [
        *_numbers(table, grid),
        *protocols(lines),
        *_kept(lines),
        *told(lines, table),
        *tuned(lines),
        *_pairs(grid),
        *warnings(lines),
        *devices(lines),
        *origins(lines),
        *_foreign(grid),
    ]
    if causes := {short(f"{line.reason}: {line.cause}", 120) for line in lines if line.cause}:
        sentences.append(f"Holes: {some(causes)}.")
    return " ".join([*sentences, *_notes(lines)])


def _notes(lines: Sequence[Line]) -> Iterator[str]:
    """Say what there is to know of the data sets' splits, and of which of them where it is not so of all."""
    sets = {line.axis("dataset") for line in lines}
    by_note: dict[str, dict[str, None]] = defaultdict(dict)
    for line in lines:
        if line.note:
            by_note[line.note][line.axis("dataset")] = None
    for note, of in by_note.items():
        yield f"{note[0].upper()}{note[1:]}" + (f" ({', '.join(of)})." if len(of) < len(sets) else ".")


def _numbers(table: Table, grid: Grid) -> Iterator[str]:
    """Say what an entry is."""
    columns = several(str(line.facts.protocol.get("report")) for line in grid.lines)
    if "accuracy" in table.values:
        yield f"Test accuracy in percent ({columns})."
    if table.values != ("accuracy",):
        yield UNITS
    if {"near_zero", "silent_channels"} & set(table.values):
        yield from activations(grid.lines)
    if grid.of_effects:
        pooled = any(column[0] == ALL for column in grid.column_keys)
        yield (
            "Effect of a part: mean over all combinations of the other parts of the difference it makes; of two (×): "
            "half the difference of one's effect with and without the other. In brackets the 95 % interval with seeds "
            f"as the random unit (number of seeds){f'; {ALL}: the columns pooled, of equal weight' if pooled else ''}."
        )
        return
    signed = (
        f"; signed: mean difference to {_baseline(table)}, in brackets its 95 % t interval over seeds, cell by cell"
    )
    compared = any(entry.differences for entry in grid.entries.values())
    yield f"Mean ± standard deviation (number of seeds){signed if compared else ''}."
    spreadless = [e.interval for e in grid.entries.values() if e.interval and e.interval.n > 1 and not e.interval.known]
    if spreadless:
        yield "No brackets where all seeds differ by the same: few values that are equal tell no spread."
    others = any(line.axis(axis) != label for line in grid.lines for axis, label in table.compared.items())
    if not compared and others and any(metric(value).compared for value in table.values):
        yield f"No differences: no cell here is {_baseline(table)} at a place and seed that another has too."
    if table.emphasis == "best":
        yield "Bold: the highest mean of those compared."
    elif table.emphasis == "significant" and compared:
        tested = sum(entry.p is not None for entry in grid.entries.values())
        of = "all blocks of this table" if table.family == "table" else f"this block, {tested} differences"
        yield f"Bold: differs from it at 5 % by the paired t test, adjusted for {of}, holes among them (Holm)."
    if any(line.dense for line in grid.lines) and "sparsity" in table.columns:
        yield "The dense network is the same under every sparsity."


def _baseline(table: Table) -> str:
    shown = [
        "the same mask without control" if (axis, value) == ("mask", PLAIN) else value
        for axis, value in table.compared.items()
    ]
    return " and ".join(shown)


def protocols(lines: Sequence[Line]) -> Iterator[str]:
    """Say how the networks were trained and judged, data set by data set where they differ."""
    yield f"{several(line.axis('arch') for line in lines)} on {several(_data(line) for line in lines)}."
    by_text: dict[str, dict[str, None]] = defaultdict(dict)
    for line in lines:
        by_text[_training(line)][line.axis("dataset")] = None
    apart = len({tuple(sets) for sets in by_text.values()}) == len(by_text) > 1
    for text, sets in by_text.items():
        yield f"{text[0].upper()}{text[1:]}" + (f" ({', '.join(sets)})." if apart else ".")
    seeds = sorted({int(line.axis("seed")) for line in lines})
    yield f"Seeds {_runs(seeds)}."


def _data(line: Line) -> str:
    content = line.identity.content[:8]
    return line.axis("dataset") + (f" (files {content})" if content else "")


def _training(line: Line) -> str:
    protocol = line.facts.protocol
    get = protocol.get
    optimizer = f"{get('optimizer')}, learning rate {get('lr')}"
    if get("optimizer") == "sgd":
        optimizer += f", {'Nesterov ' if get('nesterov') else ''}momentum {get('momentum')}"
    schedule = str(get("schedule"))
    if schedule == "multistep":
        drops = ", ".join(f"{m:g}" for m in get("milestones") or ())
        schedule = f"×{get('gamma')} at epochs {drops}" if drops else "constant rate"
    augmented = line.facts.augment or f"{get('augment')} augmentation"
    warmup = f", warm-up of {get('warmup'):g} epoch{'s' * (get('warmup') != 1)}" if get("warmup") else ""
    return (
        f"{_epochs(line)} in {get('precision')}, batch {get('batch')}, {optimizer}, {schedule}{warmup}, "
        f"weight decay {get('weight_decay')}, {augmented}; dev split {line.facts.dev}; best epoch by "
        f"{str(get('select')).replace('_', ' ')}; prunable: {get('prunable')}"
    )


def _epochs(line: Line) -> str:
    """Return how long a line trains: what its result says, where training is lengthened to match a cost."""
    protocol = line.facts.protocol
    if not protocol.get("match_cost"):
        return count(int(protocol.get("epochs") or 0), "epoch")
    matched = f"as {protocol['match_cost']} costs"
    return f"{line.metrics['epochs']} ({matched}) epochs" if "epochs" in line.metrics else f"as many epochs {matched}"


def _kept(lines: Sequence[Line]) -> Iterator[str]:
    """Say how many weights are kept, of how many."""
    found: dict[str, dict[str, dict[int, None]]] = defaultdict(lambda: defaultdict(dict))
    others = dict[str, None]()
    for line in lines:
        kept, total = line.metrics.get("kept"), line.metrics.get("prunable")
        if kept is not None and total:
            found[f"{line.axis('arch')}, {total:,} prunable"][line.axis("sparsity")][int(kept)] = None
            if rest := line.metrics.get("left_out"):
                others[f"{line.axis('arch')}: {beyond(total, rest)}"] = None
    shown = [
        f"{network}: " + ", ".join(f"{'/'.join(f'{k:,}' for k in kept)} at {sparsity}" for sparsity, kept in by.items())
        for network, by in found.items()
    ]
    if shown:
        more = f"; and {len(shown) - MOST} more" if len(shown) > MOST else ""
        yield f"Weights kept: {'; '.join(shown[:MOST])}{more}."
    if others:
        yield f"Not of all weights: {some(others)}."


def _pairs(grid: Grid) -> Iterator[str]:
    """Say what the compared results shared, and which were not compared."""
    yield from shared({(id(p.line), id(p.base)): p for entry in grid.entries.values() for p in entry.pairs}.values())


def shared(found: Collection[Pair]) -> Iterator[str]:
    """Say what pairs have in common, and which say nothing."""
    if not found:
        return
    others = Counter(said for pair in found for said in pair.others)
    for said, number in list(others.items())[:MOST]:
        yield f"Compared although they differ in {said}: {number} of {len(found)} pairs."
    lacks = Counter(pair.lacks for pair in found)
    if lacks[""] == len(found):
        yield "All differences are of pairs with the same mask, initial weights and order of the images."
        return
    for said, number in lacks.items():
        masks = several(p.line.axis("mask") for p in found if p.lacks == said)
        if said in (ORDER, REBUILT):
            yield f"Not compared: {number} pairs ({masks}), {said}."
        elif said:
            yield f"Paired by seed, {said}: {number} of {len(found)} pairs ({masks})."
    if lacks[""]:
        yield f"The other {lacks['']} pairs share mask, initial weights and order of the images."


def _foreign(grid: Grid) -> Iterator[str]:
    sources = dict.fromkeys(e.foreign.source for e in grid.entries.values() if e.foreign)
    if sources:
        yield f"† Not measured here, and paired with nothing: {'; '.join(short(s, 120) for s in sources)}."


def _runs(seeds: Sequence[int]) -> str:
    return (
        f"{seeds[0]}–{seeds[-1]}"
        if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
        else ", ".join(map(str, seeds))
    )
