"""Which sweeps of a store go to which project, and the addresses of a project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.plan import Plan
from harness.planfile import NEWEST, SavedPlan, dump
from harness.sealed import seal
from harness.store import Store
from harness.tracking.settings import MOST_RUNS, Project, Settings, settings_of, size_warning, switched_off

BLOCK: dict[str, Any] = {"project": "p", "entity": None, "mode": "auto"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def write_plan(store: Store, sweep: str, **block: Any) -> None:
    store.sweep(sweep).mkdir(parents=True)
    (store.sweep(sweep) / NEWEST).write_bytes(dump(SavedPlan(Path(), Plan(sweep), [], wandb=block)))


def test_the_sweeps_of_one_project_go_together(store: Store) -> None:
    write_plan(store, "one", **{**BLOCK, "mode": "offline"})
    write_plan(store, "two", **BLOCK, shard_by=["arch"])  # as earlier versions wrote it
    write_plan(store, "three", **{**BLOCK, "mode": "disabled"})
    write_plan(store, "four")
    write_plan(store, "five", **{**BLOCK, "entity": "lab"})
    lab, own = settings_of(store, [])
    assert (lab.entity, lab.project, lab.sweeps(store)) == ("lab", "p", ["five"])
    assert (own.entity, own.mode, own.sweeps(store)) == (None, "offline", ["one", "two"])
    assert settings_of(store, ["two", "one"]) == [Settings("p", None, "auto")], "one mirror for all of a project"
    with pytest.raises(UserError, match="four has no `wandb:`"):
        settings_of(store, ["one", "four"])
    with pytest.raises(UserError, match="three says mode: disabled"):
        settings_of(store, ["three"])
    with pytest.raises(UserError, match="did you mean 'one'"):
        settings_of(store, ["ome"])
    write_plan(store, "later", **BLOCK)
    assert [saved.plan.name for saved in own.plans(store, print)] == ["later", "one", "two"]


def test_a_store_without_a_project_is_told_what_to_write(store: Store) -> None:
    write_plan(store, "one")
    with pytest.raises(UserError, match=r"no sweep of .* is to be mirrored; write wandb: \{project: NAME\}"):
        settings_of(store, [])


@pytest.mark.parametrize("data", [seal({"format": 0}), b'{"format": 4}'])
def test_a_plan_that_cannot_be_read_is_told_of_and_left_out(data: bytes, store: Store) -> None:
    said = list[str]()
    for name in ("one", "two"):
        write_plan(store, name, **BLOCK)
    (store.sweep("two") / "plan-00.json").write_bytes(data)
    (settings,) = settings_of(store, [])
    assert [saved.plan.name for saved in settings.plans(store, said.append)] == ["one", "two"]
    (sentence,) = said
    assert "plan-00.json: not a plan (damaged, or of another version" in sentence
    (store.sweep("one") / NEWEST).write_bytes(data)
    with pytest.raises(UserError, match=r"not mirrored: .*plan.json: not a plan"):
        settings_of(store, ["one"])


def test_addresses() -> None:
    assert str(Project("https://api.wandb.ai", "lab", "p")) == "https://wandb.ai/lab/p"
    project = Project("https://w.uni.edu:80/", "lab", "a b")
    assert (str(project), project.path) == ("https://w.uni.edu:80/lab/a%20b", "lab/a b")
    assert project.folder(Store(Path("/s"))) == Path("/s/wandb/w.uni.edu_80--lab--a_b")


def test_a_plan_that_crowds_a_project_is_warned_of() -> None:
    assert size_warning("p", 7_999) == ""
    assert "8,000 runs in the W&B project p" in size_warning("p", 8_000)
    assert f"beyond {MOST_RUNS:,}" in size_warning("p", 8_000)


@pytest.mark.parametrize(("mode", "off"), [("disabled", 1), ("offline", 1), ("dryrun", 1), ("online", 0), ("", 0)])
def test_the_environment_can_switch_it_off(mode: str, off: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    assert switched_off() == (f"WANDB_MODE={mode} is set" if off else "")
