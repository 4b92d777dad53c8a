"""What stands under a table: what the numbers are, how they came about, and what a reader must be warned of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.errors import short
from harness.form import Table
from harness.names import DENSE
from harness.report.frame import Line
from harness.report.metrics import count

UNLIKE = 0.05
"""How far the size of a small dense network may lie from the sparse one's without a word."""

UNITS = (
    "Densities and shares in percent; k, M, G, T: 10³, 10⁶, 10⁹, 10¹²; FLOPs: two a multiply-add, zeros left out, "
    "of one image (inference) or of all training; operations: of all training."
)


def caption(table: Table, lines: Sequence[Line]) -> str:
    """Say what the numbers are and how they came about."""
    protocols = {id(line.cell.protocol): line.cell.protocol for line in lines}.values()
    seeds = sorted({line.cell.seed for line in lines})
    said = {
        "networks": _several(line.cell.arch.label for line in lines),
        "data": _several(line.cell.dataset.label for line in lines),
        "column": _several(p.report for p in protocols),
        "epochs": _several(_epochs(line) for line in lines),
        "precision": _several(p.precision for p in protocols),
        "prunable": _several(p.prunable for p in protocols),
        "dev": _several(line.cell.dev for line in lines),
    }
    devices = _several(_device(line.result.stamp) for line in lines if line.result)
    sentences = [
        *([f"Test accuracy in percent ({said['column']})."] if "accuracy" in table.metrics else []),
        *([UNITS] if table.metrics != ("accuracy",) else []),
        "Mean ± standard deviation (number of seeds); "
        f"signed: mean difference to {table.baseline} with the same mask and seed.",
        f"{said['networks']} on {said['data']}; {said['epochs']} epochs, {said['precision']}; dev split {said['dev']}; "
        f"best epoch by dev accuracy; prunable: {said['prunable']}; seeds {_runs(seeds)}; "
        f"devices: {devices or 'none yet'}.",
    ]
    if any(line.cell.mask.name == DENSE for line in lines) and "sparsity" in table.columns:
        sentences.append("The dense network is the same under every sparsity.")
    sentences += [*_tuned(lines), *_warnings(lines), *_origins(lines)]
    causes = sorted({f"{line.reason}: {line.cause}" for line in lines if line.cause})
    if causes:
        sentences.append("Holes: " + "; ".join(short(cause, 120) for cause in causes[:3]) + ".")
    sentences += [f"{line.note[0].upper()}{line.note[1:]}." for line in {n.note: n for n in lines if n.note}.values()]
    return " ".join(sentences)


def _device(stamp: Mapping[str, Any]) -> str:
    world = stamp.get("world", 1)
    return f"{stamp.get('device')}" + (f" ×{world}" if world != 1 else "")


def _epochs(line: Line) -> str:
    """Return how long a line trains: what its result says, where training is lengthened to match a cost."""
    protocol = line.cell.protocol
    if not protocol.match_cost:
        return str(protocol.epochs)
    trained = line.result.metrics.get("epochs") if line.result else "?"
    return f"{trained} (as {protocol.match_cost} costs)"


def _tuned(lines: Sequence[Line]) -> Iterator[str]:
    """Say how many trials each recipe's settings took to find, where any were searched for."""
    trials: dict[str, set[int]] = {}
    for line in lines:
        trials.setdefault(line.cell.recipe.label, set()).add(line.cell.tuned.trials if line.cell.tuned else 0)
    if not any(any(spent) for spent in trials.values()):
        return
    shown = ", ".join(f"{recipe} {' or '.join(map(str, sorted(spent)))}" for recipe, spent in trials.items())
    metrics = _several(line.cell.tuned.metric for line in lines if line.cell.tuned)
    alike = len({tuple(sorted(spent)) for spent in trials.values()}) == 1
    yield f"{'Settings tuned' if alike else 'Not tuned alike:'} by {metrics} on the dev split, trials each: {shown}."


def _warnings(lines: Sequence[Line]) -> list[str]:
    """Say where a comparison is not one of equal sizes, and where layers are empty."""
    said = []
    larger = {
        f"{line.cell.recipe.label} on {line.cell.arch.label} keeps {count(ghosts)} trained ghost parameters"
        for line in lines
        if line.result and (ghosts := line.result.metrics.get("ghost_parameters"))
    }
    if larger:
        said.append(f"Not of equal size: {'; '.join(sorted(larger))}.")
    soft = _several(line.cell.recipe.label for line in lines if line.result and line.result.metrics.get("ghosts_stay"))
    if soft:
        said.append(f"Ghosts stay to the end, so that another network is tested: {soft}.")
    unlike = {
        f"{line.cell.arch.label} {line.cell.sparsity.label} ({count(size)} parameters, wanted {count(wanted)})"
        for line in lines
        if line.result
        and (wanted := line.result.metrics.get("size_wanted"))
        and abs((size := line.result.metrics["parameters"]) / wanted - 1) > UNLIKE
    }
    if unlike:
        said.append(f"Small dense networks of another size: {'; '.join(sorted(unlike))}.")
    empty = {
        f"{line.cell.arch.label} {line.cell.mask.label} {line.cell.sparsity.label} ({len(layers)} empty)"
        for line in lines
        if line.result and (layers := line.result.metrics.get("empty_layers"))
    }
    if empty:
        shown = sorted(empty)
        more = f" and {len(shown) - 6} more" if len(shown) > 6 else ""
        said.append(f"Layer collapse: {'; '.join(shown[:6])}{more}.")
    return said


def _origins(lines: Sequence[Line]) -> Iterator[str]:
    """Say where results come from different code, or were accepted from older code."""
    sources = Counter(str(line.result.provenance.get("source", "unknown")) for line in lines if line.result)
    if len(sources) > 1:
        shown = ", ".join(f"{source} ({number})" for source, number in sources.most_common())
        yield f"Made by {len(sources)} versions of the code: {shown}."
    accepted = [line for line in lines if line.result and "blessed" in line.result.provenance]
    if accepted:
        yield f"Accepted from older code: {len(accepted)} of {sum(line.result is not None for line in lines)} results."


def _several(labels: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(labels))


def _runs(seeds: Sequence[int]) -> str:
    return (
        f"{seeds[0]}–{seeds[-1]}"
        if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
        else ", ".join(map(str, seeds))
    )
