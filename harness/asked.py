"""A sweep as it was named on the command line: by name, the store's newest plan; by its file, the plan it has now."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UserError
from harness.planfile import SavedPlan, as_saved, find_plan, read_plan
from harness.store import Store

FILES = (".yaml", ".yml")


def plan_of(given: str, store: Store, data: Path | None = None) -> SavedPlan:
    """Return a sweep's newest plan by its name; of a file, the plan that it would have now."""
    if not given.endswith(FILES):
        return read_plan(find_plan(store, given))
    from harness.check import load_sweep
    from harness.declaring import check_claims
    from harness.planner import data_folder, make_plan

    sweep = load_sweep(Path(given))
    plan = make_plan(sweep, store, data_folder(sweep, data))
    check_claims(sweep, plan)
    return as_saved(plan, sweep)


def reported(given: str, store: Store, data: Path | None = None) -> SavedPlan:
    """Return the plan to report on. Raises UserError for a file whose data sets are not here to be told apart."""
    saved = plan_of(given, store, data)
    if missing := saved.plan.missing():
        by_name = f"name the sweep to have what the store knows of it: harness report {saved.plan.name}"
        raise UserError(f"{missing[0]}; or {by_name}")
    return saved


def edited(given: str, saved: SavedPlan, store: Store) -> bool:
    """Return whether the file of a sweep that was named is there and says other things than when it was planned."""
    if given.endswith(FILES):
        return False
    file, kept = Path(saved.declared.file), store.sweep(saved.plan.name) / "sweep.yaml"
    try:
        return bool(saved.declared.file) and file.read_bytes() != kept.read_bytes()
    except OSError:
        return False
