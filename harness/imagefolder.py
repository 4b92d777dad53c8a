"""Image folders: which files are the images of which class. The key and the reader go by this one list.

It is torchvision's ImageFolder (torchvision.datasets.folder) for two splits, less what is hidden.
"""

from __future__ import annotations

import os
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.catalog import DATASETS
from harness.errors import UserError
from harness.words import count

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
SHOWN = 3
"""Folders that a message names."""

Node = tuple[int, int]


@dataclass(frozen=True)
class ImageFolder:
    """The images of a training and a test split, with the number of their class."""

    classes: tuple[str, ...]
    """Their names in order; a class's place here is its label."""
    test: str
    """The folder of the test split: `test`, or `val` where there is none."""
    files: Mapping[str, tuple[tuple[Path, int], ...]]
    """Split -> image and label, class by class, in the order of their paths."""


def walk(folder: Path, hidden: bool = False) -> Iterator[Path]:
    """Yield all files below a folder, hidden ones where asked; links are followed, but for those in a circle."""
    return (Path(item.path) for item in _entries(folder, hidden) if item.is_file())


def _entries(folder: Path, hidden: bool = False, above: Iterable[Path] = ()) -> Iterator[os.DirEntry[str]]:
    """Yield what is no folder, below a folder; a link to a folder that it lies in, or to one of `above`, is no way on.

    A folder that several links name is entered by each of them, so that nothing depends on which comes first.
    """
    waiting = [(folder, frozenset(map(_node, above)))]
    while waiting:
        here, inside = waiting.pop()
        if (node := _node(here)) in inside:
            continue
        with os.scandir(here) as items:
            for item in items:
                if item.name.startswith(".") and not hidden:
                    continue
                if item.is_dir():
                    waiting.append((Path(item.path), inside | {node}))
                else:
                    yield item


def _node(folder: Path) -> Node:
    status = folder.stat()
    return status.st_dev, status.st_ino


def list_imagefolder(folder: Path) -> ImageFolder:
    """List FOLDER/train/CLASS/** and FOLDER/test/CLASS/** (or val/), what is hidden and what is no image left out.

    Raises UserError where a split, a class or an image is missing, or the splits do not speak of the same classes;
    OSError where a folder cannot be read.
    """
    test = "test" if (folder / "test").is_dir() else "val"
    if not (folder / "train").is_dir() or not (folder / test).is_dir():
        raise UserError(f"{folder} needs train/ and test/ (or val/); put there {DATASETS['imagefolder'].hint}")
    train, tests = (_by_class(folder, split) for split in ("train", test))
    if not any(train.values()):
        raise UserError(f"{folder} holds no image in a folder of train/ ({', '.join(sorted(IMAGES))})")
    if len(train) < 2:
        raise UserError(
            f"{folder / 'train'}: {len(train)} classes; a folder for each of at least two classes is needed"
        )
    alike = Counter(unicodedata.normalize("NFC", name) for name in train)
    if twins := [name for name, number in alike.items() if number > 1]:
        raise UserError(f"{folder / 'train'}: {_some(twins)} is there in two Unicode forms; unite the folders")
    if bare := [name for name, files in train.items() if not files]:
        raise UserError(f"{folder / 'train' / bare[0]}: holds no image; fill or remove the class")
    if unknown := {name: len(files) for name, files in tests.items() if files and name not in train}:
        raise UserError(_disagreeing(folder, test, unknown, list(train)))
    if not any(tests.values()):
        raise UserError(f"{folder / test}: holds no image in folders named as those of train/; put the images there")
    label = {name: number for number, name in enumerate(train)}
    files = {
        split: tuple((file, label[name]) for name, found in by_class.items() if name in label for file in found)
        for split, by_class in (("train", train), (test, {name: tests.get(name, []) for name in train}))
    }
    return ImageFolder(tuple(train), test, files)


def _by_class(folder: Path, split: str) -> dict[str, list[Path]]:
    """Return the images of every folder of a split, by the folders' names in order."""
    found: dict[str, list[Path]] = {}
    with os.scandir(folder / split) as items:
        for item in sorted(items, key=lambda item: item.name):
            if item.name.startswith("."):
                continue
            if item.is_dir():
                within = _entries(Path(item.path), above=(folder, folder / split))
                found[item.name] = sorted(Path(image.path) for image in within if _is_image(image))
            else:
                _reachable(item)
    return found


def _is_image(item: os.DirEntry[str]) -> bool:
    _reachable(item)
    return Path(item.name).suffix.lower() in IMAGES and item.is_file()


def _reachable(item: os.DirEntry[str]) -> None:
    """Raise UserError for a link to nothing: images, or a class of them, would be left out in silence."""
    if item.is_symlink() and not os.path.exists(item.path):
        raise UserError(f"{item.path}: is a link to nothing ({os.readlink(item.path)}); fetch its file, or remove it")


def _disagreeing(folder: Path, test: str, unknown: Mapping[str, int], known: Iterable[str]) -> str:
    """Say which folders of the test split are no class of train/, and which of them are only spelled otherwise."""
    spelled = {_plain(name): name for name in known}
    shown = [f"{name!r} ({count(number, 'image')})" for name, number in unknown.items()]
    said = f"{folder}: {_some(shown)} of {test}/ {'is' if len(unknown) == 1 else 'are'} no class of train/"
    name, meant = next(((n, spelled[_plain(n)]) for n in unknown if _plain(n) in spelled), ("", ""))
    if not name:
        return f"{said}; name folders as in train/, or move them out of {test}/"
    same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", meant)
    has = f"{name!r} in another Unicode form" if same else f"{meant!r} for {name!r}"
    move = shlex.join(["mv", str(folder / test / name), str(folder / test / meant)])
    return f"{said}, which has {has}; rename it: {move}"


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
