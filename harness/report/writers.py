"""Tables as files, Markdown, LaTeX, CSV and Parquet, written by pandas; and as rich tables for the terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from harness.report.cells import cells_frame
from harness.report.frame import Frame
from harness.report.grids import Entry, Grid
from harness.report.latex import latex, stems
from harness.report.stats import sign_flip_p
from harness.store import read_json, write_whole

_LEFT: Any = {"title_justify": "left", "caption_justify": "left"}


def write_tables(folder: Path, grids: Sequence[Grid]) -> list[Path]:
    """Write every table as Markdown, LaTeX, CSV and Parquet; return the files."""
    texts: dict[str, bytes] = {}
    for grid, name in zip(grids, stems(grid.name for grid in grids), strict=True):
        numbers = _numbers(grid)
        texts[f"{name}.md"] = _markdown(grid).encode()
        texts[f"{name}.tex"] = latex(grid).encode()
        texts[f"{name}.csv"] = numbers.to_csv(index=False).encode()
        texts[f"{name}.parquet"] = numbers.to_parquet(index=False)
    return write_files(folder, texts)


def write_cells(folder: Path, frame: Frame) -> list[Path]:
    """Write every cell with all its numbers, a row each, as CSV and Parquet."""
    cells = cells_frame(frame)
    return write_files(
        folder, {"cells.csv": cells.to_csv(index=False).encode(), "cells.parquet": cells.to_parquet(index=False)}
    )


def write_files(folder: Path, texts: Mapping[str, bytes]) -> list[Path]:
    """Write files, those that would stay the same not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file, data in texts.items():
        path = folder / file
        if not path.exists() or path.read_bytes() != data:
            write_whole(path, data)
        paths.append(path)
    return paths


def forget_files(folder: Path, now: Sequence[Path]) -> None:
    """Remove what an earlier report wrote into a folder and this one did not; remember what this one wrote."""
    manifest = folder / "files.json"
    before = (read_json(manifest) or {}).get("files")
    before = before if isinstance(before, list) else []
    names = sorted(path.name for path in now)
    for name in before:
        if isinstance(name, str) and Path(name).name == name and name not in names:
            (folder / name).unlink(missing_ok=True)
    if names != before:
        write_whole(manifest, json.dumps({"files": names}, indent=1).encode())


def on_terminal(grid: Grid, width: int) -> list[RichTable]:
    """Return a grid for the terminal, as several tables one below the other where it is too wide for one."""
    if grid.refusal:
        told = RichTable(title=Text(grid.name), **_LEFT)
        told.add_column("No table")
        told.add_row(Text(f"{grid.refusal}."))
        return [told]
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
    tables[0].title = Text(grid.name)
    tables[-1].caption = Text(grid.caption)
    return tables


def _rich_table(grid: Grid, columns: Sequence[tuple[str, ...]], labels: Sequence[int]) -> RichTable:
    table = RichTable(**_LEFT)
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
    if grid.refusal:
        return f"### {_cell_text(grid.name)}\n\nNo table: {_cell_text(grid.refusal)}.\n"
    import pandas as pd

    rows = [[*map(_cell_text, row), *(_marked(grid.entry(row, c)) for c in grid.column_keys)] for row in grid.row_keys]
    heads = [*grid.heads, *(_cell_text(", ".join(column)) for column in grid.column_keys)]
    table = pd.DataFrame(rows, columns=heads).to_markdown(index=False, disable_numparse=True)
    return f"### {_cell_text(grid.name)}\n\n{table}\n\n{_cell_text(grid.caption)}\n"


def _marked(entry: Entry) -> str:
    text = _cell_text(entry.text)
    number = _cell_text(entry.number)
    return text.replace(number, f"**{number}**", 1) if entry.strong else text


def _cell_text(text: str) -> str:
    return re.sub(r"([|`*_<>\\])", r"\\\1", text)


def _numbers(grid: Grid) -> Any:
    """Return a grid as a tidy frame: a line an entry, numbers unrounded, with the cells that they are of."""
    import pandas as pd

    records = []
    for (row, column), entry in grid.entries.items():
        if not entry.planned:
            continue
        foreign, found = entry.foreign, entry.effect or entry.interval
        values = pd.Series(entry.values if foreign is None else [foreign.value], dtype=float)
        effect = entry.effect.mean if entry.effect else None
        records.append(
            {
                **dict(zip(grid.rows, row, strict=True)),
                **dict(zip(grid.columns, column, strict=True)),
                "value": entry.value,
                "mean": effect if effect is not None else values.mean(),
                "std": values.std(ddof=1) if foreign is None else foreign.std,
                "n": entry.effect.n if entry.effect else len(values) if foreign is None else foreign.n,
                "difference": entry.interval.mean if entry.interval else None,
                "low": found.low if found else None,
                "high": found.high if found else None,
                "pairs": len(entry.differences),
                "p_holm": entry.p,
                "p_sign_flip": sign_flip_p(entry.differences),
                "holes": entry.hole,
                "at_chance": entry.at_chance,
                "source": foreign.source if foreign else "",
                "cells": " ".join(line.key for line in entry.lines),
            }
        )
    frame = pd.DataFrame(records)
    for name in ("mean", "std", "difference", "low", "high", "p_holm", "p_sign_flip") if records else ():
        frame[name] = frame[name].astype(float)
    return frame
