"""What a table must not mix: files of a data set, splits, columns, lengths of training, precisions, prunable sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from harness.declared import GUARDED, Table
from harness.errors import short
from harness.report.frame import Line

OF_THE_DATA = ("content", "dev", "epochs")
"""What may differ from data set to data set; the rest is the same in all of a table."""
WORDS = {
    "content": "files of the data set",
    "dev": "dev splits",
    "select": "selection rules",
    "report": "reported columns",
    "epochs": "lengths of training",
    "precision": "precisions",
    "prunable": "prunable sets",
}


def guarded(line: Line, name: str) -> str:
    """Return what a line has of a guarded property; nothing where it is not known yet."""
    if name == "content":
        return line.identity.content
    if name == "dev":
        return line.facts.dev
    if name == "epochs" and (matched := line.facts.protocol.get("match_cost")):
        return f"match_cost({matched})"
    return str(line.facts.protocol.get(name, ""))


def mixed(lines: Sequence[Line]) -> dict[str, dict[str, list[Line]]]:
    """Return the properties that differ where they must not: name -> value -> the lines that have it."""
    found: dict[str, dict[str, list[Line]]] = {}
    by_data: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_data[line.axis("dataset")].append(line)
    for name in GUARDED:
        for members in by_data.values() if name in OF_THE_DATA else [lines]:
            values: dict[str, list[Line]] = defaultdict(list)
            for line in members:
                if value := guarded(line, name):
                    values[value].append(line)
            if len(values) > 1:
                for value, having in values.items():
                    found.setdefault(name, {}).setdefault(value, []).extend(having)
    return found


def refusal(table: Table, lines: Sequence[Line]) -> str:
    """Return why a table is not made of some lines, and what to write; nothing where it may be."""
    axes = (*table.rows, *table.columns, *table.blocks)
    for name, values in mixed(lines).items():
        if name not in table.mix and name not in axes:
            shown = "; ".join(f"{value} ({short(having[0].short, 60)})" for value, having in list(values.items())[:4])
            advice = f"write mix: [{name}] to have them side by side"
            if name != "content":
                advice = f"name {name} in its rows, columns or blocks, or {advice}"
            return f"it would mix {WORDS[name]}: {shown}; {advice}"
    if twice := _twice(lines):
        first, second = twice
        return (
            f"two results stand for {short(first.short, 80)} (keys {first.key[:8]} and {second.key[:8]}); "
            "their methods or code versions differ, so run the sweeps again, or report them one by one"
        )
    return ""


def _twice(lines: Sequence[Line]) -> tuple[Line, Line] | None:
    seen: dict[tuple[object, ...], Line] = {}
    for line in lines:
        labels = tuple(value for axis, value in sorted(line.labels.items()) if axis != "world")
        place = (*labels, line.facts.share, repr(sorted(line.facts.protocol.items())))
        other = seen.setdefault(place, line)
        if other is not line:
            return other, line
    return None


def told(lines: Sequence[Line], table: Table) -> list[str]:
    """Return the sentence of a caption for every property that was mixed as asked."""
    found = mixed(lines)
    return [
        f"Mixed, as asked: {WORDS[name]} {', '.join(values)}." for name in table.mix if (values := found.get(name, {}))
    ]
