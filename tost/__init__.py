"""Sparse training recipes, masks and networks, usable in any training loop."""

from typing import TYPE_CHECKING

__all__ = [
    "GhostSkips",
    "GradualPruning",
    "LabelSmoothing",
    "MaskError",
    "Masks",
    "Overlap",
    "Part",
    "Pruned",
    "RescaledInit",
    "Rescaling",
    "SoftActivation",
    "apply_masks",
    "density",
    "find_masks",
    "find_scales",
    "fit_masks",
    "imp_count",
    "keep_count",
    "left_out",
    "load_masks",
    "overlap",
    "prunable",
    "read_masks",
    "save_masks",
    "select",
    "shuffled",
    "write_masks",
]

PLACES = (
    "tost.masks",
    "tost.masks.files",
    "tost.masks.io",
    "tost.masks.controls",
    "tost.masks.schedule",
    "tost.recipe",
    "tost.recipe.soft_activation",
    "tost.recipe.ghost_skips",
    "tost.recipe.rescaled_init",
    "tost.recipe.label_smoothing",
)
"""The modules that these names come from. Scores, networks and the accounting are in modules of their own."""

if TYPE_CHECKING:
    from tost.masks import (
        MaskError,
        Masks,
        Pruned,
        apply_masks,
        density,
        find_masks,
        imp_count,
        keep_count,
        left_out,
        prunable,
        select,
    )
    from tost.masks.controls import Overlap, overlap, shuffled
    from tost.masks.files import fit_masks, read_masks, write_masks
    from tost.masks.io import load_masks, save_masks
    from tost.masks.schedule import GradualPruning
    from tost.recipe import Part
    from tost.recipe.ghost_skips import GhostSkips
    from tost.recipe.label_smoothing import LabelSmoothing
    from tost.recipe.rescaled_init import RescaledInit, Rescaling, find_scales
    from tost.recipe.soft_activation import SoftActivation
else:

    def __getattr__(name: str) -> object:
        """Load a name's module, and torch with it, when it is asked for: the tables of `tost.catalog` need neither."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        modules = map(importlib.import_module, PLACES)
        return next(vars(module)[name] for module in modules if name in vars(module))

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
