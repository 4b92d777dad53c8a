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
from harness.packing import cores, counts, fewest, images_a_second, threads_of, typical
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
    assert typical(costs, ["a", "b", "c", "d"]) == (stages[1], 3)
    assert typical(costs, ["a", "d"]) == (stages[0], 1)
    assert typical(costs, ["d"]) == (None, 0)


def test_no_more_workers_are_tried_than_have_cores_and_something_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.packing.cores", lambda: 8)
    here, gpu = Machine(8, 1, "cpu"), Machine(1, 8, "cuda", ("0",))
    assert counts(here, None, 100) == [1, 2, 4, 8]
    assert counts(here, 2, 100) == [1, 2, 4]
    assert counts(here, 100, 100) == counts(here, None, 1) == [1]
    assert counts(here, None, 3) == [1, 2]
    assert counts(gpu, None, 100) == [1, 2, 4, 8, 16]


PILOT = """
import json, sys, time
order = json.loads(sys.stdin.readline())
if order["key"] == "fails":
    print(json.dumps({"failed": "ValueError: no such width"}), flush=True)
    sys.exit()
print(json.dumps({"ready": True}), flush=True)
sys.stdin.readline()
with open(order["log"], "a") as log:
    print("began", file=log, flush=True)
while open(order["log"]).read().count("began") < order["among"]:
    time.sleep(0.01)
print(json.dumps({"images_a_second": 50.0}), flush=True)
"""


def test_pilots_run_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these waits for the others to have begun: one after another they would never end."""
    (tmp_path / "python").write_text(f"#!{sys.executable}\n{PILOT}")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    order = {"key": "a", "threads": 1, "log": str(tmp_path / "log"), "among": 3}
    assert images_a_second([order] * 3, Machine(1, 1, "cpu")) == (150.0, "")
    assert images_a_second([order, {**order, "key": "fails"}], Machine(1, 1, "cpu")) == (
        0.0,
        "ValueError: no such width",
    )


@pytest.mark.slow
@pytest.mark.long
def test_auto_tries_out_once_and_changes_no_number(tmp_path: Path) -> None:
    write_project(tmp_path)
    command = [sys.executable, "-m", "harness.sweep", "tiny.yaml"]

    def run(*more: str) -> str:
        return subprocess.run([*command, *more], cwd=tmp_path, check=True, capture_output=True, text=True).stderr

    said = run("--workers", "auto", "--store", "packed", "--only", "seed=0")
    assert re.search(r"packing: .* 1 on a device, \d+ threads each: [\d,]+ images/s together", said)
    (note,) = (json.loads(path.read_text())["body"] for path in tmp_path.glob("packed/cache/pilots/*.json"))
    assert note["workers"] == fewest({int(k): v for k, v in note["images_a_second"].items()})
    assert "packing:" not in run("--workers", "auto", "--store", "packed"), "it is remembered"
    assert set(note["images_a_second"]) == {str(count) for count in (1, 2) if count <= cores()}
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
