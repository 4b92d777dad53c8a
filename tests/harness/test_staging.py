"""Nodes without network: data sets made beforehand, files copied, caches kept on the machine's own disk."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.caches import FOLDERS, point_caches
from harness.errors import UserError
from harness.launch.profiles import Profile
from harness.staging import copy, copy_files, copy_named
from tests.conftest import harness, run_sweep


def test_caches_go_to_scratch_unless_they_are_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in FOLDERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    point_caches("")
    assert "MPLCONFIGDIR" not in os.environ
    point_caches(str(tmp_path))
    assert os.environ["TRITON_CACHE_DIR"] == "/elsewhere"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / f"caches-{os.getuid()}" / "inductor")
    assert {name for name in FOLDERS if name in os.environ} == set(FOLDERS)


def test_a_copy_is_made_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_text("1")
    (tmp_path / "a" / "b" / "two").write_text("2")
    assert copy(tmp_path / "a", tmp_path / "c") == 2
    assert copy(tmp_path / "a", tmp_path / "c") == 0
    (tmp_path / "a" / "one").write_text("three")
    assert copy(tmp_path / "a", tmp_path / "c") == 1
    assert sorted(path.name for path in (tmp_path / "c").rglob("*")) == ["b", "one", "two"]
    assert (tmp_path / "c" / "one").read_text() == "three"


def test_a_data_sets_files_are_copied_zipped_or_not(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"zipped")
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"plain")
    said = copy_files(["mnist", "digits", "mnist"], tmp_path / "data", tmp_path / "there")
    assert said == [f"mnist: 2 files copied to {tmp_path / 'there'}", "digits: has no files in the data folder"]
    assert (tmp_path / "there/MNIST/raw/train-images-idx3-ubyte.gz").read_bytes() == b"zipped"


def test_what_a_profile_names_is_copied_here_or_by_every_job(tmp_path: Path) -> None:
    (tmp_path / "image").write_text("x")
    stage = {str(tmp_path / "image"): str(tmp_path / "shared"), "~/big.sif": "$TMPDIR/big.sif"}
    profile = Profile(stage=stage, modules=["cuda"], setup=["true"])
    assert copy_named(profile)[1] == "~/big.sif: every job copies it to $TMPDIR/big.sif"
    assert (tmp_path / "shared").read_text() == "x"
    first, copies, last = profile.lines
    assert (first, last) == ("module load cuda", "true")
    assert copies.startswith("srun --ntasks-per-node=1 sh -c ")
    line = copies.removeprefix("srun --ntasks-per-node=1 ").replace(str(Path("~/big.sif").expanduser()), "image")
    done = subprocess.run(["/bin/sh", "-c", line], cwd=tmp_path, env={**os.environ, "TMPDIR": f"{tmp_path}/own"})
    assert done.returncode == 0
    assert (tmp_path / "own" / "big.sif").read_text() == "x"
    with pytest.raises(UserError, match="no such file"):
        copy_named(Profile(stage={"/nowhere/at/all": "there"}))
    with pytest.raises(ValueError, match="no path that a shell reads"):
        Profile(stage={"/a'; rm -rf x'": "there"})


def test_staged_data_needs_no_files_any_more(project: Path) -> None:
    done = harness(project, "data", "stage", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    assert "1 data set of tiny in runs" in done.stdout
    assert "data digits: test is a fixed stratified fifth of scikit-learn's digits" in done.stdout
    made = list(project.glob("runs/stages/*/*/*/result-*.json"))
    assert [path.parents[2].name for path in made] == ["data"]
    assert run_sweep(project, "tiny.yaml", "--only", "mask=dense,seed=0").returncode == 0
    wrong = harness(project, "data", "stage", "none.yaml")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
