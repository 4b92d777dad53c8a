"""What a reader of a table must be told or warned of: tuning, sizes, empty layers, guessing, devices, versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.report.frame import Line
from harness.report.metrics import count

UNLIKE = 0.05
"""How far the size of a small dense network may lie from the sparse one's without a word."""
NOTHING = "no Conv2d or Linear of it is trained, so that there is no weight to prune; write mask: dense"
LARGEST = 3
"""Weights that are named of those which no mask speaks of."""
MOST = 6
"""Items of a list that are shown."""


def tuned(lines: Sequence[Line]) -> Iterator[str]:
    """Say how many trials each recipe's settings took to find, where any were searched for."""
    trials: dict[str, set[int]] = {}
    for line in lines:
        trials.setdefault(line.axis("recipe"), set()).add(line.facts.trials or 0)
    if not any(any(spent) for spent in trials.values()):
        return
    shown = ", ".join(f"{recipe} {' or '.join(map(str, sorted(spent)))}" for recipe, spent in trials.items())
    metrics = several(line.facts.tuned_by for line in lines if line.facts.tuned_by)
    alike = len({tuple(sorted(spent)) for spent in trials.values()}) == 1
    yield f"{'Settings tuned' if alike else 'Not tuned alike:'} by {metrics} on the dev split, trials each: {shown}."


def warnings(lines: Sequence[Line]) -> list[str]:
    """Say where a comparison is not one of equal sizes, where layers are empty, and what has learnt nothing."""
    said = []
    larger = {
        f"{line.axis('recipe')} on {line.axis('arch')} keeps {count(ghosts)} trained ghost parameters"
        for line in lines
        if line.measured and (ghosts := line.metrics.get("ghost_parameters"))
    }
    if larger:
        said.append(f"Not of equal size: {'; '.join(sorted(larger))}.")
    soft = several(line.axis("recipe") for line in lines if line.measured and line.metrics.get("ghosts_stay"))
    if soft:
        said.append(f"Ghosts stay to the end, so that another network is tested: {soft}.")
    partly = {
        f"{part} {reach} of {line.axis('arch')}"
        for line in lines
        if line.measured
        for part, reach in line.metrics.get("reached", {}).items()
    }
    if partly:
        said.append(f"Reached in part, the others being calls of functions: {some(partly)}.")
    unlike = {
        f"{line.axis('arch')} {line.axis('sparsity')} ({count(size)} parameters, wanted {count(wanted)})"
        for line in lines
        if line.measured
        and (wanted := line.metrics.get("size_wanted"))
        and abs((size := line.metrics["parameters"]) / wanted - 1) > UNLIKE
    }
    if unlike:
        said.append(f"Small dense networks of another size: {'; '.join(sorted(unlike))}.")
    empty = {
        f"{line.axis('arch')} {line.axis('mask')} {line.axis('sparsity')} ({len(layers)} empty)"
        for line in lines
        if line.measured and (layers := line.metrics.get("empty_layers"))
    }
    if empty:
        said.append(f"Layer collapse: {some(empty)}.")
    if guessing := {line.short for line in lines if line.at_chance}:
        said.append(f"No better than guessing (95 % interval): {some(guessing)}.")
    return said


def beyond(prunable: int, left_out: Mapping[str, int]) -> str:
    """Say of which share of a network's weights a sparsity is, and which the largest others are."""
    names = sorted(left_out, key=lambda name: (-left_out[name], name))
    more = f" and {len(names) - LARGEST} more" if len(names) > LARGEST else ""
    share = prunable / (prunable + sum(left_out.values()))
    return f"sparsities are of {100 * share:.3g} % of its weights; left dense: {', '.join(names[:LARGEST])}{more}"


def reach(label: str, prunable: int, left_out: Mapping[str, int] | None, refused: str) -> str:
    """Say what masks reach of a network, by its label; nothing where that is all of it."""
    if refused or not prunable:
        return f"{label} {'is refused' if refused else 'takes no masks'}: {refused or NOTHING}"
    return f"{label}: {beyond(prunable, left_out)}" if left_out else ""


def activations(lines: Sequence[Line]) -> Iterator[str]:
    """Say where what is told of activations is of some of them alone."""
    partly = {f"{of} of {line.axis('arch')}" for line in lines if (of := line.metrics.get("activations_of"))}
    if partly:
        yield f"Activations are seen behind modules, not behind calls of functions: {some(partly)}."


def some(texts: Iterable[str]) -> str:
    """Return texts in order, the first few of many."""
    shown = sorted(texts)
    more = f" and {len(shown) - MOST} more" if len(shown) > MOST else ""
    return f"{'; '.join(shown[:MOST])}{more}"


def origins(lines: Sequence[Line]) -> Iterator[str]:
    """Say where results come from different code, or were accepted from older code."""
    sources = Counter(str(line.measured.provenance.get("source", "unknown")) for line in lines if line.measured)
    if len(sources) > 1:
        shown = ", ".join(f"{source} ({number})" for source, number in sources.most_common())
        yield f"Made by {len(sources)} versions of the code: {shown}."
    elif sources:
        told = [line.measured.provenance for line in lines if line.measured]
        commits = several(_commit(one) for one in told if one.get("git"))
        yield f"Code {next(iter(sources))}" + (f", commit {commits}." if commits else ".")
    results = sum(line.measured is not None for line in lines)
    if accepted := sum(line.accepted for line in lines):
        yield f"Accepted from older code: {accepted} of {results} results."
    if made := sum(line.measured is not None and line.on_accepted and not line.accepted for line in lines):
        yield f"Made from masks or trainings accepted from older code: {made} of {results} results."


def devices(lines: Sequence[Line]) -> Iterator[str]:
    """Say what the results were made on and by which execution, and where that was not one sort of them."""
    found = Counter(_device(line.measured.stamp) for line in lines if line.measured)
    if len(found) == 1:
        yield f"Devices: {next(iter(found))}."
    elif found:
        yield f"Mixed devices: {', '.join(f'{device} ({number})' for device, number in found.most_common())}."
    else:
        yield "Devices: none yet."


def _device(stamp: Mapping[str, Any]) -> str:
    world = stamp.get("world", 1)
    name = str(stamp.get("device_name", "")) if stamp.get("device") != "cpu" else ""
    execution = stamp.get("execution") or stamp.get("fast", "eager")  # `fast` said it in earlier versions' results
    shown = f"{stamp.get('device')}{f' {name}' if name else ''}" + (f" ×{world}" if world != 1 else "")
    return shown if execution == "eager" else f"{shown} {execution}"


def _commit(provenance: Mapping[str, Any]) -> str:
    return str(provenance["git"])[:10] + (" with local changes" if provenance.get("git_diff") else "")


def several(labels: Iterable[str]) -> str:
    """Return labels as a list, each once."""
    return ", ".join(dict.fromkeys(labels))
