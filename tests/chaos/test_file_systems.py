"""A file system that is full, or read-only: a sentence, nothing that was finished lost, and the same command ends."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import harness, hashes, run_sweep, write_project

pytestmark = pytest.mark.chaos

CHOSEN = ("tiny.yaml", "--only", "seed=0", "--threads", "1", "--workers", "1")


def _mount(*arguments: str) -> bool:
    mount = shutil.which("mount")
    return mount is not None and subprocess.run([mount, *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A project with a small file system of its own where its store `runs` is."""
    (place := write_project(tmp_path) / "runs").mkdir()
    if not _mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)):
        pytest.skip("needs the right to mount a tmpfs (root)")
    yield tmp_path
    subprocess.run([str(shutil.which("umount")), "--lazy", str(place)], capture_output=True, check=False)


def finished(store: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.glob("stages/*/*/*/result-*.json")}


def test_a_disk_that_fills_up_and_one_that_is_read_only_lose_nothing(project: Path) -> None:
    store, calm = project / "runs", project / "calm"
    done = run_sweep(project, *CHOSEN, "--store", "calm")
    assert done.returncode == 0, done.stderr
    needed = sum(path.stat().st_size for path in calm.rglob("*") if path.is_file())
    (store / "ballast").write_bytes(bytes(shutil.disk_usage(store).free - needed // 2))
    full = run_sweep(project, *CHOSEN)
    assert full.returncode == 3, full.stderr
    assert "No space left" in full.stderr
    before = finished(store)
    (store / "ballast").unlink()
    assert _mount("-o", "remount,ro", str(store))
    readonly = run_sweep(project, *CHOSEN)
    read = [harness(project, *words) for words in (("status", "tiny"), ("doctor", "--store", "runs"))]
    assert _mount("-o", "remount,rw", str(store))
    assert readonly.returncode == 3, readonly.stderr
    assert "Read-only file system; nothing that was finished is lost" in readonly.stderr
    assert "Traceback" not in full.stderr + readonly.stderr
    assert read[0].returncode == 0, read[0].stderr
    assert "runs: cannot be written: Read-only file system" in read[1].stdout
    last = run_sweep(project, *CHOSEN)
    assert last.returncode == 0, last.stderr
    after = finished(store)
    assert {path: after.get(path) for path in before} == before
    assert hashes(store) == hashes(calm)
