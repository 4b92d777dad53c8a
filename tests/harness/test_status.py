"""Where a sweep stands: the index and its file operations, groups of failures, conditions, and the command itself."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.claims import Observer, Owner, take
from harness.conditions import smallest_condition
from harness.facts import Place
from harness.failure_limit import normalised
from harness.failures import REMEDIES, group_failures, remedies
from harness.index import A_LOOK, stand
from harness.options import CAUSES
from harness.plan import Plan, Stage
from harness.planfile import SavedPlan
from harness.store import Artifact, Result, Store, digest, publish
from tests.conftest import harness, until

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[bytes]]
AXES = ["arch", "mask", "seed"]
ARCHS, MASKS, SEEDS = ["resnet20", "mobilenet"], ["snip", "grasp", "random"], ["0", "1", "2"]


def saved_plan() -> SavedPlan:
    """Return a plan of 18 cells: a data set, a mask for every arch, mask and seed, and a training of each."""
    plan = Plan("s")

    def add(kind: str, spec: dict[str, object], parents: dict[str, str], label: str) -> str:
        key = digest({"kind": kind, "parents": parents, **spec})
        plan.stages[key] = Stage(key, kind, spec, parents, label)
        return key

    data = add("data", {"d": 1}, {}, "data")
    cells = []
    for point in itertools.product(ARCHS, MASKS, SEEDS):
        label = " ".join(point)
        mask = add("mask", {"point": label}, {"data": data}, f"mask {label}")
        train = add("train", {"point": label, "protocol": {}}, {"data": data, "mask": mask}, label)
        cells.append(Place(point, train))
    plan.leaves = [cell.key for cell in cells]
    return SavedPlan(Path(), plan, AXES, cells)


def finish(store: Store, plan: Plan, key: str, content: str = "", seconds: float = 1.0) -> None:
    """Publish a result for a stage, as a worker would."""
    stage = plan.stages[key]
    folder = store.folder(stage.kind, key)
    claim = take(folder, folder.generation, Owner.me())
    assert claim is not None
    parents = {}
    for parent in stage.parents.values():
        result = store.folder(plan.stages[parent].kind, parent).result()
        assert result is not None
        parents[parent] = result.artifact.sha256
    told = {"seconds": seconds, "finished": "2020-01-01T00:00:00Z"}
    artifact = Artifact(digest([key, content]), 1)
    (folder.path / artifact.file).write_bytes(b"x")
    result = Result(claim.base_edition + 1, artifact, parents, {}, {"device": "cpu"}, told)
    assert publish(folder.path / f"result-{result.edition:04d}.json", result.dump())
    claim.end("published")


def fail(store: Store, plan: Plan, key: str, cause: str, message: str) -> None:
    stage = plan.stages[key]
    claim = take(store.folder(stage.kind, key), 0, Owner.me())
    assert claim is not None
    claim.end("failed", cause=cause, message=message)


def key_of(saved: SavedPlan, label: str) -> str:
    return next(key for key, stage in saved.plan.stages.items() if stage.label == label)


def test_states_are_read_from_the_files_and_then_from_the_index(tmp_path: Path) -> None:
    saved, store = saved_plan(), Store(tmp_path)
    plan = saved.plan
    fresh = stand(plan, store, Observer())
    assert fresh.counts(plan) == {"data": {"todo": 1}, "mask": {"todo": 18}, "train": {"todo": 18}}
    finish(store, plan, key_of(saved, "data"))
    for seed in SEEDS:
        finish(store, plan, key_of(saved, f"mask resnet20 snip {seed}"))
    finish(store, plan, key_of(saved, "resnet20 snip 0"))
    assert take(store.folder("train", key_of(saved, "resnet20 snip 1")), 0, Owner.me())
    first = stand(plan, store, Observer())
    assert first.counts(plan)["train"] == {"done": 1, "running": 1, "todo": 16}
    assert first.counts(plan)["mask"] == {"done": 3, "todo": 15}
    ((owner, beats, _),) = first.owners.values()
    assert (owner, beats) == (Owner.me(), 0)
    again = stand(plan, store, Observer())
    assert (again.counts(plan), again.done) == (first.counts(plan), first.done)
    assert again.operations <= first.operations - 5, "what is finished is not looked at again"
    assert stand(plan, store, Observer(), rebuild=True).counts(plan) == first.counts(plan)


def test_an_index_that_is_lost_or_torn_is_made_again(tmp_path: Path) -> None:
    saved, store = saved_plan(), Store(tmp_path)
    finish(store, saved.plan, key_of(saved, "data"))
    before = stand(saved.plan, store, Observer()).counts(saved.plan)
    (index,) = (tmp_path / "cache" / "index").iterdir()
    for text in ("", "{", "[]", '{"version": 1}', '{"version": 1, "done": {"a": [1]}}', '{"version": 0, "done": {}}'):
        index.write_text(text)
        assert stand(saved.plan, store, Observer()).counts(saved.plan) == before
    index.unlink()
    assert stand(saved.plan, store, Observer()).counts(saved.plan) == before


def test_a_call_takes_as_many_file_operations_as_it_says_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by the interpreter's own audit events: every open and listing of a path in the store."""
    saved, store = saved_plan(), Store(tmp_path)
    finish(store, saved.plan, key_of(saved, "data"))
    for seed in SEEDS:
        finish(store, saved.plan, key_of(saved, f"mask resnet20 snip {seed}"))
    fail(store, saved.plan, key_of(saved, "mask mobilenet grasp 0"), "code", "x")
    seen: list[str] = []
    active = [True]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if active and event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(str(tmp_path)):
            seen.append(str(arguments[0]))

    sys.addaudithook(hook)
    for _ in range(2):
        seen.clear()
        standing = stand(saved.plan, store, Observer())
        assert 0 < len(seen) <= standing.operations
    active.clear()
    shelves = {(stage.kind, key[:2]) for key, stage in saved.plan.stages.items()}
    parents = 1 + len(SEEDS)
    assert standing.operations <= 2 + len(shelves) + A_LOOK + parents, "one folder is neither finished nor untouched"


def test_a_parent_rebuilt_with_other_content_makes_its_children_run_again(tmp_path: Path) -> None:
    saved, store = saved_plan(), Store(tmp_path)
    plan, mask, train = saved.plan, key_of(saved, "mask resnet20 snip 0"), key_of(saved, "resnet20 snip 0")
    for key in (key_of(saved, "data"), mask, train):
        finish(store, plan, key)
    assert train in stand(plan, store, Observer()).done
    finish(store, plan, mask, content="other")
    standing = stand(plan, store, Observer(), rebuild=True)
    assert train in standing.states
    assert mask in standing.done


def test_an_artifact_that_is_gone_is_to_be_made_again_where_another_needs_it(tmp_path: Path) -> None:
    saved, store = saved_plan(), Store(tmp_path)
    plan, mask, train = saved.plan, key_of(saved, "mask resnet20 snip 0"), key_of(saved, "resnet20 snip 0")
    for key in (key_of(saved, "data"), mask):
        finish(store, plan, key)
    (artifact,) = store.path("mask", mask).glob("*.safetensors")
    artifact.unlink()
    assert stand(plan, store, Observer()).states[mask].claimable
    finish(store, plan, mask)
    finish(store, plan, train)
    artifact.unlink()
    standing = stand(plan, store, Observer())
    assert {mask, train} <= set(standing.done), "nothing is to be made from it"


def test_failures_are_grouped_by_their_normalised_cause_with_what_their_cells_have_in_common(tmp_path: Path) -> None:
    saved, store = saved_plan(), Store(tmp_path)
    plan = saved.plan
    finish(store, plan, key_of(saved, "data"))
    for seed in SEEDS:
        message = f"RuntimeError: shape [{seed}, 3] at 0x7f{seed}aabbccdd (/home/a{seed}/x/my_mask.py:4{seed})"
        fail(store, plan, key_of(saved, f"mask mobilenet grasp {seed}"), "code", message)
    finish(store, plan, key_of(saved, "mask resnet20 random 1"))
    fail(store, plan, key_of(saved, "resnet20 random 1"), "oom", "out of memory: 3 GiB")
    groups = group_failures(saved, store, stand(plan, store, Observer()))
    assert [(group.cause, len(group.stages), len(group.cells)) for group in groups] == [("code", 3, 3), ("oom", 1, 1)]
    assert [group.condition.text for group in groups if group.condition] == [
        "all 3: arch=mobilenet and mask=grasp",
        "all 1: arch=resnet20 and mask=random and seed=1",
    ]


def test_what_to_do_about_failures_never_runs_a_divergence_again() -> None:
    assert remedies({}) == []
    (said,) = remedies({"code": 2, "oom": 1})
    assert said == "3 stages failed; the same command with --retry all runs them once more"
    (said,) = remedies({"diverged": 1})
    assert said.startswith("1 training diverged: a loss or gradient became infinite: that is its result")
    (said,) = remedies({"time": 3})
    assert said.startswith(
        "3 stages ran out of time: raise `time:` in the profile, or --until, and run the sweep again"
    )
    failed, diverged = remedies({"diverged": 2, "code": 2, "oom": 1})
    assert failed == "3 stages failed; the same command with --retry code and then --retry oom runs them once more"
    assert "--retry" not in diverged
    assert set(CAUSES) == {"all", *REMEDIES}


def test_messages_are_the_same_but_for_numbers_addresses_and_paths() -> None:
    first = normalised("ValueError: 3 of 17 at 0x7fd0a1b2c3 in /tmp/a/b.py:12, loss 1.5e-3\nand more")
    assert first == normalised("ValueError: 4 of 999 at 0x7aaaaaaaaa in /home/u/x/b.py:7, loss 2e+9")
    assert first != normalised("TypeError: 3 of 17")
    assert normalised("") == ""


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 17), min_size=1))
def test_a_condition_covers_its_group_and_says_how_many_others(group: set[int]) -> None:
    cells = [dict(zip(AXES, point, strict=True)) for point in itertools.product(ARCHS, MASKS, SEEDS)]
    found = smallest_condition(AXES, cells, sorted(group))
    matching = {n for n, cell in enumerate(cells) if all(cell[axis] in values for axis, values in found.terms)}
    assert group <= matching
    assert (found.covered, found.members) == (len(matching), len(group))
    closed = {axis: {cells[n][axis] for n in group} for axis in AXES}
    least = {n for n, cell in enumerate(cells) if all(cell[axis] in closed[axis] for axis in AXES)}
    assert matching == least, "no conjunction over these axes covers fewer"
    for axis, _ in found.terms:
        rest = [term for term in found.terms if term[0] != axis]
        looser = {n for n, cell in enumerate(cells) if all(cell[a] in values for a, values in rest)}
        assert looser != matching, "no term can be left out"


def status(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return harness(project, "status", *arguments)


def test_the_command_shows_what_a_person_asks_first(project: Path, sweep: Run) -> None:
    (project / "bad.py").write_text("def score(model):\n    raise RuntimeError('no score today')\n")
    text = (project / "tiny.yaml").read_text()
    text = text.replace("mask: [random, lth]", "mask: [random, bad]").replace("use: {", 'use: {bad: "./bad.py:score", ')
    (project / "tiny.yaml").write_text(text)
    before = status(project, "tiny.yaml")
    assert before.returncode == 0, before.stderr
    assert "0 of 10 cells done" in before.stdout
    assert sweep("tiny.yaml").returncode == 1
    shown = status(project, "tiny")
    assert "6 of 10 cells done" in shown.stdout
    assert "2 stages failed (code), 4 cells held back [all 4: mask=bad]" in shown.stdout
    assert "no score today" in shown.stdout
    assert "--retry code" in shown.stdout
    said = json.loads(status(project, "tiny", "--json").stdout)
    assert said["cells_done"] == 6
    assert said["stages"]["mask"] == {"done": 2, "failed": 2}
    assert said["stages"]["train"] == {"done": 6, "todo": 4}
    assert said["failures"][0]["condition"] == "all 4: mask=bad"
    assert said["failures"][0]["log"].endswith("attempt-0001/log")
    assert said["workers"] == []
    assert said["file_operations"] < 60
    page = (Path(__file__).parents[2] / "docs" / "reference" / "commands.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| `harness status NAME --json` |")]
    assert list(said) == re.findall(r"`(\w+)`", row), "the page lists what it says"


def test_the_command_shows_workers_while_they_work(
    project: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    (project / "tiny.yaml").write_text((project / "tiny.yaml").read_text().replace("epochs: 2", "epochs: 400"))
    process = start("harness.sweep", "tiny.yaml", "--only", "mask=dense,seed=0", "--workers", "1")

    def at_work() -> list[dict[str, object]]:
        done = status(project, "tiny", "--json")
        return [w for w in json.loads(done.stdout)["workers"] if w["stage"]] if done.returncode == 0 else []

    (worker,) = until(at_work)
    assert worker["stage"] in ("data digits", "digits thin dense default seed 0")
    assert worker["device"] == "cpu"
    assert "ago" in status(project, "tiny").stdout
    process.terminate()
    assert process.wait(60) == 130
    assert json.loads(status(project, "tiny", "--json").stdout)["workers"] == []


def test_a_mistake_is_answered_in_a_sentence(project: Path, sweep: Run) -> None:
    nothing = status(project, "tiny")
    assert nothing.returncode == 2
    assert "has no plan" in nothing.stderr
    assert sweep("tiny.yaml", "--only", "mask=dense,seed=0").returncode == 0
    wrong = status(project, "tiny.yaml", "--why", "mask=snip")
    assert wrong.returncode == 2
    assert "there are random, lth, dense" in wrong.stderr
    assert "write AXIS=VALUE" in status(project, "tiny.yaml", "--why", "colour=red").stderr
    assert "they differ in" in status(project, "tiny.yaml", "--why", "mask=lth").stderr
    assert "goes with --why" in status(project, "tiny.yaml", "--bless").stderr
