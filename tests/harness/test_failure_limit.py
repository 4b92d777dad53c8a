"""`--stop-after N`: which failures count, and that nobody begins another stage once N of them have one cause."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from harness.claims import Observer, Owner, take
from harness.failure_limit import LIMIT, REACHED, check_limit, reached, set_limit
from harness.index import Standing, stand
from harness.launch import Size
from harness.launch.profiles import Profile
from harness.launch.slurm import Slurm
from harness.presence import present
from harness.rounds import go_round
from harness.states import OUT_OF_TIME
from harness.store import Store
from tests.conftest import harness, run_sweep, until
from tests.harness.test_search import written
from tests.harness.test_status import SEEDS, fail, finish, key_of, saved_plan

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[bytes]]
GIB = 2**30


def end(store: Store, key: str, outcome: str, generation: int = 0, **details: object) -> None:
    claim = take(store.folder("mask", key), generation, Owner.me())
    assert claim is not None
    claim.end(outcome, **details)


def test_failures_count_by_cause_and_message_since_the_sweep_was_run(tmp_path: Path) -> None:
    saved, store = saved_plan(), Store(tmp_path)
    plan, masks = saved.plan, [f"mask {arch} snip {seed}" for arch in ("resnet20", "mobilenet") for seed in SEEDS]
    keys = [key_of(saved, label) for label in masks]
    finish(store, plan, key_of(saved, "data"))
    fail(store, plan, keys[0], "code", "RuntimeError: shape 1 (a.py:3)")
    fail(store, plan, keys[1], "code", "RuntimeError: shape 2 (a.py:4)")
    assert check_limit(plan, store, Observer()) is None, "without a limit nothing is counted"
    set_limit(plan, store, Observer(), 2, {"ram": 8 * GIB})
    assert check_limit(plan, store, Observer()) is None, "these failed before"
    end(store, keys[0], "stopped", 1, released=True)
    end(store, keys[0], "failed", 2, cause="code", message="RuntimeError: shape 7 (a.py:3)")
    fail(store, plan, keys[2], "code", "ValueError: no score")
    fail(store, plan, keys[3], "input", "RuntimeError: shape 4 (a.py:3)")
    assert check_limit(plan, store, Observer()) is None, "three failures, each of another cause or message"
    fail(store, plan, keys[4], "code", "RuntimeError: shape 9 (a.py:8)")
    found = check_limit(plan, store, Observer())
    assert found == reached(store, "s")
    assert found is not None
    assert (found.cause, found.stages, found.key) == ("code", 2, keys[0])
    assert str(found) == (
        "2 stages failed for one cause (code), such as mask resnet20 snip 0: RuntimeError: shape 7 (a.py:3); "
        "no more are begun until the sweep command is run again"
    )
    set_limit(plan, store, Observer(), None, {})
    assert reached(store, "s") is check_limit(plan, store, Observer()) is None


def test_a_worker_that_still_counts_by_the_limit_before_stops_nobody(tmp_path: Path) -> None:
    saved, store = saved_plan(), Store(tmp_path)
    finish(store, saved.plan, key_of(saved, "data"))
    set_limit(saved.plan, store, Observer(), 1, {})
    fail(store, saved.plan, key_of(saved, "mask resnet20 snip 0"), "code", "no score")

    class Late(Standing):
        """What a worker saw; it counts only after the sweep command was run again."""

        def __getattribute__(self, name: str) -> object:
            if name == "states" and not again:
                again.append(True)
                set_limit(saved.plan, store, Observer(), 1, {})
            return super().__getattribute__(name)

    again = list[bool]()
    seen = stand(saved.plan, store, Observer())
    check_limit(saved.plan, store, Observer(), Late(seen.done, seen.states))
    assert again
    assert reached(store, "s") is check_limit(saved.plan, store, Observer()) is None


@pytest.mark.parametrize(
    ("outcome", "details", "counts"),
    [
        ("failed", {"cause": "code"}, True),
        ("failed", {"cause": "oom", "resource": "ram", "memory": 8 * GIB}, True),
        ("failed", {"cause": "oom", "resource": "ram", "memory": 4 * GIB}, False),
        ("failed", {"cause": "oom"}, True),
        ("failed", {"cause": "cancelled"}, False),
        ("stopped", {"cause": "preempted"}, False),
        ("died", {}, False),
        ("diverged", {}, False),
    ],
)
def test_what_is_tried_again_or_nobodys_fault_does_not_count(
    tmp_path: Path, outcome: str, details: dict[str, object], counts: bool
) -> None:
    saved, store = saved_plan(), Store(tmp_path)
    finish(store, saved.plan, key_of(saved, "data"))
    set_limit(saved.plan, store, Observer(), 1, {"ram": 8 * GIB})
    end(store, key_of(saved, "mask resnet20 snip 0"), outcome, message="told", **details)
    assert (check_limit(saved.plan, store, Observer()) is not None) == counts


@pytest.mark.parametrize(("longest", "counts"), [(600, False), (100, True)])
def test_what_a_worker_with_more_time_takes_does_not_count(tmp_path: Path, longest: float, counts: bool) -> None:
    saved, store = saved_plan(), Store(tmp_path)
    finish(store, saved.plan, key_of(saved, "data"))
    set_limit(saved.plan, store, Observer(), 1, {"time": longest})
    for attempt in range(OUT_OF_TIME):
        end(store, key_of(saved, "mask resnet20 snip 0"), "stopped", attempt, cause="time", limit=100, needs=500)
    assert (check_limit(saved.plan, store, Observer()) is not None) == counts


def test_once_it_is_reached_jobs_that_wait_are_cancelled_and_none_is_submitted(tmp_path: Path) -> None:
    saved, store, asked = saved_plan(), Store(tmp_path / "runs"), list[Sequence[str]]()
    finish(store, saved.plan, key_of(saved, "data"))
    set_limit(saved.plan, store, Observer(), 2, {})
    launcher = Slurm(Profile(workers=9), store, "s", ["s"], run=lambda command: asked.append(command) or queue)
    name = launcher.job_name(Size())
    queue = f"7_0|8|{name}|RUNNING|None\n7_1|7|{name}|PENDING|Resources\n"
    for seed in ("0", "1"):
        fail(store, saved.plan, key_of(saved, f"mask resnet20 snip {seed}"), "code", "RuntimeError: no")
    seen = go_round(saved, store, launcher, Observer())
    assert seen.reached is not None
    assert {command[-1] for command in asked if command[0] == "scancel"} == {"7_1"}
    assert "sbatch" not in [command[0] for command in asked]
    assert "7_0" in [each.number for each in seen.jobs]


@pytest.fixture
def failing(project: Path) -> Path:
    """A sweep of twelve masks that fail alike, and trainings that do not."""
    (project / "bad.py").write_text("def score(model):\n    raise RuntimeError('no score today')\n")
    text = (project / "tiny.yaml").read_text().replace("mask: [random, lth]", "mask: bad").replace("0..1", "0..11")
    (project / "tiny.yaml").write_text(
        text.replace('thin: "./thin.py:build"', 'thin: "./thin.py:build", bad: "./bad.py:score"')
    )
    return project


def masks_tried(folder: Path) -> int:
    return len(list(folder.glob("runs/stages/mask/*/*/attempt-*/end.json")))


@pytest.mark.parametrize("via", ["local", pytest.param("debug", marks=pytest.mark.long)])
def test_a_sweep_stops_after_so_many_failures_and_goes_on_when_it_is_run_again(
    failing: Path, sweep: Run, via: str
) -> None:
    few = ("tiny.yaml", "--only", "mask=bad", "--via", via, "--workers", "1")
    done = sweep(*few, "--stop-after", "3")
    assert done.returncode == 1
    assert masks_tried(failing) == 3
    assert "stopped: 3 stages failed for one cause (code), such as mask digits thin bad" in done.stderr
    assert "  log: runs/stages/mask/" in done.stderr
    assert "  mend the code, then --retry code" in done.stderr
    (failing / "tiny.yaml").write_text((failing / "tiny.yaml").read_text() + "launch: {stop_after: 4}\n")
    assert "stopped: 4 stages failed" in sweep(*few).stderr
    assert masks_tried(failing) == 3 + 4
    (failing / "tiny.yaml").write_text((failing / "tiny.yaml").read_text().replace("launch: {stop_after: 4}\n", ""))
    assert "stopped" not in sweep(*few).stderr
    assert masks_tried(failing) == 12


def test_workers_that_nobody_follows_count_for_themselves(failing: Path, sweep: Run) -> None:
    done = sweep("tiny.yaml", "--only", "mask=bad", "--detach", "--workers", "1", "--stop-after", "3")
    assert done.returncode == 0, done.stderr
    until(lambda: list((failing / "runs/sweeps/tiny").glob(f"{REACHED}-*")))
    until(lambda: not list(present(Store(failing / "runs"), "tiny")))
    assert masks_tried(failing) == 3
    shown = harness(failing, "status", "tiny", "--json")
    assert json.loads(shown.stdout)["stopped"].startswith("3 stages failed for one cause (code), such as mask digits")


def test_what_runs_when_the_limit_is_reached_is_finished(project: Path, start: Start) -> None:
    (project / "tiny.yaml").write_text((project / "tiny.yaml").read_text().replace("epochs: 2}", "epochs: 8}"))
    process = start("harness.sweep", "tiny.yaml", "--only", "mask=dense", "--workers", "1", "--stop-after", "1")
    until(lambda: list(project.glob("runs/stages/train/*/*/attempt-0001/metrics*")))
    said = {"cause": "code", "stages": 1, "key": "", "example": "a mask: no score"}
    folder = project / "runs/sweeps/tiny"
    run = json.loads((folder / LIMIT).read_text())["run"]
    (folder / f"{REACHED}-{run}.json").write_text(json.dumps(said))
    told = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 1, told
    assert "stopped: 1 stage failed for one cause (code), such as a mask: no score" in told
    ends = [json.loads(path.read_text())["outcome"] for path in project.glob("runs/stages/train/*/*/*/end.json")]
    assert ends == ["published"], told


@pytest.mark.slow
def test_ray_starts_no_trial_after_so_many_failures(failing: Path, sweep: Run) -> None:
    few = ("tiny.yaml", "--only", "mask=bad", "--via", "ray", "--threads", "1", "--workers", "1")
    done = sweep(*few, "--stop-after", "3")
    assert done.returncode == 1
    assert "stopped: 3 stages failed for one cause (code)" in done.stderr
    assert masks_tried(failing) <= 4


STEP = """
import torch


class Bad(nn.Identity):
    def forward(self, x):
        if self.training and torch.is_grad_enabled() and len(x) > 8:
            raise RuntimeError("no step today")
        return x
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_search_begins_no_trial_after_so_many_failures(tmp_path: Path) -> None:
    written(tmp_path)
    thin = (tmp_path / "thin.py").read_text()
    (tmp_path / "thin.py").write_text(thin.replace("def build", f"{STEP}\n\ndef build").replace("nn.ReLU(),", "Bad(),"))
    done = run_sweep(tmp_path, "hunt.yaml", "--threads", "1", "--workers", "1", "--stop-after", "2")
    assert done.returncode == 1
    assert "stopped: 2 stages failed for one cause (code), such as digits thin random 50%" in done.stderr
    assert len(list(tmp_path.glob("runs/stages/train/*/*/attempt-*/end.json"))) == 2
