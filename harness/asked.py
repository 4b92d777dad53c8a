"""What was named on the command line: a sweep (by name, its newest plan; by file, the plan it has now), and a stage."""

from __future__ import annotations

import re
import tempfile
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from harness.chosen import choose
from harness.errors import UserError
from harness.planfile import SavedPlan, as_saved, find_plan, read_plan
from harness.store import Store
from harness.terminal import command, short_path, store_option

if TYPE_CHECKING:
    from harness.plan import Plan
    from harness.spec import Sweep

FILES = (".yaml", ".yml")


def plan_of(given: str, store: Store, data: Path | None = None) -> SavedPlan:
    """Return a sweep's newest plan by its name; of a file, the plan that it would have now."""
    if not given.endswith(FILES):
        return read_plan(find_plan(store, given))
    if store.root.is_dir():
        sweep, plan = plan_file(given, store, data)
    else:  # looking creates no store: what is remembered in one goes into a folder that is removed
        with tempfile.TemporaryDirectory() as nowhere:
            sweep, plan = plan_file(given, Store(Path(nowhere)), data)
    return as_saved(plan, sweep)


def plan_file(given: str, store: Store, data: Path | None) -> tuple[Sweep, Plan]:
    """Return a sweep file as it was read, and the plan that it has now."""
    from harness.check import load_sweep
    from harness.declaring import check_claims
    from harness.planner import data_folder, make_plan

    sweep = load_sweep(Path(given))
    plan = make_plan(sweep, store, data_folder(sweep, data))
    check_claims(sweep, plan)
    return sweep, plan


def reported(given: str, store: Store, data: Path | None = None) -> SavedPlan:
    """Return the plan to report on. Raises UserError for a file whose data sets are not here to be told apart."""
    saved = plan_of(given, store, data)
    if missing := saved.plan.missing():
        shown = command("report", saved.plan.name, store=store.root)
        by_name = f"name the sweep to have what the store knows of it: {shown}"
        raise UserError(f"{missing[0]}; or {by_name}")
    return saved


def sweep_file(saved: SavedPlan, store: Store) -> str:
    """Return the path of a plan's file from here: as it was named, or, named elsewhere, beside the store.

    Of two that are there, it is the one that says what was planned.
    """
    named, kept = Path(saved.declared.file), store.sweep(saved.plan.name) / "sweep.yaml"
    there = [path for path in (named, store.root.parent / named) if path.is_file()]
    if len(there) > 1 and kept.is_file():
        there.sort(key=lambda path: path.read_bytes() != kept.read_bytes())
    return short_path(there[0] if there else named)


def beside(file: Path, name: str, store: Path) -> str:
    """Return where a sweep that is new to a store was run before: in the one beside its file. Else nothing."""
    other = file.parent / store
    if Store(store).sweep(name).exists() or not Store(other).sweep(name).is_dir():
        return ""
    return f"{name} is new to the store {store}; to go on with what {other} has of it:{store_option(other)}"


def edited(given: str, saved: SavedPlan, store: Store) -> bool:
    """Return whether the file of a sweep that was named is there and says other things than when it was planned."""
    if given.endswith(FILES):
        return False
    file, kept = Path(sweep_file(saved, store)), store.sweep(saved.plan.name) / "sweep.yaml"
    try:
        return bool(saved.declared.file) and file.read_bytes() != kept.read_bytes()
    except OSError:
        return False


def find_stage(saved: SavedPlan, given: str, option: str) -> str:
    """Return the key of the one stage that a cell's axes, or a key's first digits, name.

    Raises UserError, which names the option that it was given with.
    """
    return find_stages(saved, given, option, several=False)[0]


def find_stages(saved: SavedPlan, given: str, option: str, several: bool = True) -> list[str]:
    """Return the keys of the stages that cells' axes, or a key's first digits, name.

    Raises UserError, which names the option that it was given with.
    """
    if re.fullmatch(r"[0-9a-f]{4,32}", given):
        keys = [key for key in saved.plan.stages if key.startswith(given)]
        if len(keys) != 1:
            raise UserError(f"{option} {given}: {len(keys)} stages' keys begin so; give more digits, or a cell's axes")
        return keys
    places = saved.places()
    found = list(compress(places, choose(given, option, [labels for labels, _ in places])))
    if not several and len({key for _, key in found}) > 1:
        open_axes = [a for a in saved.axes if len({cell[a] for cell, _ in found}) > 1]
        open_axes = [a for a in open_axes if a != "ticket_seed" or "seed" not in open_axes]  # it follows the seed
        raise UserError(
            f"{option} {given}: {len(found)} cells match; they differ in {', '.join(open_axes)}; name those too"
        )
    return list(dict.fromkeys(key for _, key in found))
