"""File systems: full, without inodes, read-only, and files that vanish under a running sweep."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app as commands
from tests.chaos.conftest import Record, amount
from tests.conftest import environment, hashes, run_sweep, write_project

AREA = "File systems"
pytestmark = [pytest.mark.chaos, pytest.mark.filterwarnings("default")]

CHOSEN = ("--only", "seed=0", "--threads", "1")
PAGE = 4096


def _mount(*arguments: str) -> bool:
    mount = shutil.which("mount")
    if mount is None:
        return False
    return subprocess.run([mount, *arguments], capture_output=True, check=False).returncode == 0


def _unmount(place: Path) -> None:
    subprocess.run([str(shutil.which("umount")), "--lazy", str(place)], capture_output=True, check=False)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose sweep was run in the store `calm`, with nothing in its way."""
    folder = write_project(tmp_path_factory.mktemp("calm"))
    code, said = command(folder, "calm")
    assert code == 0, said
    return folder


@dataclass
class Disk:
    """A small file system of one's own, mounted where a store is."""

    place: Path

    def remount(self, options: str) -> None:
        assert _mount("-o", f"remount,{options}", str(self.place)), f"mount -o remount,{options}"

    @property
    def free(self) -> int:
        return shutil.disk_usage(self.place).free

    def clear(self) -> None:
        for path in self.place.iterdir():
            shutil.rmtree(path)

    def fill(self, left: int) -> None:
        """Leave no more than so many bytes."""
        (self.place / "ballast").write_bytes(bytes(max(0, self.free - left)))


@pytest.fixture
def disk(calm: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A file system for the store `small` of the project."""
    place = calm / "small"
    place.mkdir(exist_ok=True)
    if not _mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)):
        pytest.skip("needs the right to mount a tmpfs (root)")
    monkeypatch.chdir(calm)
    yield Disk(place)
    _unmount(place)


def command(folder: Path, store: str, *more: str) -> tuple[int, str]:
    """Run the sweep command in a process of its own, with workers."""
    done = run_sweep(folder, "tiny.yaml", *CHOSEN, "--workers", "1", "--store", store, *more)
    return done.returncode, done.stdout + done.stderr


def finished(store: Path) -> dict[str, bytes]:
    """Return the results of a store by their paths."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.glob("stages/*/*/*/result-*.json")}


def _amiss(before: dict[str, bytes], store: Path, calm: dict[str, str]) -> tuple[int, int]:
    after, there = finished(store), hashes(store)
    lost = sum(after.get(path) != data for path, data in before.items()) + len(calm.keys() - there.keys())
    return lost, sum(there.get(key) not in (None, sha256) for key, sha256 in calm.items())


def _no_space(disk: Disk, calm: Path) -> tuple[int, int]:
    """Run in too little room, and again with enough; return what is lost and wrong. The store is empty after it."""
    code, said = command(calm, "small")
    assert code == 3, said
    assert "No space left" in said, said
    assert "Traceback" not in said
    before = finished(disk.place)
    (disk.place / "ballast").unlink(missing_ok=True)
    disk.remount("nr_inodes=100k")
    code, said = command(calm, "small")
    assert code == 0, said
    amiss = _amiss(before, disk.place, hashes(calm / "calm"))
    disk.clear()
    return amiss


def _needed(calm: Path) -> tuple[int, int]:
    """Return the bytes and the inodes that the whole sweep took."""
    paths = list((calm / "calm").rglob("*"))
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in paths if path.is_file()), len(paths)


def test_no_space_left_in_the_middle_of_a_sweep(disk: Disk, calm: Path, record: Record) -> None:
    draw, injected, lost, wrong = random.Random(5), 0, 0, 0
    needed, _ = _needed(calm)
    for _ in range(amount(1, 25)):
        disk.fill(needed * draw.randrange(1, 90) // 100 // PAGE * PAGE)
        one, other = _no_space(disk, calm)
        injected, lost, wrong = injected + 1, lost + one, wrong + other
    found = "a sentence, code 3 or 1, nothing that was finished lost; with room again the same command ends"
    record.note("no space left, at a draw of places", injected, found, lost=lost, wrong=wrong)
    assert (lost, wrong) == (0, 0)


@pytest.mark.long
def test_no_inodes_left_in_the_middle_of_a_sweep(disk: Disk, calm: Path, record: Record) -> None:
    draw, injected, lost, wrong = random.Random(6), 0, 0, 0
    _, needed = _needed(calm)
    for _ in range(amount(1, 15)):
        disk.remount(f"nr_inodes={needed * draw.randrange(5, 90) // 100}")
        one, other = _no_space(disk, calm)
        injected, lost, wrong = injected + 1, lost + one, wrong + other
    record.note("no inodes left, at a draw of places", injected, "as no space left", lost=lost, wrong=wrong)
    assert (lost, wrong) == (0, 0)


def test_a_store_that_cannot_be_written_is_told_and_can_be_read(disk: Disk, calm: Path, record: Record) -> None:
    assert command(calm, "small", "--only", "seed=0,mask=random,recipe=ls")[0] == 0
    before = finished(disk.place)
    disk.remount("ro")
    code, said = command(calm, "small")
    for arguments in (
        ["status", "tiny.yaml", "--store", "small"],
        ["sweep", "tiny.yaml", "--plan", "--store", "small"],
    ):
        read = CliRunner().invoke(commands, arguments)
        assert read.exit_code == 0, read.output
    doctor = subprocess.run(
        [sys.executable, "-m", "harness.cli", "doctor", "--store", "small"],
        cwd=calm,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    disk.remount("rw")
    assert code == 3, said
    assert "Read-only file system; nothing that was finished is lost" in said
    assert "Traceback" not in said
    assert "small: cannot be written: Read-only file system" in doctor.stdout
    assert "-> name a folder that this user may write" in doctor.stdout
    assert command(calm, "small")[0] == 0
    lost, wrong = _amiss(before, disk.place, hashes(calm / "calm"))
    found = "a sentence and code 3; status, plan and `harness doctor` read it"
    record.note("a store that is read-only", 2, found, lost=lost, wrong=wrong)
    assert (lost, wrong) == (0, 0)


class Vanishing:
    """Deletes files that may vanish, again and again, until it is stopped."""

    def __init__(self, store: Path, seed: int) -> None:
        self.store, self.draw, self.deleted = store, random.Random(seed), 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._work)

    def __enter__(self) -> Vanishing:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        self.thread.join()

    def _work(self) -> None:
        while not self.stop.wait(0.02):
            with contextlib.suppress(OSError):
                self._delete()

    def _delete(self) -> None:
        may = [*self.store.glob("cache/*/*"), *self.store.glob("sweeps/*/workers/*"), *self.store.glob("cache")]
        if self.draw.random() < 0.05:
            may = list(self.store.glob("stages/*/*/*/attempt-*"))
        if not may:
            return
        chosen = self.draw.choice(may)
        if chosen.is_dir():
            shutil.rmtree(chosen)
        else:
            chosen.unlink()
        self.deleted += 1


def test_files_that_may_vanish_do(calm: Path, tmp_path: Path, record: Record) -> None:
    injected = lost = wrong = 0
    for seed in range(amount(1, 12)):
        store = tmp_path / f"runs-{seed}"
        with Vanishing(store, seed) as vanishing:
            code, said = command(calm, str(store), "--checkpoint-every", "0")
        assert "Traceback" not in said
        before = finished(store)
        if code:
            assert code in (1, 3), said
            code, said = command(calm, str(store))
        assert code == 0, said
        one, other = _amiss(before, store, hashes(calm / "calm"))
        injected, lost, wrong = injected + vanishing.deleted, lost + one, wrong + other
    found = "caches and the index are made again; an attempt whose folder is gone is taken once more"
    record.note("caches, index, presence, attempts' folders vanish", injected, found, lost=lost, wrong=wrong)
    assert injected
    assert (lost, wrong) == (0, 0)
