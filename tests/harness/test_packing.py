"""How many workers share a machine: hand-worked choices, and the pilot itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.costs import Costs, Place
from harness.launch.local import Machine
from harness.packing import cores, fewest, threads_of, typical
from harness.plan import Plan, Stage
from tests.conftest import hashes, write_project


@pytest.mark.parametrize(
    ("tried", "chosen"),
    [
        ({1: 100.0}, 1),
        ({1: 100.0, 2: 109.0}, 1),
        ({1: 100.0, 2: 111.0}, 2),
        ({1: 100.0, 2: 190.0, 4: 200.0}, 2),
        ({1: 100.0, 2: 190.0, 4: 0.0}, 2),
        ({1: 100.0, 2: 105.0, 4: 112.0}, 4),
    ],
)
def test_twice_the_workers_must_be_worth_it(tried: dict[int, float], chosen: int) -> None:
    assert fewest(tried) == chosen


def test_threads_are_the_cores_shared_out() -> None:
    assert threads_of(Machine(1, 1, "cpu"), 1) == cores()
    assert threads_of(Machine(1, 1, "cpu"), 10_000) == 1
    assert threads_of(Machine(2, 1, "cuda", ("0", "1")), 1) == max(1, cores() // 2)


def test_the_sort_of_training_that_is_most_common_is_tried() -> None:
    def train(key: str, arch: str) -> Stage:
        spec = {"arch": {"name": arch}, "protocol": {}, "recipe": [], "seed": 0}
        return Stage(key, "train", spec, {}, label=key)

    stages = [
        train("a", "vgg16"),
        train("b", "resnet20"),
        train("c", "resnet20"),
        Stage("d", "data", {}, {}, label="d"),
    ]
    costs = Costs(Plan("p", {stage.key: stage for stage in stages}, []), Place("cpu", 1))
    assert getattr(typical(costs, ["a", "b", "c", "d"]), "key", None) == "b"
    assert getattr(typical(costs, ["a", "d"]), "key", None) == "a"
    assert typical(costs, ["d"]) is None


@pytest.mark.slow
def test_auto_tries_out_once_and_changes_no_number(tmp_path: Path) -> None:
    write_project(tmp_path)
    command = [sys.executable, "-m", "harness.sweep", "tiny.yaml"]

    def run(*more: str) -> str:
        return subprocess.run([*command, *more], cwd=tmp_path, check=True, capture_output=True, text=True).stderr

    said = run("--workers", "auto", "--store", "packed", "--only", "seed=0")
    assert re.search(r"packing: .* 1 on a device, \d+ threads each: [\d,]+ images/s together", said)
    (note,) = (json.loads(path.read_text()) for path in tmp_path.glob("packed/cache/pilots/*.json"))
    assert note["workers"] == fewest({int(k): v for k, v in note["images_a_second"].items()})
    assert "packing:" not in run("--workers", "auto", "--store", "packed"), "it is remembered"
    workers, threads = str(note["workers"]), str(max(1, cores() // note["workers"]))
    run("--workers", workers, "--threads", threads, "--store", "told")
    assert hashes(tmp_path / "packed") == hashes(tmp_path / "told")


@pytest.mark.parametrize("given", ["0", "-1", "many", "1.5", "1025", "٣"])
def test_a_wrong_number_of_workers_is_told(given: str, project: Path) -> None:
    command = [sys.executable, "-m", "harness.sweep", "tiny.yaml", f"--workers={given}"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("--workers ")
    assert "write a number from 1 to 1024, or auto" in done.stderr
