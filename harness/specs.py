"""The blocks that specs are made of: what a key holds of a method, a recipe, a sparsity, the view of the images."""

from __future__ import annotations

from typing import Any

from harness.cell import Cell
from harness.names import DENSE, Choice, Names, library_version
from harness.plugins import Plugin
from harness.protocol import Protocol
from harness.recipes import Recipe
from tost.catalog import Model, settings

WINDOWS = {"early": (0.0, 1 / 6), "permanent": (2.0, 3.0)}


class Specs:
    """Turns choices into the blocks of a spec."""

    def __init__(self, names: Names) -> None:
        self.names = names

    def entry(self, kind: str, choice: Choice) -> dict[str, Any]:
        """Return what a key holds of a chosen method."""
        entry = self.names.entry(kind, choice.name)
        if isinstance(entry, Plugin):
            spec: dict[str, Any] = {"source": entry.source, "path": entry.path}
            spec |= {"package": entry.package} if entry.package else {}
        elif isinstance(entry, Model) and entry.library:
            spec = {"name": choice.name, "version": library_version(entry.library)}
        else:
            spec = {"name": choice.name, "version": entry.version}
        return {**spec, "args": dict(choice.given)} if choice.given else spec

    def at(self, mask: Choice) -> str:
        """Return when a mask method scores the network (see tost.catalog.MaskMethod), `none` for a dense one."""
        if mask.name == DENSE:
            return "none"
        entry = self.names.entry("mask", mask.name)
        return str(mask.get("at", entry.knobs["at"].default if "at" in entry.knobs else getattr(entry, "at", "init")))

    def recipe(self, recipe: Recipe, protocol: Protocol) -> list[dict[str, Any]]:
        """Return a recipe's parts with every window resolved to progress."""
        parts = []
        for choice in recipe.parts:
            spec = self.entry("part", choice)
            entry = self.names.entry("part", choice.name)
            if "window" in entry.knobs or (isinstance(entry, Plugin) and "window" in entry.parameters):
                name = str(settings(entry, dict(choice.given)).get("window", "default"))
                drop = protocol.first_drop
                window = WINDOWS.get(name, (drop / 2, drop * 89 / 90))
                spec["args"] = {**spec.get("args", {}), "window": list(window)}
            parts.append(spec)
        return parts

    def pruning(self, cell: Cell) -> dict[str, Any]:
        """Return what a mask depends on beside the network: method, sparsity, prunable set."""
        method = self.entry("mask", cell.mask.without("rewind"))
        spec: dict[str, Any] = {
            "method": method,
            "sparsity": cell.sparsity.canonical,
            "prunable": cell.protocol.prunable,
        }
        if cell.protocol.on_collapse != "allow":
            spec["on_collapse"] = cell.protocol.on_collapse
        return spec

    def views(self, cell: Cell) -> dict[str, Any]:
        """Return which images are held out for dev, and how pixels are scaled: trainings and scores depend on both."""
        mean, std = cell.images.mean, cell.images.std
        return {"dev": cell.dev, "normalize": [list(mean), list(std)] if mean else "measured"}

    def augment(self, cell: Cell) -> dict[str, Any]:
        """Return how training images are augmented; nothing where they are not."""
        pad, flip = cell.augment
        return {"augment": {"pad": pad, "flip": flip}} if pad or flip else {}
