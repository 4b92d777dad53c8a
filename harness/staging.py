"""Getting nodes without network ready: data sets made beforehand, files copied to where jobs read them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from harness.catalog import DATASETS
from harness.errors import UserError
from harness.launch.profiles import Profile


def copy_files(names: Iterable[str], data: Path, target: Path) -> list[str]:
    """Copy data sets' files from one data folder to another; return what was copied, in words.

    A file that is there with the same size and time is left alone.
    """
    said = []
    for name in dict.fromkeys(names):
        entry = DATASETS.get(name)
        if entry is None or not entry.files:
            said.append(f"{name}: has no files in the data folder")
            continue
        copied = 0
        for file in entry.files:
            for path in (data / file, (data / file).with_name(f"{Path(file).name}.gz")):
                if path.exists():
                    copied += copy(path, target / path.relative_to(data))
        said.append(f"{name}: {copied:,} files copied to {target}" if copied else f"{name}: is in {target} already")
    return said


def copy_named(profile: Profile) -> list[str]:
    """Copy what a profile names under `stage:` to shared places; return what was copied, in words.

    Targets with a variable in them are a node's own, and every job fills them itself.
    """
    said = []
    for source, target in profile.stage.items():
        if "$" in target:
            said.append(f"{source}: every job copies it to {target}")
            continue
        path = Path(source).expanduser()
        if not path.exists():
            raise UserError(f"stage: {source}: no such file or folder; mend it in the profile")
        copied = copy(path, Path(target).expanduser())
        said.append(f"{source}: {copied:,} files copied to {target}" if copied else f"{source}: is at {target} already")
    return said


def copy(source: Path, target: Path) -> int:
    """Copy a file, or a folder with all that is in it; return how many files that were."""
    if source.is_dir():
        return sum(copy(item, target / item.name) for item in sorted(source.iterdir()))
    status = source.stat()
    if target.exists():
        there = target.stat()
        if (there.st_size, there.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}-{os.getpid()}")
    shutil.copy2(source, draft)
    os.replace(draft, target)  # whole or not at all: a job may be reading
    return 1
