"""Masks: which weights of a network are kept, found by a score and an exact selection."""

from tost.masks.apply import MaskError, Masks, Pruned, apply_masks, density, left_out, prunable
from tost.masks.find import find_masks
from tost.masks.select import imp_count, keep_count, select

__all__ = [
    "MaskError",
    "Masks",
    "Pruned",
    "apply_masks",
    "density",
    "find_masks",
    "imp_count",
    "keep_count",
    "left_out",
    "prunable",
    "select",
]
