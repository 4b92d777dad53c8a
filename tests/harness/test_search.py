"""Searches: spaces, suggestions, who is stopped, what is written, and a real Ray Tune killed in the middle."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from harness import trials as optuna_trials
from harness.cell import expand
from harness.check import load_sweep
from harness.errors import FileError, UserError
from harness.form import Search
from harness.planfile import as_saved
from harness.planner import Planner
from harness.ray_run import Share, _searcher
from harness.ray_search import SearchTrials
from harness.report.assemble import make_report
from harness.search_run import Campaign
from harness.space import read_dimension
from harness.states import State
from harness.store import Store
from harness.study import DONE, STOPPED, Standing, Study, make_studies, value_of
from harness.trials import JournalLock, Trials
from tests.conftest import kill_tree, run_sweep, until, write_project

SEARCH = """
name: hunt
protocol: {preset: quick, epochs: 4}
use: {thin: "./thin.py:build"}
grid: {dataset: digits, arch: thin, mask: random, sparsity: 50%, recipe: LS}
search:
  space:
    lr: loguniform(0.001, 0.5)
    ls.alpha: uniform(0, 0.5)
  samples: 5
"""


def written(folder: Path, text: str = SEARCH) -> Path:
    folder.mkdir(exist_ok=True)
    write_project(folder)
    (folder / "hunt.yaml").write_text(text.replace("LS", "ls"))
    return folder


def studies(folder: Path, text: str = SEARCH) -> list[Study]:
    sweep = load_sweep(written(folder, text) / "hunt.yaml")
    store = Store(folder / "runs")
    return make_studies(sweep, store, Planner(sweep, store, folder))


def trials(folder: Path, text: str = SEARCH, **given: Any) -> Trials:
    """Open the baseline's trials as another call would."""
    return Trials(studies(folder, text)[1], Search(space={"lr": [0.1]}, samples=1, **given))


def drawn(trials: Trials) -> dict[str, Any]:
    settings = trials.draw()
    assert settings is not None
    assert trials.begin(settings)
    return settings


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("uniform(0.5, 0.9)", [0.5, 0.9]),
        ("loguniform(1e-4, .5)", [1e-4, 0.5]),
        ("integer(1, 3)", [1, 3]),
        ([0.1, 0.3], [0.1, 0.3]),
    ],
)
def test_draws_stay_inside_their_range_and_reach_both_halves(tmp_path: Path, text: object, ends: list[float]) -> None:
    dimension = read_dimension("lr", text)
    assert dimension.ends == ends
    found = Trials(replace(studies(tmp_path)[1], space=(dimension,)), Search(space={"lr": text}, samples=1))
    values = []
    for n in range(200):
        found.form = found.form.model_copy(update={"seed": n})
        values.append((found.draw() or {})["lr"])
    assert all(ends[0] <= value <= ends[-1] for value in values)
    middle = (ends[0] * ends[1]) ** 0.5 if "log" in str(text) else sum(ends) / 2
    assert 60 < sum(value < middle for value in values) + sum(value == middle for value in values) / 2 < 140
    assert all(value == float(f"{value:.4g}") for value in values)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("loguniform(0.001, 0.5)", "loguniform(0, 0.5)", "begins above 0"),
        ("loguniform(0.001, 0.5)", "uniform(0.5, 0.1)", "is empty"),
        ("loguniform(0.001, 0.5)", "normal(0, 1)", "write uniform(a, b), loguniform(a, b), integer(a, b), or a list"),
        ("loguniform(0.001, 0.5)", "[0.1, fast]", "'fast' is not allowed"),
        ("ls.alpha: uniform(0, 0.5)", "epochs: [4, 8]", "only how a cell trains can be tuned"),
        ("ls.alpha: uniform(0, 0.5)", "ls.alpa: uniform(0, 0.5)", "did you mean 'alpha'"),
        ("ls.alpha: uniform(0, 0.5)", "recipe: [ls]", "only how a cell trains can be tuned"),
        ("recipe: LS}", "recipe: LS, seed: 0..2}", "a search trains one seed"),
        ("recipe: LS}", "recipe: LS, lr: [0.1, 0.2]}", "it is an axis of the grid too"),
        ("samples: 5", "samples: {ls: 5}", "says nothing of default"),
        ("samples: 5", "samples: {ls: 5, default: 5, gsw: 5}", "gsw: no such recipe"),
        ("samples: 5", "samples: 0", "from 1 to"),
        ("samples: 5", "samples: 5\n  mode: min", "better the other way"),
        ("samples: 5", "samples: 5\n  searcher: grid", "searcher"),
        ("samples: 5", "samples: 5\n  scheduler: {asha: {reduction: 1.5}}", "whole number"),
        ("samples: 5", "samples: 5\n  scheduler: {asha: {reduction: 1}}", "greater than or equal to 2"),
        ("epochs: 4}", "epochs: 4, dev: none}", "the protocol's dev is none"),
    ],
)
def test_a_mistake_in_a_search_is_told_with_what_is_allowed(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in SEARCH
    with pytest.raises(FileError) as error:
        load_sweep(written(tmp_path, SEARCH.replace(old, new)) / "hunt.yaml")
    assert said in str(error.value)
    assert "hunt.yaml:" in str(error.value)


def test_the_baseline_is_tuned_as_often_over_what_it_has(tmp_path: Path) -> None:
    ls, default = studies(tmp_path)
    assert [(s.cell.recipe.text, s.samples) for s in (ls, default)] == [("ls", 5), ("default", 5)]
    assert [d.axis for d in ls.space] == ["lr", "ls.alpha"]
    assert [d.axis for d in default.space] == ["lr"]
    alone = studies(tmp_path, SEARCH.replace("samples: 5", "samples: 5\n  baseline: none"))
    assert [s.cell.recipe.text for s in alone] == ["ls"]
    counted = studies(tmp_path, SEARCH.replace("samples: 5", "samples: {ls: 2, default: 7}"))
    assert [s.samples for s in counted] == [2, 7]


def test_draws_are_the_same_after_a_restart_and_never_come_twice(tmp_path: Path) -> None:
    text = SEARCH.replace("loguniform(0.001, 0.5)", "[0.1, 0.2, 0.3]")
    default = trials(tmp_path, text)
    first = [drawn(default)["lr"] for _ in range(3)]
    assert sorted(first) == [0.1, 0.2, 0.3]
    assert default.draw() is None
    again = trials(tmp_path, text)
    assert [(trial.number, trial.settings["lr"]) for trial in again] == list(enumerate(first, 1))
    other = trials(tmp_path, text.replace("epochs: 4", "epochs: 5"))
    assert not list(other)  # trained otherwise, they do not compare
    assert other.spent() == 3  # but they were spent


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_what_is_drawn_depends_on_the_journal_alone(tmp_path: Path, searcher: str) -> None:
    def run(folder: Path, text: str, killed: bool) -> list[dict[str, Any]]:
        found = trials(folder, text, searcher=searcher)
        for _ in range(14):
            settings = drawn(found)
            trial = list(found)[-1]
            found = trials(folder, text, searcher=searcher) if killed else found
            found.record(trial, [(4, settings["lr"])], Standing(DONE, settings["lr"], 4))
            found = trials(folder, text, searcher=searcher) if killed else found
        return [dict(trial.settings) for trial in found]

    calm = run(tmp_path / "calm", SEARCH, killed=False)
    assert calm == run(tmp_path / "killed", SEARCH, killed=True)
    assert len({str(settings) for settings in calm}) == 14


def test_every_draw_has_a_seed_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_trials, "REDRAWS", 1)
    found = trials(tmp_path)
    assert len({drawn(found)["lr"] for _ in range(5)}) == 5
    assert (trials(tmp_path / "other", seed=1).draw() or {})["lr"] != next(iter(found)).settings["lr"]


def test_values_of_every_kind_come_back_from_the_journal(tmp_path: Path) -> None:
    space = [("milestones", [[30, 40], [30]]), ("nesterov", [True, False]), ("lr", "integer(1, 3)")]
    study = replace(studies(tmp_path)[1], space=tuple(read_dimension(*each) for each in space))
    form = Search(space={"lr": [0.1]}, samples=1)
    settings = drawn(Trials(study, form))
    assert [trial.settings for trial in Trials(study, form)] == [settings]
    assert [type(value) for value in settings.values()] == [tuple, bool, int]


@pytest.mark.parametrize("before", [0, 1])
def test_of_one_draw_that_two_calls_make_at_once_the_first_counts(tmp_path: Path, before: int) -> None:
    one, two = trials(tmp_path), trials(tmp_path)
    for _ in range(before):
        drawn(one)
    settings = one.draw() or {}
    assert two.draw() == settings
    assert one.begin(settings)
    assert two.begin(settings) is None
    assert len(list(two)) == before + 1
    assert drawn(two) != settings
    one.look()
    assert [trial.settings for trial in one] == [trial.settings for trial in two]
    assert one.spent() == before + 2


ASHA = {"scheduler": {"asha": {"grace": 1, "reduction": 2}}}


def behind(trials: Trials, values: list[tuple[int, int, float]]) -> list[bool]:
    """Report trial, epoch and value; return of each whether that stopped it."""
    found = []
    for number, epoch, value in values:
        trial = list(trials)[number - 1]
        before = trial.stop.exists()
        trials.report(trial, epoch, value)
        found.append(trial.stop.exists() and not before)
    return found


def test_halving_stops_who_is_behind(tmp_path: Path) -> None:
    found = trials(tmp_path, **ASHA)
    for _ in range(4):
        drawn(found)
    reports = [(1, 1, 50.0), (2, 1, 60.0), (3, 1, 40.0), (2, 2, 70.0), (1, 2, 65.0), (4, 4, 1.0)]
    assert behind(found, reports) == [False, False, True, False, True, False]  # at its end nobody is stopped
    least = trials(tmp_path / "least", metric="dev_loss", **ASHA)
    for _ in range(3):
        drawn(least)
    assert behind(least, [(1, 1, 1.0), (2, 1, 0.5), (3, 1, 2.0)]) == [False, False, True]
    never = trials(tmp_path / "never", scheduler="none")
    for _ in range(3):
        drawn(never)
    assert not any(behind(never, [(n, 1, -n) for n in (1, 2, 3)]))


def test_a_trial_is_judged_among_those_that_the_same_scheduler_judges(tmp_path: Path) -> None:
    first = trials(tmp_path, **ASHA)
    for _ in range(2):
        drawn(first)
    behind(first, [(1, 1, 90.0), (2, 1, 95.0), (2, 2, 96.0)])
    later = trials(tmp_path, scheduler={"asha": {"grace": 2, "reduction": 2}})
    for _ in range(2):
        drawn(later)
    reports = [(3, 1, 10.0), (3, 2, 50.0), (4, 2, 40.0), (2, 3, 1.0)]
    assert behind(later, reports) == [False, False, True, False], "others' first rung is another epoch's"


class Killed(Exception):
    pass


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_stop_is_not_lost_to_a_kill_between_report_and_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def killed(path: Path, data: bytes) -> None:
        if when == "after":
            path.write_bytes(data)
        raise Killed

    found = trials(tmp_path, **ASHA)
    for _ in range(2):
        drawn(found)
    behind(found, [(1, 1, 50.0), (1, 2, 60.0)])
    monkeypatch.setattr(optuna_trials, "publish", killed)
    with pytest.raises(Killed):
        behind(found, [(2, 1, 40.0)])
    monkeypatch.undo()
    again = trials(tmp_path, **ASHA)
    last = list(again)[1]
    again.record(last, [(1, 40.0)], Standing("open"))
    assert last.stop.read_text() == "1\n"
    again.record(last, [(1, 40.0)], Standing(STOPPED, 40.0, 1))
    drawn(again)
    assert behind(again, [(3, 1, 45.0)]) == [True]  # what was judged before counts
    assert [trials(tmp_path, **ASHA).standing(trial).name for trial in again] == ["open", "stopped", "open"]


def test_a_line_that_a_killed_call_has_half_written_is_removed(tmp_path: Path) -> None:
    found, other = trials(tmp_path), trials(tmp_path)
    drawn(found)
    whole = found.path.read_bytes()
    for torn in (b'{"op_code":4,"wor', b"\0\0\0"):
        found.path.write_bytes(whole + torn)
        assert len(list(trials(tmp_path))) == 1
        other.look()
        drawn(other)
        assert len(list(trials(tmp_path))) == 2
        found.path.write_bytes(whole)
        other = trials(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b"1",
        b"\xff\xfe",
        b'{"op_code":4,"wor',
        b'{"op_code":77,"worker_id":"w"}',
        b'{"op_code":8,"worker_id":"w","trial_id":0,"user_attr":{"draw":7}}',
        b'{"op_code":4,"worker_id":"w","study_id":0,"datetime_start":null,"params":[]}',
        b'{"op_code":4,"worker_id":"w","study_id":0,"datetime_start":null}',
    ],
)
def test_a_journal_that_is_damaged_or_of_a_newer_optuna_is_named(tmp_path: Path, line: bytes) -> None:
    found = trials(tmp_path)
    for _ in range(2):
        drawn(found)
    with found.path.open("ab") as file:
        file.write(line + b"\n" + found.path.read_bytes().splitlines()[-1] + b"\n")
    with pytest.raises(UserError, match=r"journal.log: this journal of a search is damaged, .* remove the file"):
        trials(tmp_path)
    with pytest.raises(UserError, match=r"is damaged"):
        found.look()


def test_looking_at_a_search_locks_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: JournalLock) -> bool:
        raise AssertionError("locked")

    found = trials(tmp_path)
    drawn(found)
    before = found.path.read_bytes()
    monkeypatch.setattr(JournalLock, "acquire", refused)
    again = trials(tmp_path)
    assert (len(list(again)), again.spent()) == (1, 1)
    other = trials(tmp_path, SEARCH.replace("epochs: 4", "epochs: 5"))
    assert (len(list(other)), other.spent()) == (0, 1)
    assert found.path.read_bytes() == before


def test_a_stop_of_a_journal_that_was_removed_stops_no_other_settings(tmp_path: Path) -> None:
    found = trials(tmp_path)
    settings = drawn(found)
    stop = next(iter(found)).stop
    stop.touch()
    found.path.unlink()
    again = trials(tmp_path)
    assert again.begin({"lr": 0.25}), "as another sampler or seed draws it"
    assert not next(iter(again)).stop.exists()
    again.path.unlink()
    again = trials(tmp_path)
    assert drawn(again) == settings
    assert next(iter(again)).stop == stop


def test_a_lock_whose_holder_was_killed_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = trials(tmp_path)
    drawn(found)
    code = (
        "import sys, pathlib; from harness.trials import JournalLock\n"
        "JournalLock(pathlib.Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(found.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        os.kill(holder.pid, signal.SIGKILL)
    lock = found.path.with_name(found.path.name + ".lock")
    assert lock.exists()
    monkeypatch.setattr(optuna_trials, "GRACE", 0.2)
    with pytest.warns(UserWarning, match="grace_period"):
        found = trials(tmp_path)
    drawn(found)
    assert not lock.exists()
    assert len(list(found)) == 2


def test_a_holder_that_was_frozen_for_long_does_not_fail_at_the_end(tmp_path: Path) -> None:
    lock = JournalLock(tmp_path / "journal")
    lock.path.touch()
    lock.acquire()
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == [lock.path], "the lock file is gone"


def test_trials_of_the_earlier_form_are_taken_over_once(tmp_path: Path) -> None:
    study = studies(tmp_path)[1]
    study.folder.mkdir(parents=True)
    for number, identity in enumerate([study.identity, "another", study.identity], 1):
        body = {"study": study.label, "identity": identity, "settings": {"lr": number / 10}}
        (study.folder / f"{number:05d}.json").write_text(json.dumps(body))
    for _ in range(2):
        found = trials(tmp_path)
        assert [(trial.number, trial.settings["lr"]) for trial in found] == [(1, 0.1), (2, 0.3)]
        assert found.spent() == 3
        assert not found.path.exists(), "nothing was begun yet"
    drawn(found)
    assert [trial.number for trial in trials(tmp_path)] == [1, 2, 3]
    assert trials(tmp_path).spent() == 4
    lines = found.path.read_bytes().splitlines(keepends=True)
    found.path.write_bytes(b"".join(lines[:2]))  # killed while it took them over
    found = trials(tmp_path)
    assert [trial.settings["lr"] for trial in found] == [0.1, 0.3]
    found.record(list(found)[1], [(4, 50.0)], Standing(DONE, 50.0, 4))
    assert [trials(tmp_path).standing(trial).name for trial in found] == ["open", "done"]
    assert trials(tmp_path).spent() == 3


def test_what_a_trial_is_judged_by_is_what_its_table_will_report() -> None:
    rows = [
        {"epoch": 1, "best": False, "dev_accuracy": 90.0},  # ghosts live
        {"epoch": 2, "best": True, "dev_accuracy": 80.0},
        {"epoch": 3, "best": False, "dev_accuracy": 70.0},
    ]
    assert value_of(rows, "dev_accuracy", "test@last") == 70.0
    assert value_of(rows, "dev_accuracy", "test@best-dev") == 80.0
    assert value_of(rows[:1], "dev_accuracy", "test@best-dev") == 90.0


def test_optunas_sampler_learns_from_trials_of_earlier_calls(tmp_path: Path) -> None:
    found = trials(tmp_path, searcher="optuna")
    for value in range(30):  # good where lr is near 0.01
        trial = found.begin({"lr": min(0.001 * 1.23**value, 0.5)})
        assert trial
        found.record(trial, [], Standing(DONE, -abs(value - 11.0), 4))
    again = trials(tmp_path, searcher="optuna")
    values = [drawn(again)["lr"] for _ in range(12)]
    assert sum(0.003 < lr < 0.04 for lr in values) > 7, values


TUNED = """
search: hunt
metric: dev_accuracy
mode: max
searcher: random
scheduler: asha
seed: 0
space: {lr: "loguniform(0.001, 0.5)"}
tuned:
  - {at: {arch: thin, recipe: default}, set: {lr: 0.02}, trials: 20, value: 90.0, trial: 3}
  - {at: {arch: thin, recipe: ls}, set: {lr: 0.3, ls.alpha: 0.2}, trials: 20, value: 91.0, trial: 5}
"""
USES = """
name: uses
protocol: {preset: quick, epochs: 2}
use: {thin: "./thin.py:build"}
tuned: tuned.yaml
grid: {dataset: digits, arch: thin, mask: random, sparsity: 50%, recipe: [default, ls]}
tables: [any-mask]
"""


def uses(folder: Path, tuned: str = TUNED, text: str = USES) -> Path:
    write_project(folder)
    (folder / "tuned.yaml").write_text(tuned)
    (folder / "uses.yaml").write_text(text)
    return folder / "uses.yaml"


def test_tuned_settings_reach_their_cells_and_make_no_axis(tmp_path: Path) -> None:
    sweep = load_sweep(uses(tmp_path))
    cells = expand(sweep)[0]
    assert [cell.protocol.lr for cell in cells] == [0.02, 0.3]
    assert [dict(part.given) for cell in cells for part in cell.recipe.parts] == [{"alpha": 0.2}]
    assert [cell.label for cell in cells] == [f"digits thin random 50% {name} seed 0" for name in ("default", "ls")]
    store = Store(tmp_path / "runs")
    planner = Planner(sweep, store, tmp_path)
    plan = planner.plan
    plan.cells = [(cell, planner.cell(cell)) for cell in cells]
    grids = make_report(store, [as_saved(plan, sweep)]).grids
    assert len(grids) == 1
    assert "Settings tuned by dev_accuracy on the dev split, trials each: default 20, ls 20." in grids[0].caption


def test_a_table_says_where_recipes_were_not_tuned_alike(tmp_path: Path) -> None:
    sweep = load_sweep(uses(tmp_path, TUNED.replace("set: {lr: 0.02}, trials: 20", "set: {lr: 0.02}, trials: 3")))
    store = Store(tmp_path / "runs")
    planner = Planner(sweep, store, tmp_path)
    planner.plan.cells = [(cell, planner.cell(cell)) for cell in expand(sweep)[0]]
    caption = make_report(store, [as_saved(planner.plan, sweep)]).grids[0].caption
    assert "Not tuned alike: by dev_accuracy on the dev split, trials each: default 3, ls 20." in caption


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lr: 0.02}", "lr: fast}", "'fast' is not allowed"),
        ("recipe: ls}", "recipe: default}", "two entries are for the same cell"),
        ("arch: thin, recipe: default", "arc: thin, recipe: default", "'arc' is no axis"),
        ("trials: 20", "trials: 0", "greater than or equal to 1"),
    ],
)
def test_a_mistake_in_a_tuned_file_is_told(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in TUNED
    with pytest.raises(FileError) as error:
        expand(load_sweep(uses(tmp_path, TUNED.replace(old, new, 1))))
    assert said in str(error.value)
    with pytest.raises(FileError, match="is no file"):
        load_sweep(uses(tmp_path, text=USES.replace("tuned.yaml", "gone.yaml")))
    with pytest.raises(FileError, match="lr is tuned and an axis"):
        expand(load_sweep(uses(tmp_path, text=USES.replace("recipe: [", "lr: 0.1, recipe: ["))))


def test_a_training_that_was_stopped_early_is_over_and_no_failure() -> None:
    state = State("stopped early", 1, epoch=9)
    assert (state.label, state.over, state.claimable) == ("stopped@9", True, False)


def test_a_search_refuses_what_it_does_not_do(tmp_path: Path) -> None:
    written(tmp_path)
    for option in (["--via", "debug"], ["--detach"], ["--limit", "1"], ["--miniature"]):
        done = run_sweep(tmp_path, "hunt.yaml", *option)
        assert done.returncode == 2
        assert "is not for a file with `search:`" in done.stderr
    done = run_sweep(tmp_path, "hunt.yaml", "--plan")
    assert done.returncode == 0
    assert "digits thin random 50% default: 5 trials of 4 epochs: lr: loguniform(0.001, 0.5)" in done.stdout


def tuned_file(folder: Path) -> str:
    return (folder / "runs/sweeps/hunt/tuned.yaml").read_text()


def trained(folder: Path) -> list[Path]:
    return list(folder.glob("runs/stages/train/*/*/result-*.json"))


def stops(folder: Path) -> list[Path]:
    return list(folder.glob("runs/sweeps/hunt/search/*/*.stop"))


def journals(folder: Path, text: str) -> list[Any]:
    """Return settings, end, and value by epoch of every trial."""
    made = load_sweep(folder / "hunt.yaml").search
    assert made
    return [
        (trial.params, trial.state.name, trial.value, trial.intermediate_values)
        for study in studies(folder, text)
        for trial in Trials(study, made.form).begun
    ]


@pytest.mark.slow
def test_a_search_killed_in_the_middle_and_run_again_makes_the_same_draws_and_stops(
    project: Path, tmp_path_factory: pytest.TempPathFactory, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    text = SEARCH.replace("samples: 5", "samples: 5\n  scheduler: {asha: {grace: 1, reduction: 2}}")
    calm = written(tmp_path_factory.mktemp("calm"), text)
    alone = ("--threads", "1", "--workers", "1")
    done = run_sweep(calm, "hunt.yaml", *alone)
    assert done.returncode == 0, done.stderr
    written(project, text)
    process = start("harness.sweep", "hunt.yaml", *alone)
    until(lambda: len(trained(project)) + len(stops(project)) >= 4)
    kill_tree(process.pid)
    process.wait()
    assert len(trained(project)) + len(stops(project)) < 10
    done = run_sweep(project, "hunt.yaml", *alone)
    assert done.returncode == 0, done.stderr
    assert journals(project, text) == journals(calm, text)
    assert tuned_file(project) == tuned_file(calm)
    assert {path.name: path.read_text() for path in stops(project)} == {
        path.name: path.read_text() for path in stops(calm)
    }
    assert stops(calm)
    assert len(trained(project)) + len(stops(project)) == 10
    for rows in project.glob("runs/stages/train/*/*/attempt-*/metrics.jsonl"):
        assert "test" not in rows.read_text()
    assert not any("test@last" in path.read_text() for path in trained(project))


@pytest.mark.slow
def test_who_is_behind_is_stopped_and_its_settings_are_used(project: Path) -> None:
    text = SEARCH.replace("samples: 5", "samples: 9\n  scheduler: {asha: {grace: 1, reduction: 2}}\n  write: best.yaml")
    written(project, text)
    done = run_sweep(project, "hunt.yaml", "--threads", "1")
    assert done.returncode == 0, done.stderr
    ends = [json.loads(path.read_text()) for path in project.glob("runs/stages/train/*/*/attempt-*/end.json")]
    early = [end for end in ends if end.get("cause") == "search"]
    assert early
    assert all(end["epoch"] in (1, 2) for end in early)
    assert len(early) + len(trained(project)) == 18
    again = run_sweep(project, "hunt.yaml", "--threads", "1")
    assert "trials done" not in again.stderr  # Ray was not even started
    assert again.stdout == done.stdout
    (project / "uses.yaml").write_text(USES.replace("tuned.yaml", "best.yaml"))
    done = run_sweep(project, "uses.yaml", "--via", "local")
    assert done.returncode == 0, done.stderr
    with (project / "runs/sweeps/uses/report/cells.csv").open() as file:
        assert [cell["tuning_trials"] for cell in csv.DictReader(file)] == ["9", "9"]


@pytest.mark.long
@pytest.mark.slow
def test_what_a_search_has_tried_is_no_waste(project: Path) -> None:
    written(project, SEARCH.replace("samples: 5", "samples: 2\n  baseline: none\n  scheduler: none"))
    assert run_sweep(project, "hunt.yaml", "--threads", "1").returncode == 0
    before = trained(project)
    done = run_sweep(project, "hunt.yaml", "--gc", "--yes")
    assert done.returncode == 0, done.stderr
    assert trained(project) == before
    assert len(before) == 2


@pytest.mark.long
@pytest.mark.slow
def test_two_calls_of_a_search_share_its_trials(project: Path, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    written(project, SEARCH.replace("samples: 5", "samples: 8\n  baseline: none\n  scheduler: none"))
    both = [start("harness.sweep", "hunt.yaml", "--threads", "1", "--workers", "1") for _ in range(2)]
    said = [process.communicate(timeout=240)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said  # who ends first waits for the other's trials
    assert "trouble" not in "".join(said)
    assert len(trained(project)) == 8
    last = run_sweep(project, "hunt.yaml")
    assert last.returncode == 0, last.stderr
    assert "trials: 8\n" in tuned_file(project)
    assert not list(project.glob("runs/sweeps/hunt/search/plan-*"))


def opened(folder: Path, text: str) -> Campaign:
    """Open a search as a call of its own does."""
    sweep = load_sweep(written(folder, text) / "hunt.yaml")
    store = Store(folder / "runs")
    return Campaign(sweep, store, make_studies(sweep, store, (planner := Planner(sweep, store, folder))), planner)


def test_trials_that_another_call_has_begun_are_taken_up_when_nothing_else_is_left(tmp_path: Path) -> None:
    text = SEARCH.replace("samples: 5", "samples: 2\n  baseline: none")
    one, two = opened(tmp_path, text), opened(tmp_path, text)
    mine, theirs = one.next(), two.next()
    assert mine
    assert theirs
    assert [trial.number for _, trial in (mine, theirs)] == [1, 2]
    found = one.next()
    assert found
    assert found[1].settings == theirs[1].settings
    assert one.order(*found)["key"] == two.order(*theirs)["key"]
    assert one.next() is None
    assert one.ended == 0


def test_a_store_that_fails_in_the_middle_ends_a_search_with_its_trials_and_no_traceback(tmp_path: Path) -> None:
    campaign = opened(tmp_path, SEARCH)
    searcher = _searcher(SearchTrials(campaign), Share(), {"cancelled": str(tmp_path / "cancelled")})
    assert searcher.suggest("one")
    journal = campaign.tried[0].trials.path
    journal.rename(journal.with_name("aside"))
    journal.mkdir()
    searcher.on_trial_result("one", {"outcome": "", "epoch": 1, "value": 50.0})
    assert searcher.suggest("two") is None, "the first one goes on"
    searcher.on_trial_result("one", {"outcome": "over"})
    searcher.on_trial_complete("one")
    assert searcher.suggest("two") == Searcher.FINISHED
    assert isinstance(searcher.mistake, OSError)


def test_settings_that_do_not_go_together_are_refused_before_they_count(tmp_path: Path) -> None:
    campaign = opened(tmp_path, SEARCH.replace("ls.alpha: uniform(0, 0.5)", "momentum: [0.0]\n    nesterov: [true]"))
    with pytest.raises(FileError, match=r"hunt.yaml:\d+: lr=.*, momentum=0.0, nesterov=True: .*needs a momentum"):
        campaign.next()
    assert [tried.trials.spent() for tried in campaign.tried] == [0, 0]
    assert campaign.unfinished
