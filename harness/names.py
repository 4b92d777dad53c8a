"""Names that an axis may use, the catalog's, other libraries' and the user's own, and the choices made of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from harness.catalog import DATASETS
from harness.errors import short, usable_path
from harness.offered import find_offered, offers
from harness.plugins import Plugin, find_plugin
from tost.catalog import (
    CONTROL,
    ENGINE,
    LIBRARIES,
    MASKS,
    MODELS,
    PARTS,
    Entry,
    Knob,
    MaskMethod,
    Value,
    nearest,
    settings,
)

DENSE = "dense"
SMALL = "small_dense"
"""A dense network of the sparse one's parameter count, in place of a mask."""
FILE = "file"
SPECIAL: Mapping[str, MaskMethod] = {
    SMALL: MaskMethod("", at="none"),
    FILE: MaskMethod(
        "tost.masks.files:read_masks",
        at="file",
        knobs={"match": Knob("name", choices=("name", "order")), "entry": Knob("auto"), "control": CONTROL},
    ),
}
OWN = "; one of your own is named under `use:`, or comes with an installed package"
"""What an error adds where no name is near."""
KINDS = {"dataset": "data set", "arch": "architecture", "mask": "mask method", "part": "recipe part"}


@dataclass(frozen=True)
class Choice:
    """A named method with the settings that differ from its defaults."""

    name: str
    given: tuple[tuple[str, Value], ...] = ()
    folder: str = ""
    written: str = field(default="", compare=False)
    """The path as the sweep file has it, which is how tables show it."""

    @cached_property
    def label(self) -> str:
        """Return the name as a table prints it."""
        shown = f"{self.name}:{self.written}" if self.written else self.name
        return shown + (f"({', '.join(f'{k}={v}' for k, v in self.given)})" if self.given else "")

    def get(self, knob: str, default: Value) -> Value:
        """Return a setting that differs from its default, or the default."""
        return dict(self.given).get(knob, default)

    def without(self, *knobs: str) -> Choice:
        """Return the choice with some settings at their defaults."""
        return replace(self, given=tuple((k, v) for k, v in self.given if k not in knobs))


class Names:
    """All names that an axis may use: the catalog's, the user's own, and those that installed packages offer.

    A catalog's name is always the catalog's, and a name under `use:` means what is said there.
    """

    def __init__(self, use: Mapping[str, str], folder: Path) -> None:
        self.use, self.folder = dict(use), folder
        self.plugins: dict[tuple[str, str], Plugin] = {}

    def entry(self, kind: str, name: str) -> Entry:
        """Return the table line of a name. Raises ValueError naming what is allowed, and the nearest name."""
        table: Mapping[str, Entry] = {"dataset": DATASETS, "arch": MODELS, "mask": MASKS, "part": PARTS}[kind]
        if name in table:
            return table[name]
        if kind == "mask" and name in SPECIAL:
            return SPECIAL[name]
        if kind == "arch" and ":" in name:
            return _library_entry(name)
        if (kind, name) not in self.plugins:
            plugin = self._own(kind, name, table)
            plugin.check(kind)
            if kind == "mask":
                plugin = replace(plugin, knobs={**ENGINE, **plugin.knobs})
            self.plugins[kind, name] = plugin
        return self.plugins[kind, name]

    def _own(self, kind: str, name: str, table: Mapping[str, Entry]) -> Plugin:
        if name in self.use:
            return find_plugin(self.use[name], self.folder)
        if name in offers(kind):
            return find_offered(name, offers(kind)[name])
        special = {"mask": [DENSE, SMALL, "file:PATH"], "arch": [f"{lib}:NAME" for lib in LIBRARIES]}
        known = list(dict.fromkeys([*table, *special.get(kind, []), *self.use, *offers(kind)]))
        hint = nearest(name, known) or OWN
        raise ValueError(f"{short(name)} is no {KINDS[kind]}; choose from {', '.join(known)}{hint}")


@cache
def library_networks(library: str) -> frozenset[str]:
    """Return the names of a library's classification networks, read from its files: importing it takes seconds."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.origin:
        raise ValueError(f"{library} is not installed; run: pip install {library}")
    registered = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
    files = (Path(spec.origin).parent / "models").glob("*.py")
    return frozenset(name for file in files for name in registered.findall(file.read_text()))


def library_version(library: str) -> str:
    """Return a library's version, without its build."""
    return importlib.metadata.version(library).partition("+")[0]


def _library_entry(reference: str) -> Entry:
    library, _, name = reference.partition(":")
    if library not in LIBRARIES:
        raise ValueError(f"{short(reference)}: {library!r} is no library; choose from {', '.join(LIBRARIES)}")
    known = library_networks(library)
    if name not in known:
        raise ValueError(f"{short(name)} is no network of {library}, which has {len(known)}{nearest(name, known)}")
    return LIBRARIES[library]


def single(value: object) -> tuple[str, Mapping[str, Any]]:
    """Split `name` or `{name: {knob: value}}`."""
    if isinstance(value, str):
        return value, {}
    if isinstance(value, dict) and len(value) == 1:
        name, given = next(iter(value.items()))
        if given is None or isinstance(given, dict):
            return str(name), given or {}
    raise ValueError(f"{short(value)} is not allowed; write a name or {{name: {{knob: value}}}}")


def read_choice(kind: str, value: object, names: Names) -> Choice:
    """Read a value of the axes dataset, arch or mask."""
    name, given = single(value)
    folder, written = "", ""
    if (kind == "dataset" and name.startswith("imagefolder")) or (kind == "mask" and re.match(rf"{FILE}(:|$)", name)):
        name, _, written = name.partition(":")
        folder = _path(name, written, names)
    if kind == "mask" and name == DENSE:
        if given:
            raise ValueError("dense has no knobs")
        return Choice(DENSE)
    entry = names.entry(kind, name)
    if isinstance(entry, Plugin) and kind == "dataset" and "folder" in entry.parameters:
        if "folder" not in given:
            raise ValueError(f"{name} reads a folder; write {{{name}: {{folder: PATH}}}}")
        written = str(given["folder"])
        folder = str(usable_path(written, names.folder))
        given = {k: v for k, v in given.items() if k != "folder"}
    for knob, listed in given.items():
        if isinstance(listed, list) and knob in entry.knobs:
            each = [f"{{{name}: {{{knob}: {item}}}}}" for item in listed[:3] or ["VALUE"]]
            shown = ", ".join([*each, *(["..."] if len(listed) > 3 else [])])
            raise ValueError(f"{name}: {knob} takes one value; for several, list the method once for each: [{shown}]")
    try:
        full = settings(entry, given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return Choice(name, tuple((k, v) for k, v in full.items() if v != entry.knobs[k].default), folder, written)


def _path(name: str, written: str, names: Names) -> str:
    if name == FILE:
        path = usable_path(written, names.folder) if written else None
        if path is None or not path.is_file():
            raise ValueError(f"write file:PATH with a file of masks; {short(written)} is none")
        return str(path)
    if not written:
        raise ValueError("write imagefolder:PATH with the folder that holds train/ and test/")
    return str(usable_path(written, names.folder))
