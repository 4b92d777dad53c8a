"""Tables as LaTeX: booktabs, compiled as they are, every number's cells named in a comment behind it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from harness.report.frame import Line
from harness.report.grids import Entry, Grid

MARK = "%@"
"""What begins the comment behind a number, or behind the labels of a row."""
LABELS = f"{MARK} labels"
SMALL = r"\footnotesize\setlength{\tabcolsep}{3pt}\vspace{4pt}"
"""How a table is set: a number with its interval is wide."""
SHORT = 12
"""Hex digits of a key in a comment."""
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "×": r"$\times$",
    "†": r"$^\dagger$",
    "⁰": "$^0$",
    "³": "$^3$",
    "⁶": "$^6$",
    "⁹": "$^9$",
    "¹": "$^1$",
    "²": "$^2$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "—": "---",
    "…": "...",
    "°": r"$^\circ$",
    "µ": r"$\mu$",
} | {c: f"\\{c}" for c in "&%$#_{}"}
_ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0326\u0327")
"""The accents that pdfLaTeX sets in every font encoding, as letters in UTF-8 (its default since 2018)."""
_LETTERS = frozenset("ÆæŒœØøŁłßı¡¿")
_BASE = {"Đ": "D", "đ": "d", "Ð": "D", "ð": "d", "Þ": "Th", "þ": "th", "Ŋ": "N", "ŋ": "n", "Ħ": "H", "ħ": "h"}
"""Letters without a decomposition that only some fonts have."""
_CAPITALS = frozenset("ΓΔΘΛΞΠΣΥΦΨΩ")
"""Greek capitals that look like no Latin one."""


def tex(text: str) -> str:
    """Return text that pdfLaTeX prints as it is: accents stay, Greek letters become mathematics.

    Of what its usual fonts lack, a letter loses its accent, and any other sign becomes its code point: (U+30C7).
    """
    return "".join(map(_tex, unicodedata.normalize("NFC", text)))


def _tex(sign: str) -> str:
    if sign in _SPECIAL:
        return _SPECIAL[sign]
    if (sign.isascii() and sign.isprintable()) or sign in _LETTERS:
        return sign
    if ("α" <= sign <= "ω" and sign not in "ος") or sign in _CAPITALS:
        name = unicodedata.name(sign).split()[-1].replace("LAMDA", "LAMBDA")
        return f"$\\{name.capitalize() if sign in _CAPITALS else name.lower()}$"
    if not sign.strip() or unicodedata.category(sign).startswith("C"):
        return " "
    parts = unicodedata.normalize("NFD", sign)
    if parts[0].isascii() and parts[0].isalpha():
        known = len(parts) == 2 and parts[1] in _ACCENTS and ord(sign) < 0x1F0
        return sign if known else parts[0]
    return _BASE.get(sign, f"(U+{ord(sign):04X})")


def lacking(text: str) -> list[str]:
    """Return the signs of a text that `tex` replaces by others, each once."""
    signs = (c for c in dict.fromkeys(unicodedata.normalize("NFC", text)) if not c.isascii() and c not in _SPECIAL)
    return [c for c in signs if _tex(c) != c and "$" not in _tex(c) and _tex(c).strip()]


def stem(name: str) -> str:
    """Return a table's or figure's name as that of a file."""
    return re.sub(r"[^A-Za-z0-9.%-]+", "_", name).strip("_").replace("%", "") or "table"


def stems(names: Iterable[str]) -> list[str]:
    """Return every name as that of a file, no two alike, not even where case counts for nothing."""
    found: list[str] = []
    for name in names:
        own, number = stem(name), 1
        while (other := own if number == 1 else f"{own}-{number}").lower() in {f.lower() for f in found}:
            number += 1
        found.append(other)
    return found


def latex(grid: Grid) -> str:
    """Return a booktabs table that compiles as it is. A line of its source holds one number and the comment of it."""
    if grid.refusal:
        return f"% {grid.name}: no table: {_one_line(grid.refusal)}\n"
    import pandas as pd

    marks: list[str] = []

    def cell(entry: Entry) -> str:
        marks.append(mark(entry, grid.report))
        return entry_tex(entry) + f"\x02{len(marks) - 1}\x03"

    frame = pd.DataFrame(
        [[cell(grid.entry(row, column)) for column in grid.column_keys] for row in grid.row_keys],
        index=_index([tuple(map(tex, row)) for row in grid.row_keys], [tex(head) for head in grid.heads]),
        columns=_index([tuple(map(tex, column)) for column in grid.column_keys]),
    )
    text: str = frame.style.to_latex(
        hrules=True,
        sparse_index=False,
        multicol_align="c",
        column_format="l" * len(grid.rows) + "r" * len(grid.column_keys),
        caption=tex(grid.caption),
        label=f"tab:{re.sub(r'[^A-Za-z0-9-]+', '-', grid.name)}",
        position="t",
    )
    text = text.replace("\\begin{tabular}", f"{SMALL}\n\\begin{{tabular}}", 1)
    before = ""
    lines = []
    for line in text.splitlines():
        first = line.partition(" & ")[0] if "\x02" in line else ""
        if len(grid.rows) > 1 and before and first and first != before:
            lines.append(r"\addlinespace")
        before = first or before
        lines.append(_row(line, marks, len(grid.rows)))
    body = "\n".join(lines)
    labels = [label for keys in (grid.row_keys, grid.column_keys) for key in keys for label in key]
    lost = lacking("".join([grid.caption, *grid.heads, *labels]))
    said = f"% replaced, since pdfLaTeX's usual fonts lack them: {' '.join(lost)}\n" if lost else ""
    return f"% needs \\usepackage{{booktabs}}; check its numbers: harness report --verify FILE\n{said}{body}\n"


def _index(labels: list[tuple[str, ...]], heads: list[str] | None = None) -> Any:
    """Return labels as pandas wants them: one level is none of a hierarchy."""
    import pandas as pd

    if labels and len(labels[0]) == 1:
        return pd.Index([label for (label,) in labels], name=heads[0] if heads else None)
    return pd.MultiIndex.from_tuples(labels, names=heads)


def _row(line: str, marks: list[str], labels: int) -> str:
    """Break a table's row into lines: its labels, then one for every number."""
    if "\x02" not in line:
        return line
    cells = line.removesuffix(r"\\").split(" & ")
    shown = [f"{' & '.join(cells[:labels])} & {LABELS}"]
    for number, text in enumerate(cells[labels:]):
        found = re.fullmatch(r"(.*)\x02(\d+)\x03\s*", text)
        if found is None:
            raise ValueError(f"not a cell of a table: {text!r}")
        shown.append(f"  {'& ' if number else ''}{found[1]} {marks[int(found[2])]}".rstrip())
    return "\n".join([*shown, r"\\"])


def entry_tex(entry: Entry) -> str:
    """Return a number as a table prints it, in lines below it the difference, and what is missing or at chance."""
    if not entry.planned:
        return ""
    number = _signed(tex(entry.number or "–"))
    number = rf"\textbf{{{number}}}" if entry.strong else number
    below = [_signed(tex(entry.difference))] if entry.difference else []
    below += [f"({tex(entry.aside)})"] if entry.aside else []
    stacked = "".join(rf"\\{{\scriptsize {line}}}" for line in below)
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{number}{stacked}\end{{tabular}}" if below else number


def _signed(text: str) -> str:
    """Return numbers with a sign as LaTeX sets them: a minus, not a hyphen."""
    return re.sub(r"(?<![\w$])([+-]\d+(?:\.\d+)?)", r"$\1$", text)


def mark(entry: Entry, report: str) -> str:
    """Return the comment that says what a number is made of: of which report, metric, cells and pairs."""
    if not entry.planned:
        return ""
    if entry.foreign is not None:
        return f"{MARK} sweep={report} foreign={entry.foreign.sha256} line={entry.foreign.line}"
    if entry.words and not entry.terms:
        return f"{MARK} sweep={report} words"
    columns = "+".join(dict.fromkeys(column(line, entry.value) for line in entry.lines))
    said = [MARK, f"sweep={report}", f"value={columns}"]
    if entry.effect is not None or entry.terms:
        said.append(f"terms={';'.join(_term(*term) for term in _numbered(entry))}")
    else:
        said.append(f"cells={','.join(line.key[:SHORT] for line in entry.lines)}")
        used = [f"{pair.line.key[:SHORT]}-{pair.base.key[:SHORT]}" for pair in entry.pairs if pair.comparable]
        said += [f"pairs={','.join(used)}"] if used else []
    return " ".join(said)


def column(line: Line, value: str) -> str:
    """Return the metric that a value is read from."""
    return str(line.facts.protocol.get("report", "test@last")) if value == "accuracy" else value


def _numbered(entry: Entry) -> Iterable[tuple[int, str, tuple[tuple[Line, float], ...]]]:
    cells = list(dict.fromkeys(cell for cell, _, _ in entry.terms))
    return [(cells.index(cell), seed, weighted) for cell, seed, weighted in entry.terms]


def _term(cell: int, seed: str, weighted: Iterable[tuple[Line, float]]) -> str:
    return f"{cell}/{seed}:" + "".join(f"{weight:+g}*{line.key[:SHORT]}" for line, weight in weighted)


def _one_line(text: str) -> str:
    return " ".join(text.split())
