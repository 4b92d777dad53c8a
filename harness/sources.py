"""Where a data set's files lie, and the hash of their content: relative paths, sizes, bytes, never the path to them."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from harness.catalog import Dataset
from harness.errors import UserError
from harness.imagefolder import list_imagefolder, walk
from harness.names import Choice
from harness.sealed import keep_note, read_note
from harness.store import canonical
from harness.terminal import command

NO_FILES = "none"
"""The content of a data set that code alone makes: its reader takes no folder."""


@dataclass(frozen=True)
class Source:
    """A data set's files: the folder or file to read, their content's hash, or what is missing and where it goes."""

    path: Path
    content: str
    missing: str = ""

    @property
    def place(self) -> str:
        """Return where its files lie; nothing where it has none, and so can be made anywhere."""
        return "" if self.content == NO_FILES else str(self.path.absolute())


def find_source(choice: Choice, entry: object, data: Path, cache: Path) -> Source:
    """Locate a data set and hash its content; the hash is remembered in `cache` by the files' sizes and times."""
    try:
        return _find(choice, entry, data, cache)
    except OSError as error:
        return Source(data, f"absent:{choice.name}", f"{choice.label}: {error.filename}: {error.strerror}")


def confirm_content(choice: Choice, entry: object, place: Path, cache: Path, content: str) -> None:
    """Raise UserError where the files at a place are no longer those whose hash a key holds, or other ones there."""
    found = find_source(choice, entry, place, cache)
    if found.content != content:
        what = found.missing or f"{choice.label}: the files at {place} are not those that were planned with"
        raise UserError(f"{what}; give the sweep command again, which plans with what is there now")


def _find(choice: Choice, entry: object, data: Path, cache: Path) -> Source:
    if choice.name == "digits":
        spec = importlib.util.find_spec("sklearn")
        if spec is None or not spec.origin:
            return Source(data, "absent:digits", "digits: scikit-learn is not installed; run: pip install scikit-learn")
        file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        return Source(file, _content([file], file.parent, cache))
    if not isinstance(entry, Dataset) or choice.name == "imagefolder":
        folder = Path(choice.folder) if choice.folder else data
        return _folder(choice, folder, cache, plugin=not isinstance(entry, Dataset))
    files = [present(data / name, entry.zipped) for name in entry.files]
    absent = [name for name, file in zip(entry.files, files, strict=True) if file is None]
    if absent:
        fetch = f"; or, on a machine with network: {command('data', 'fetch', choice.name, '--data', data)}"
        return Source(
            data,
            f"absent:{choice.name}",
            f"{choice.name}: {data / absent[0]} is missing; put there {entry.hint}{fetch}",
        )
    there = [file for file in files if file is not None]
    listed = [file for path in there for file in (walk(path) if path.is_dir() else [path])]
    return Source(data, _content(listed, data, cache))


def _folder(choice: Choice, folder: Path, cache: Path, plugin: bool) -> Source:
    if plugin and not choice.folder:
        return Source(Path(), NO_FILES)
    name = choice.label
    if not folder.is_dir():
        return Source(folder, f"absent:{name}", f"{name}: {folder} is no folder")
    if plugin:
        listed = list(walk(folder, hidden=True))  # nobody knows which of them its function reads
        if not listed:
            return Source(folder, f"absent:{name}", f"{name}: {folder} is empty")
    else:
        try:
            listed = [file for split in list_imagefolder(folder).files.values() for file, _ in split]
        except UserError as error:
            return Source(folder, f"absent:{name}", f"{name}: {error}")
    return Source(folder, _content(listed, folder, cache))


def present(path: Path, zipped: bool) -> Path | None:
    """Return a data set's file or folder where it is there, gzipped or not where it may be."""
    named = [path, *([path.with_name(f"{path.name}.gz")] if zipped else [])]
    there = (each for each in named if each.is_file() or each.is_dir())  # a pipe would be read for ever
    return next(there, None)


def _content(files: list[Path], root: Path, cache: Path) -> str:
    listing = []
    for file in sorted(files):
        status = file.stat()
        listing.append([str(file.absolute()), status.st_size, status.st_mtime_ns])
    note = cache / "content" / hashlib.sha256(canonical(listing)).hexdigest()[:32]
    if known := read_note(note):
        return str(known["content"])
    total = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as opened:  # in pieces: a file may be larger than memory
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            total.update(canonical([file.relative_to(root).as_posix(), opened.tell(), sha256]))
    keep_note(note, {"content": total.hexdigest()})
    return total.hexdigest()
