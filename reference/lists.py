"""What an axis, a table or the protocol may name, from the catalogs of the library and the harness."""

from __future__ import annotations

from collections.abc import Mapping

from harness.catalog import DATASETS, LOSSES, MEANINGS, METRICS, OPTIMIZERS, PRESETS, SCHEDULES
from harness.declared import FIGURES, TABLES
from harness.names import SPECIAL
from reference.text import plain, table
from tost.catalog import ENGINE, LIBRARIES, MASKS, MODELS, PARTS, RECIPES, Entry, Knob, MaskMethod

KINDS = {"accuracy": "per cent, compared with the baseline", "share": "per cent", "count": "count"}
WHEN = {
    "init": "before training",
    "trained": "after a dense training",
    "chain": "after every round of a chain",
    "training": "while the sparse network trains",
    "file": "never: it is read",
    "none": "never",
}


def metrics() -> str:
    """Return every number that a table may show."""
    return table(
        ["metric", "printed as", "meaning"],
        [[f"`{name}`", KINDS[kind], MEANINGS[name]] for name, kind in METRICS.items()],
    )


def catalog() -> str:
    """Return all tables, a section each."""
    sections = {
        "Data sets": _datasets(),
        "Networks": table(
            ["name", "halvings of the image", "knobs"],
            [
                [f"`{name}`", str(entry.halvings), knobs(entry)]
                for name, entry in {**MODELS, **{f"{name}:NAME": found for name, found in LIBRARIES.items()}}.items()
            ],
        ),
        "Masks": table(
            ["name", "scored", "knobs, with their defaults"],
            [[f"`{name}`", _scored(entry), knobs(entry)] for name, entry in {**MASKS, **SPECIAL}.items()],
        ),
        "Knobs of a mask method of your own": _knobs(ENGINE),
        "Recipe parts": table(
            ["name", "knobs, with their defaults"], [[f"`{name}`", knobs(entry)] for name, entry in PARTS.items()]
        ),
        "Recipes": table(["name", "parts"], [[f"`{name}`", " ".join(parts)] for name, parts in RECIPES.items()]),
        "Optimizers, schedules, losses": _settings(),
        "Presets of the protocol": _presets(),
        "Table shapes": _shapes(),
        "Figures": table(["name", "what it shows"], [[f"`{name}`", said] for name, said in FIGURES.items()]),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())


def knobs(entry: Entry) -> str:
    """Return a method's knobs in one line."""
    return " ".join(f"`{name}: {plain(knob.default)}`" for name, knob in entry.knobs.items())


def _scored(entry: MaskMethod) -> str:
    return WHEN[str(entry.knobs["at"].default) if "at" in entry.knobs else entry.at]


def _allowed(knob: Knob) -> str:
    return " ".join(f"`{value}`" for value in knob.choices) or f"{knob.low:,g} to {knob.high:,g}"


def _knobs(given: Mapping[str, Knob]) -> str:
    return table(
        ["knob", "default", "allowed"],
        [[f"`{name}`", f"`{plain(knob.default)}`", _allowed(knob)] for name, knob in given.items()],
    )


def _datasets() -> str:
    rows = []
    for name, entry in DATASETS.items():
        crop = f"crops padded by {entry.pad}" + (", flips" if entry.flip else "")
        source = entry.hint or "comes with scikit-learn"
        got = f"`harness data fetch {name}`" if entry.fetch else ""
        rows.append([f"`{name}`", source, got, f"`{entry.dev}`", crop])
    return table(["name", "made of", "fetched by", "dev split", "augmentation"], rows)


def _settings() -> str:
    found = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "loss": LOSSES}
    rows = []
    for field, entries in found.items():
        for name, entry in entries.items():
            rows.append([f"`{field}: {name}`", " ".join(f"`{read}`" for read in getattr(entry, "fields", ()))])
    return table(["written", "protocol fields that it reads"], rows)


def _presets() -> str:
    return table(
        ["name", "what differs from the protocol's defaults"],
        [
            [f"`{name}`", " ".join(f"`{field}: {plain(value)}`" for field, value in fields.items()) or "nothing"]
            for name, fields in PRESETS.items()
        ],
    )


def _shapes() -> str:
    return table(
        ["name", "rows", "columns", "values", "compared with"],
        [
            [
                f"`{name}`",
                *(" ".join(f"`{axis}`" for axis in axes) for axes in (shape.rows, shape.columns, shape.values)),
                " ".join(f"`{axis}: {value}`" for axis, value in shape.compared.items()),
            ]
            for name, shape in TABLES.items()
        ],
    )
