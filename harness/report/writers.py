"""Tables as files: Markdown, LaTeX, CSV and HTML, written by pandas and jinja2, and a rich table for the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from harness.report.frame import Frame, tidy
from harness.report.tables import Entry, Grid
from harness.store import write_whole

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ name }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: left; white-space: nowrap; }
thead { border-bottom: 2px solid; border-top: 2px solid; } table { border-bottom: 2px solid; }
.gain { opacity: .7; margin-left: .5em; } .hole { color: #b35900; margin-left: .5em; }
figure { margin: 0; overflow-x: auto; }
</style></head><body><h1>{{ name }}</h1>
{% for grid in grids %}<h2>{{ grid.name }}</h2><figure><table><thead><tr>
{% for head in grid.heads %}<th>{{ head }}</th>{% endfor %}
{% for column in grid.column_keys %}<th>{{ column | join(", ") }}</th>{% endfor %}</tr></thead><tbody>
{% for row in grid.row_keys %}<tr>{% for label in row %}<th scope="row">{{ label }}</th>{% endfor %}
{% for column in grid.column_keys %}{% set entry = grid.entry(row, column) %}<td>
{%- if entry.planned %}{{ entry.number or "–" }}
{%- if entry.difference %}<span class="gain">{{ entry.difference }}</span>{% endif %}
{%- if entry.hole %}<span class="hole">{{ entry.hole }}</span>{% endif %}{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody></table><figcaption>{{ grid.caption }}</figcaption></figure>
{% endfor %}</body></html>
"""


def write_report(folder: Path, name: str, frame: Frame, grids: Sequence[Grid]) -> list[Path]:
    """Write all tables in every format, and the cells as CSV; return the files."""
    import pandas as pd
    from jinja2 import Environment

    folder.mkdir(parents=True, exist_ok=True)
    page = Environment(autoescape=True).from_string(PAGE).render(name=name, grids=grids)
    texts = {"report.html": page, "cells.csv": pd.DataFrame(tidy(frame)).to_csv(index=False)}
    for grid in grids:
        stem = re.sub(r"[^A-Za-z0-9.%-]+", "_", grid.name).strip("_").replace("%", "")
        texts[f"{stem}.md"] = f"{_markdown(grid)}\n\n{_cell_text(grid.caption)}\n"
        texts[f"{stem}.tex"] = _latex(grid)
        texts[f"{stem}.csv"] = _numbers(grid).to_csv(index=False)
    paths = []
    for file, text in texts.items():
        write_whole(folder / file, text.encode())
        paths.append(folder / file)
    return paths


def on_terminal(grid: Grid, width: int) -> list[RichTable]:
    """Return a grid for the terminal, as several tables one below the other where it is too wide for one."""
    labels = [max(len(head), *(len(row[n]) for row in grid.row_keys)) for n, head in enumerate(grid.heads)]
    room = width - sum(size + 3 for size in labels) - 1
    parts: list[list[tuple[str, ...]]] = [[]]
    used = 0
    for column in grid.column_keys:
        size = 3 + max(*map(len, column), *(len(grid.entry(row, column).text) for row in grid.row_keys), 1)
        if parts[-1] and used + size > room:
            parts.append([])
            used = 0
        parts[-1].append(column)
        used += size
    tables = [_rich_table(grid, columns, labels) for columns in parts]
    tables[0].title = grid.name
    tables[-1].caption = grid.caption
    return tables


def _rich_table(grid: Grid, columns: Sequence[tuple[str, ...]], labels: Sequence[int]) -> RichTable:
    table = RichTable(title_justify="left", caption_justify="left")
    for head, size in zip(grid.heads, labels, strict=True):
        table.add_column(Text(head), min_width=size, no_wrap=True)
    for column in columns:
        table.add_column(Text("\n".join(column)), no_wrap=True)
    previous: tuple[str, ...] | None = None
    for row in grid.row_keys:
        first = previous is None or previous[0] != row[0]
        if previous and first and len(row) > 1:
            table.add_section()
        shown = [*row] if first or len(row) == 1 else ["", *row[1:]]
        table.add_row(*map(Text, shown), *(Text(grid.entry(row, column).text) for column in columns))
        previous = row
    return table


def _markdown(grid: Grid) -> str:
    import pandas as pd

    rows = [[*map(_cell_text, row), *(grid.entry(row, c).text for c in grid.column_keys)] for row in grid.row_keys]
    heads = [*grid.heads, *(_cell_text(", ".join(column)) for column in grid.column_keys)]
    return f"### {_cell_text(grid.name)}\n\n" + str(
        pd.DataFrame(rows, columns=heads).to_markdown(index=False, disable_numparse=True)
    )


def _cell_text(text: str) -> str:
    return re.sub(r"([|`*_<>\\\[\]])", r"\\\1", text)


def _latex(grid: Grid) -> str:
    """Return a booktabs table that compiles as it is."""
    import pandas as pd

    columns = pd.MultiIndex.from_tuples([tuple(map(_tex, column)) for column in grid.column_keys])
    index = pd.MultiIndex.from_tuples(
        [tuple(map(_tex, row)) for row in grid.row_keys], names=[_tex(h) for h in grid.heads]
    )
    rows = [[_tex_entry(grid.entry(row, column)) for column in grid.column_keys] for row in grid.row_keys]
    frame = pd.DataFrame(rows, index=index, columns=columns)
    text: str = frame.style.to_latex(
        hrules=True,
        sparse_index=False,
        multicol_align="c",
        column_format="l" * len(grid.rows) + "r" * len(grid.column_keys),
        caption=_tex(grid.caption),
        label=f"tab:{re.sub(r'[^A-Za-z0-9-]+', '-', grid.name)}",
        position="t",
    )
    return "% needs \\usepackage{booktabs}\n" + text


def _tex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "–": "--",
    }
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in text)


def _tex_entry(entry: Entry) -> str:
    if not entry.planned:
        return ""
    parts = [_tex(entry.number or "–")]
    if entry.difference:
        parts.append(f"${entry.difference}$")
    if entry.hole:
        parts.append(f"[{_tex(entry.hole)}]")
    return " ".join(parts)


def _numbers(grid: Grid) -> Any:
    """Return a grid as a tidy frame: a line an entry, numbers unrounded."""
    import pandas as pd

    records = []
    for (row, column), entry in grid.entries.items():
        if not entry.planned:
            continue
        values = pd.Series(entry.values, dtype=float)
        records.append(
            {
                **dict(zip(grid.rows, row, strict=True)),
                **dict(zip(grid.columns, column, strict=True)),
                "mean": values.mean(),
                "std": values.std(ddof=1),
                "n": len(values),
                "difference": pd.Series(entry.differences, dtype=float).mean(),
                "holes": entry.hole,
            }
        )
    return pd.DataFrame(records)
