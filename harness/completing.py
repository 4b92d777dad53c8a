"""What a shell completes on Tab: sweeps by name and file, and where workers live."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from harness.catalog import DATASETS, HERE
from harness.terminal import STORE


def sweeps_here(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete a sweep: the names that the store has, and the files here and in sweeps/."""
    from harness.planfile import sweep_names  # which takes longer to load than a help text to print
    from harness.store import Store

    names = sweep_names(Store(Path(ctx.params.get("store") or STORE)))
    return beginning([*names, *files_here("")], incomplete)


def files_here(incomplete: str) -> list[str]:
    """Complete a sweep file: those here and in sweeps/."""
    found = [*Path().glob("*.yaml"), *Path().glob("*.yml"), *Path().glob("sweeps/*.yaml")]
    return beginning(sorted(map(str, found)), incomplete)


def launchers_here(incomplete: str) -> list[str]:
    """Complete where workers live: launchers, and the profiles in slurm/."""
    return [*beginning(HERE, incomplete), *profiles_here(incomplete)]


def profiles_here(incomplete: str) -> list[str]:
    """Complete a cluster profile: those in slurm/."""
    return beginning(sorted(map(str, Path().glob("slurm/*.yaml"))), incomplete)


def datasets_here(incomplete: str) -> list[str]:
    """Complete a data set that can be fetched."""
    return beginning([name for name, entry in DATASETS.items() if entry.fetch or name == "digits"], incomplete)


def beginning(words: Iterable[str], incomplete: str) -> list[str]:
    """Return the words that begin so."""
    return [word for word in words if word.startswith(incomplete)]
