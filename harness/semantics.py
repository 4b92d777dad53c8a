"""What a folder's file system must do for claims and results to be safe, tried out from this machine alone."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.store import place, write_whole

HANDS = 4
"""Threads that want the same name at once."""
NAMES = 16
ELSEWHERE = (
    "put the store on a file system that all nodes share and that keeps POSIX's word: NFS 4, Lustre, GPFS, BeeGFS, "
    "CephFS; no object store, sshfs or VirtualBox folder"
)
"""What is to be done where a file system breaks its word."""


def create(path: Path) -> bool:
    """Create a file that must not exist yet; return whether this call did."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    return True


def link(path: Path) -> bool:
    """Give a file of one's own a name that must not exist yet, as a claim is made; return whether this call did."""
    own = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    own.write_bytes(b"")
    try:
        return place(own, path)
    finally:
        own.unlink()


def broken(folder: Path) -> Iterator[str]:
    """Yield a sentence for each promise that the file system of an existing, empty folder does not keep.

    Raises OSError where it cannot be written.
    """
    for what, attempt in (("O_EXCL", create), ("link", link)):
        if said := _exclusive(folder, what, attempt):
            yield said
    yield from _renames(folder)
    yield from _appends(folder)


def _exclusive(folder: Path, what: str, attempt: Callable[[Path], bool]) -> str:
    """Let some threads want the same names at once; say what is wrong where not each is won by exactly one."""
    wins, failed = list[int](), list[OSError]()
    start = threading.Barrier(HANDS)

    def want() -> None:
        start.wait()
        for number in range(NAMES):
            try:
                if attempt(folder / f"{what}-{number}"):
                    wins.append(number)
            except OSError as error:
                failed.append(error)
                return

    hands = [threading.Thread(target=want) for _ in range(HANDS)]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    if failed:
        return f"{what}: {failed[0].strerror}"
    twice = sum(wins.count(number) > 1 for number in range(NAMES))
    never = NAMES - len(set(wins))
    if twice or never:
        return f"{what}: of {NAMES} new names {twice} were given to several who asked, and {never} to none"
    return ""


def _renames(folder: Path) -> Iterator[str]:
    """Replace a file while it is read: a reader must see the old one or the new one, whole."""
    path, whole = folder / "renamed", [b"a" * 5000, b"b" * 5000]
    try:
        for number in range(NAMES):
            write_whole(path, whole[number % 2])
            if path.read_bytes() != whole[number % 2]:
                yield "rename: a file that was replaced still reads as the one before"
                return
    except OSError as error:
        yield f"rename: a file cannot be replaced: {error.strerror}"


def _appends(folder: Path) -> Iterator[str]:
    """Append through two descriptors in turn, as heartbeats are: nothing may be written over, and the size grows."""
    path = folder / "appended"
    path.write_bytes(b"")
    with open(path, "ab", buffering=0) as one, open(path, "ab", buffering=0) as other:
        for number in range(NAMES):
            (one, other)[number % 2].write(b".")
            if os.fstat(one.fileno()).st_size != number + 1:
                yield "append: what one descriptor appends is not seen through another, or written over"
                return
