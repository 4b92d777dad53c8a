"""Where a data set's files lie, and the hash of their content: relative paths, sizes, bytes, never the path to them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.catalog import DATASETS, Dataset
from harness.names import Choice
from harness.sealed import keep_note, read_note
from harness.store import canonical
from harness.terminal import command

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})


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
    files = [_present(data / name) for name in entry.files]
    absent = [name for name, file in zip(entry.files, files, strict=True) if file is None]
    if absent:
        fetch = f"; or, on a machine with network: {command('data', 'fetch', choice.name, '--data', data)}"
        return Source(
            data,
            f"absent:{choice.name}",
            f"{choice.name}: {data / absent[0]} is missing; put there {entry.hint}{fetch}",
        )
    there = [file for file in files if file is not None]
    listed = [file for path in there for file in (_walk(path) if path.is_dir() else [path])]
    return Source(data, _content(listed, data, cache))


def _folder(choice: Choice, folder: Path, cache: Path, plugin: bool) -> Source:
    if plugin and not choice.folder:
        return Source(Path(), NO_FILES)
    name = choice.label
    if not folder.is_dir():
        return Source(folder, f"absent:{name}", f"{name}: {folder} is no folder")
    if not plugin:
        parts = [p for p in ("train", "test", "val") if (folder / p).is_dir()]
        if "train" not in parts or len(parts) < 2:
            return Source(
                folder,
                f"absent:{name}",
                f"{name}: {folder} needs train/ and test/ (or val/); put there {DATASETS['imagefolder'].hint}",
            )
        listed = [f for p in parts for f in _walk(folder / p) if f.suffix.lower() in IMAGES]
    else:
        listed = list(_walk(folder))
    if not listed and plugin:
        return Source(folder, f"absent:{name}", f"{name}: {folder} is empty")
    if not listed:
        return Source(folder, f"absent:{name}", f"{name}: {folder} holds no image ({', '.join(sorted(IMAGES))})")
    return Source(folder, _content(listed, folder, cache))


def _present(path: Path) -> Path | None:
    zipped = path.with_name(f"{path.name}.gz")
    there = (each for each in (path, zipped) if each.is_file() or each.is_dir())  # a pipe would be read for ever
    return next(there, None)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder; links are followed, each real folder once, so that a circle of links ends."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for item in os.scandir(here):
            if item.name.startswith("."):
                continue
            if item.is_dir():
                waiting.append(Path(item.path))
            elif item.is_file():
                yield Path(item.path)


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
