"""Tables of the fields of sweep files and cluster profiles, from the models that check them."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from harness.declared import Claim, Table
from harness.form import Asha, Launch, Search, SweepFile, Wandb, When
from harness.launch.profiles import Profile, Request
from harness.protocol import Protocol
from reference.text import plain, table

SWEEP: Mapping[str, type[BaseModel]] = {
    "The file": SweepFile,
    "protocol": Protocol,
    "when": When,
    "tables": Table,
    "claims": Claim,
    "launch": Launch,
    "wandb": Wandb,
    "search": Search,
    "search.scheduler": Asha,
}
"""The sections of a sweep file, and what checks each."""
PLAIN: Mapping[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    Any: "any value",
}
EMPTY: tuple[Any, ...] = (None, "", [], {}, ())


def sweep_file() -> str:
    """Return a table for each section of a sweep file."""
    return "\n\n".join(f"## {name}\n\n{model.__doc__}\n\n{rows(model)}" for name, model in SWEEP.items())


def profile() -> str:
    """Return the table of a profile, what a job asks for first."""
    own = {name: field for name, field in Profile.model_fields.items() if name not in Request.model_fields}
    return f"## What a job asks for\n\n{Request.__doc__}\n\n{rows(Request)}\n\n## How workers are used\n\n{_table(own)}"


def rows(model: type[BaseModel]) -> str:
    """Return the table of a model's fields."""
    return _table(model.model_fields)


def _table(fields: Mapping[str, FieldInfo]) -> str:
    return table(
        ["field", "takes", "default", "meaning"],
        [
            [
                f"`{field.alias or name}`",
                kind(field.annotation, field.metadata),
                default(field),
                " ".join((field.description or "").split()),
            ]
            for name, field in fields.items()
        ],
    )


def default(field: FieldInfo) -> str:
    """Return what stands for a field that is left out."""
    if field.is_required():
        return "to be given"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value in EMPTY or isinstance(value, BaseModel):
        return "none"
    return f"`{plain(value)}`"


def kind(annotation: Any, limits: Any = ()) -> str:
    """Return in words what a field takes."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        given = [mark for extra in inner[1:] for mark in getattr(extra, "metadata", [extra])]
        return kind(inner[0], given)
    if origin in (Union, types.UnionType):
        return " or ".join(kind(one, limits) for one in inner if one is not type(None))
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        return f"list of {kind(inner[0])}" + _bounds(limits)
    if origin is tuple:
        return f"list of {len(inner)} values"
    if origin is dict:
        return f"mapping to {kind(inner[1])}" if inner[1] is not Any else "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        section = next((name for name, model in SWEEP.items() if model is annotation), "")
        return f"[fields](#{section.replace('.', '')})" if section else "mapping of these fields"
    return PLAIN[annotation] + _bounds(limits)


def _bounds(limits: Any) -> str:
    said = []
    for name, text in {"ge": "from", "gt": "above", "le": "to", "lt": "below", "min_length": "at least"}.items():
        found = [value for limit in limits if (value := getattr(limit, name, None)) is not None]
        said += [f"{text} {value:,}" for value in found]
    return ", " + " ".join(said) if said else ""
