"""The parts of the ToST recipe (Jaiswal et al., 2022), each a component with attach, step and detach."""

from tost.recipe.part import Criterion, Part

__all__ = ["Criterion", "Part"]
