"""A distributed benchmark harness for training sparse neural networks."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["load_curves", "load_mask", "load_results"]

if TYPE_CHECKING:
    from harness.results import load_curves, load_mask, load_results
else:

    def __getattr__(name: str) -> object:
        """Load what a notebook needs when it is asked for: commands must not pay for it."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from harness import results

        return getattr(results, name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
