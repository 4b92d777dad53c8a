"""A sweep's launcher as it was last used, kept in the store: for cron, for --cancel, and for workers that submit."""

from __future__ import annotations

from harness.errors import UserError
from harness.launch.profiles import load_profile
from harness.launch.slurm import ARGV, PROFILE, Slurm
from harness.store import Store, read_json


def last_used(store: Store, name: str) -> Slurm | None:
    """Return the launcher of the profile that a sweep's workers were last submitted with; None where none ever were."""
    folder = store.sweep(name)
    said = read_json(folder / ARGV)
    if said is None:
        return None
    profile, document = load_profile(folder / PROFILE)
    return Slurm(profile, store, name, said["argv"], document, cluster=said.get("cluster", ""))


def kept(store: Store, name: str) -> Slurm:
    """Return the launcher that was kept. Raises UserError where none was."""
    if launcher := last_used(store, name):
        return launcher
    raise UserError(f"{name}: nothing was ever submitted to a cluster for it; use the sweep command with --via once")
