"""A sweep's launcher as it was last used, kept in the store: for cron, and for workers that submit others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from harness.errors import UserError
from harness.launch.profiles import load_profile
from harness.launch.slurm import Slurm
from harness.store import Store, read_json, write_whole

PROFILE, ARGV = "profile.yaml", "launch.json"


def keep(store: Store, name: str, profile: Path, argv: Sequence[str], plan: str) -> None:
    """Keep a profile, as it is now, and what its workers are told; that of a part only where nothing was kept."""
    if plan and (store.sweep(name) / ARGV).exists():
        return
    folder = store.sweep(name)
    write_whole(folder / PROFILE, profile.read_bytes())
    write_whole(folder / ARGV, json.dumps({"argv": list(argv)}).encode())


def kept(store: Store, name: str) -> Slurm:
    """Return the launcher that was kept. Raises UserError where none was."""
    folder = store.sweep(name)
    said = read_json(folder / ARGV)
    if said is None:
        raise UserError(
            f"{name}: nothing was ever submitted to a cluster for it; use the sweep command with --via once"
        )
    profile, document = load_profile(folder / PROFILE)
    return Slurm(profile, store, name, said["argv"], document)
