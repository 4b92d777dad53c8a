"""A distributed benchmark harness for training sparse neural networks."""

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["load_curves", "load_mask", "load_results"]

if sys.argv[:1] == ["-m"] and find_spec("typer") is None:  # python -m harness.NAME, by another Python
    sys.stderr.write(
        f"{sys.executable} lacks the packages that harness needs; activate the environment that it was installed in "
        "(source .venv/bin/activate), or install it there: pip install .\n"
    )
    raise SystemExit(2)

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
