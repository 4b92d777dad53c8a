"""Methods that installed packages offer by entry points: found in their metadata, read without being run."""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from harness.plugins import Plugin, find_module, make_plugin, with_siblings

GROUPS = {"dataset": "tost.datasets", "arch": "tost.archs", "mask": "tost.masks", "part": "tost.parts"}
"""The group of entry points for every kind of method."""


@dataclass(frozen=True)
class Offer:
    """A name that an installed package gives to one of its functions or classes."""

    reference: str
    """`package.module:function`."""
    package: str
    """The distribution's name and version."""


@cache
def offers(kind: str) -> dict[str, tuple[Offer, ...]]:
    """Return what installed packages offer of a kind, by name; names that are no plain words are left out."""
    found: dict[str, list[Offer]] = {}
    for point in sorted(entry_points(group=GROUPS[kind]), key=lambda point: (point.name, _package(point))):
        if point.name.isidentifier() and not keyword.iskeyword(point.name):
            found.setdefault(point.name, []).append(Offer(point.value, _package(point)))
    return {name: tuple(some) for name, some in found.items()}


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else ""


def find_offered(name: str, some: Sequence[Offer]) -> Plugin:
    """Read the method that a name means. Runs none of it. Raises ValueError that says whose fault it is."""
    if len(some) > 1:
        raise ValueError(
            f"{name} is offered by {' and by '.join(offer.package for offer in some)}; uninstall one of them, "
            "or say with `use:` which function is meant"
        )
    (offer,) = some
    module, _, attribute = offer.reference.partition(":")
    try:
        if not attribute.isidentifier():
            raise ValueError("an entry point is written NAME = package.module:function")
        files, root = _package_files(module)
        return make_plugin(attribute, files, root, offer.package)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}, which {offer.package} offers as {offer.reference}: {error}") from None


def _package_files(module: str) -> tuple[list[Path], Path]:
    """Return a module's file and all other Python files of its package, and the folder that the package is in."""
    spec, top = find_module(module), find_module(module.partition(".")[0])
    if spec is None or top is None or not spec.origin or not top.origin:
        raise ValueError(f"there is no module {module} where packages are installed")
    if not spec.origin.endswith(".py"):
        raise ValueError("is compiled; a method must be in a Python file that can be hashed")
    path, package = Path(spec.origin), Path(top.origin).parent
    if not top.submodule_search_locations:
        return with_siblings(path), path.parent
    inside = sorted(package.rglob("*"))
    if compiled := [file for file in inside if file.name.endswith(tuple(EXTENSION_SUFFIXES))]:
        raise ValueError(f"{compiled[0]} is compiled; only packages of Python files can be kept in the store")
    others = [file for file in inside if file.suffix == ".py" and file.is_file() and file != path]
    return [path, *others], package.parent
