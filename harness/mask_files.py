"""Masks by the name that a user gives them: a file in any known form, or the first digits of a stage's key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.store import Store

if TYPE_CHECKING:
    from tost.masks import Masks

SHORTEST = 6
"""Digits of a key that name a stage."""


def mask_file(source: str, store: Path) -> Path:
    """Return the file that a path or the beginning of a key means. Raises UserError where it means none, or several."""
    path = Path(source)
    if path.is_file():
        return path
    word = source.lower()
    if len(word) < SHORTEST or not all(c in "0123456789abcdef" for c in word):
        raise UserError(f"{source!r} is no file, and no key: a key's first {SHORTEST} digits or more, such as 3fa9c1")
    folders = [store / "stages" / kind / word[:2] for kind in ("mask", "train")]
    found = [path for folder in folders for path in folder.glob(f"{word}*") if path.is_dir()]
    if len(found) != 1:
        said = f"{len(found)} stages" if found else "no mask and no training"
        raise UserError(f"{said} in {store} have a key that begins with {source}; give more digits, or another store")
    result = Store(store).folder(found[0].parent.parent.name, found[0].name).result()
    if result is None or not (artifact := found[0] / result.artifact.file).is_file():
        raise UserError(f"{found[0]} has no artifact; run its sweep again")
    return artifact


def read_mask(source: str, store: Path, entry: str = "auto") -> tuple[Masks, str]:
    """Return a mask, tensors in name order, and the form that its file has. Raises UserError as mask_file does.

    `entry`: where in a checkpoint it is, as tost.masks.files.read_masks takes it.
    """
    from tost.masks.files import read_masks

    try:
        masks, form = read_masks(mask_file(source, store), entry=entry)
    except ValueError as error:
        raise UserError(str(error)) from None
    return {name: masks[name] for name in sorted(masks)}, form
