"""What a report must know of a cell beside its labels, as plain values that a plan's file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from harness.catalog import CATALOGUED
from harness.cell import Cell
from harness.protocol import Protocol


@dataclass(frozen=True)
class Facts:
    """The parts of a cell that its labels do not tell. The protocol's fields are by name, defaults included."""

    mask: str = ""
    """The method's name, without settings."""
    plain_mask: str = ""
    """The mask's label without its control."""
    share: float = 0.0
    """Nominal share of weights removed."""
    recipe: str = ""
    """The recipe's name, without knobs."""
    parts: tuple[str, ...] = ()
    dev: str = ""
    """How the dev split is cut."""
    augment: str = ""
    """How training images are augmented, in words, where the catalog's entry of the data set does not tell."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    trials: int | None = None
    """How many trials it took to find its settings, where a search did."""
    tuned_by: str = ""

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Facts:
        """Read facts back. Raises TypeError for other fields."""
        return cls(**{**body, "parts": tuple(body["parts"])})

    def dump(self) -> dict[str, Any]:
        """Return the facts as plain values."""
        return {**asdict(self), "parts": list(self.parts)}


NONE = Facts()


class Place(NamedTuple):
    """A cell as a plan's file holds it: the labels of its axes, the stage it ends in, and its facts."""

    labels: tuple[str, ...]
    key: str
    facts: Facts = NONE


def fact_reader() -> Callable[[Cell], Facts]:
    """Return a function from cells to facts that makes equal ones once."""
    known: dict[Any, Facts] = {}
    protocols: dict[int, tuple[Protocol, Mapping[str, Any]]] = {}

    def read(cell: Cell) -> Facts:
        here = (cell.mask, cell.sparsity, cell.recipe, cell.dev, _augmented(cell), cell.tuned, id(cell.protocol))
        if here not in known:
            if id(cell.protocol) not in protocols:
                protocols[id(cell.protocol)] = (cell.protocol, cell.protocol.model_dump(mode="json"))
            known[here] = Facts(
                cell.mask.name,
                cell.mask.without("control").label,
                cell.sparsity.share,
                cell.recipe.text,
                tuple(part.name for part in cell.recipe.parts),
                cell.dev,
                _augmented(cell),
                protocols[id(cell.protocol)][1],
                cell.tuned.trials if cell.tuned else None,
                cell.tuned.metric if cell.tuned else "",
            )
        return known[here]

    return read


def _augmented(cell: Cell) -> str:
    if cell.protocol.augment == "standard" and cell.dataset.name in CATALOGUED:
        return ""
    pad, flip = cell.augment
    if not pad and not flip:
        return "no augmentation"
    return f"{f'random crops padded by {pad}' if pad else 'no crops'} and {'horizontal' if flip else 'no'} flips"
