"""Numbers from elsewhere, published or measured by others: a CSV file of axes, values and their sources."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.axes import read_sparsity
from harness.catalog import METRICS
from harness.errors import short
from harness.store import Store
from tost.catalog import nearest

NUMBERS = ("value", "std", "n")
MOST_ROWS = 100_000
MOST_BYTES = 2**25


@dataclass(frozen=True)
class Foreign:
    """One number that no run of this store made."""

    labels: Mapping[str, str]
    """Axis -> label, of the axes that the file has as columns."""
    metric: str
    value: float
    std: float | None
    n: int | None
    source: str
    file: str
    line: int
    sha256: str = ""
    """Of the whole file."""


def foreign_bytes(path: Path) -> bytes:
    """Read a file of foreign numbers. Raises OSError, and ValueError for what is no file of a table's size."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError("is no plain file")
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"over {MOST_BYTES >> 20} MiB; a table of numbers is a few lines of text")
    return data


def foreign_copy(store: Store, sha256: str) -> Path:
    """Return where the copy of a file lies that no sweep refers to, but a report was given."""
    return store.root / "reports" / "foreign" / f"{sha256}.csv"


def kept_foreign(store: Store, hashes: Iterable[str]) -> list[Foreign]:
    """Read back the files that reports were given, by their hashes; one that is not kept has no rows."""
    paths = (foreign_copy(store, sha256) for sha256 in hashes if re.fullmatch(r"[0-9a-f]{64}", sha256))
    return [row for path in paths if path.is_file() for row in read_foreign(path.read_bytes(), path.name)]


def read_foreign(data: bytes, name: str) -> list[Foreign]:
    """Read a file of foreign numbers.

    Its columns: `value` and `source`, where wanted `std`, `n` and `metric` (else accuracy), and axes by name; an empty
    cell leaves an axis open. Raises ValueError that names the line.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: list[Foreign] = []
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        heads = [head.strip() for head in next(rows, [])]
        _check_heads(heads)
        for row in rows:
            if len(found) >= MOST_ROWS:
                raise ValueError(f"line {rows.line_num}: over {MOST_ROWS:,} rows")
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(heads):
                raise ValueError(f"line {rows.line_num}: {len(row)} cells under {len(heads)} columns")
            found.append(_row(dict(zip(heads, row, strict=True)), name, rows.line_num, sha256))
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from None
    if not found:
        raise ValueError("has no rows")
    return found


def _check_heads(heads: Sequence[str]) -> None:
    for wanted in ("value", "source"):
        if wanted not in heads:
            raise ValueError(f"line 1: has no column {wanted!r}{nearest(wanted, heads)}; it needs value and source")
    if twice := [head for head in heads if heads.count(head) > 1]:
        raise ValueError(f"line 1: has two columns {short(twice[0])}")
    if not all(heads):
        raise ValueError("line 1: a column has no name")


def _row(row: Mapping[str, str], name: str, line: int, sha256: str) -> Foreign:
    cells = {head: cell.strip() for head, cell in row.items()}
    metric = cells.get("metric") or "accuracy"
    if metric not in METRICS:
        raise ValueError(f"line {line}: {short(metric)} is no metric{nearest(metric, METRICS)}")
    if not cells["source"]:
        raise ValueError(f"line {line}: has no source; say where the number is from")
    value = _number(cells["value"], "value", line)
    std = _number(cells["std"], "std", line) if cells.get("std") else None
    n = _number(cells["n"], "n", line) if cells.get("n") else None
    if n is not None and (n < 1 or n != int(n)):
        raise ValueError(f"line {line}: n {n:g} is not allowed; write how many runs it is the mean of")
    labels = {head: cell for head, cell in cells.items() if cell and head not in (*NUMBERS, "metric", "source")}
    if "sparsity" in labels:
        try:
            labels["sparsity"] = read_sparsity(labels["sparsity"]).label
        except ValueError as error:
            raise ValueError(f"line {line}: sparsity: {error}") from None
    return Foreign(labels, metric, value, std, None if n is None else int(n), cells["source"], name, line, sha256)


def _number(text: str, head: str, line: int) -> float:
    try:
        value = float(text.removesuffix("%")) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (head != "value" and value < 0):
        raise ValueError(f"line {line}: {head} {short(text)} is not allowed; write a number such as 93.4")
    return value
