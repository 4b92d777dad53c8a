"""Every cell as a row of a pandas frame: what a notebook loads, and what `cells.csv` and `cells.parquet` hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.catalog import METRICS
from harness.report.frame import Frame
from harness.report.measured import CURVES

if TYPE_CHECKING:
    import pandas as pd

DONE = "done"
TOLD = ("accuracy", "test@last", "test@best-dev", "best_epoch", "dev_accuracy")
"""Metrics that stand before the others."""
MEASURED = "_measured"
"""Follows the name of a metric that is an axis too: `epochs`, whose label may be `match_cost(gsk)`."""
IDENTITIES = ("mask", "theta0", "scales", "order")
STAMP = ("device", "device_name", "threads", "layout", "execution", "torch", "python", "harness")
"""What a cell's row has of its stamp."""
NAMED = ("sweep", "dataset", "arch", "mask", "sparsity", "recipe")
"""Axes whose values are names, even where one reads as a number."""
TIME = "datetime64[ms, UTC]"

DTYPES: Mapping[str, str] = {
    "sparsity_share": "Float64",
    "tuning_trials": "Int64",
    "at_chance": "boolean",
    "diverged": "boolean",
    "seconds": "Float64",
    "seconds_before": "Float64",
    "threads": "Int64",
    "finished": TIME,
    **{name: "Int64" if kind == "count" else "Float64" for name, kind in METRICS.items()},
}
"""Types of columns; an axis is what its labels are, anything else text."""


def cells_frame(frame: Frame) -> pd.DataFrame:
    """Return one typed row a cell, in grid order."""
    import pandas as pd

    rows = list(_rows(frame))
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    axes = {"sweep", *_axes(frame)}
    found = {
        name: _axis(name, values)
        if name in axes
        else _column(values, DTYPES.get(name.removesuffix(MEASURED), "string"))
        for name, values in columns.items()
    }
    if rows:  # sparsities by size, not by place: the 0% of dense networks comes last in most grids
        shares = dict(zip(columns["sparsity"], columns["sparsity_share"], strict=True))
        found["sparsity"] = pd.Categorical(columns["sparsity"], sorted(shares, key=shares.__getitem__), ordered=True)
    return pd.DataFrame(found)


def curves_frame(frame: Frame) -> pd.DataFrame:
    """Return one typed row for every epoch of every cell that has any: sweep, axes, epoch, curves, key."""
    import pandas as pd

    cells = cells_frame(frame)
    told = [name for name in cells if name in {"sweep", "sparsity_share", *_axes(frame)}]
    curves = [line.measured.curves if line.measured else {} for line in frame.lines]
    lengths = [max(map(len, of_one.values()), default=0) for of_one in curves]
    places = [place for place, length in enumerate(lengths) for _ in range(length)]
    found = cells.iloc[places][told].reset_index(drop=True)
    found["epoch"] = pd.array([n for length in lengths for n in range(1, length + 1)], dtype="Int64")
    for name in CURVES:
        values = [v for of_one, n in zip(curves, lengths, strict=True) for v in of_one.get(name) or [None] * n]
        found[name] = _column(values, "boolean" if name == "ghosts" else "Float64")
    found["key"] = cells["key"].iloc[places].reset_index(drop=True)
    return found


def _axes(frame: Frame) -> list[str]:
    """Return the axes, and the protocol fields in which sweeps differ: without them two cells would look the same."""
    return list(dict.fromkeys([*frame.axes, *frame.varying]))


def _rows(frame: Frame) -> Iterator[dict[str, Any]]:
    """Yield every cell untyped: axes, both test columns, metrics, identities, its state, its stamp, and the key."""
    several = len({line.sweep for line in frame.lines}) > 1
    tuned = any(line.facts.trials is not None for line in frame.lines)
    axes = _axes(frame)
    clear = {name: f"{name}{MEASURED}" if name in axes else name for name in METRICS}
    for line in frame.lines:
        place: dict[str, Any] = {"sweep": line.sweep} if several else {}
        for axis in axes:
            place[axis] = line.axis(axis)
            if axis == "sparsity":
                place["sparsity_share"] = line.facts.share
        stamp = line.measured.stamp if line.measured else {}
        provenance = line.measured.provenance if line.measured else {}
        yield {
            **place,
            **({"tuning_trials": line.facts.trials or 0} if tuned else {}),
            "reported": line.facts.protocol.get("report"),
            "accuracy": line.value,
            **{name: line.metrics.get(name) for name in TOLD[1:]},
            **{clear[name]: _plain(line.metrics.get(name)) for name in METRICS if name not in TOLD},
            **{f"{name}_id": getattr(line.identity, name) for name in IDENTITIES},
            "state": line.reason or DONE,
            "cause": line.cause,
            "diverged": line.reason == "diverged",
            "at_chance": line.at_chance if line.measured else None,
            **{name: stamp.get(name) for name in STAMP},
            "seconds": provenance.get("seconds"),
            "seconds_before": line.seconds_before,
            "finished": provenance.get("finished"),
            "key": line.key,
        }


def _plain(value: Any) -> Any:
    return len(value) if isinstance(value, list) else value


def _axis(axis: str, labels: Sequence[str]) -> Any:
    """Return an axis as numbers or truths where all its labels are some, otherwise as names in the grid's order."""
    import pandas as pd

    values = [_read(label) for label in labels]
    kinds = {type(value) for value in values if value is not None}
    if axis not in NAMED and kinds <= {int, float}:
        return _column(values, "Float64" if float in kinds else "Int64")
    if axis not in NAMED and kinds == {bool}:
        return _column(values, "boolean")
    return pd.Categorical([label or None for label in labels], list(dict.fromkeys(filter(None, labels))), ordered=True)


def _read(label: str) -> str | int | float | bool | None:
    if label in ("", "True", "False"):
        return label == "True" if label else None
    for number in (int, float):
        try:
            return number(label)
        except ValueError:
            continue
    return label


def _column(values: Iterable[Any], dtype: Any) -> Any:
    """Return values as a pandas array of a type, missing where there is none."""
    import pandas as pd

    if dtype == TIME:
        return pd.to_datetime(pd.Series(list(values), dtype=object), utc=True, errors="coerce").astype(dtype)
    there = [None if value is None or value == "" else value for value in values]
    if dtype == "Int64" and any(isinstance(value, float) or abs(value or 0) >= 2**63 for value in there):
        dtype = "Float64"  # operations of a very long training; axes may be both
    return pd.array(there, dtype=dtype)
