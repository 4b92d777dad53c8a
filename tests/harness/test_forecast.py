"""The forecast: what estimates rest on, the wall time of chains worked by hand, and cells that fit a budget."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.check import load_sweep
from harness.costs import FEW, SPREAD, Costs, Place, Record, units
from harness.errors import UserError
from harness.forecast import forecast, within
from harness.plan import Plan, Stage
from harness.planner import make_plan
from harness.store import Artifact, Result, Store, digest
from harness.time_left import TimeLeft
from harness.words import given_span, read_span

Run = Callable[..., subprocess.CompletedProcess[str]]
CPU = Place("cpu", 1)


def graph(edges: dict[str, list[str]]) -> Plan:
    """Return a plan of mask stages, each of a sort of its own, from child -> parents."""
    plan, keys = Plan("graph"), {}
    for name, parents in edges.items():
        spec = {"method": {"name": name}}
        above = {f"p{n}": keys[parent] for n, parent in enumerate(parents)}
        keys[name] = digest({"kind": "mask", "parents": above, **spec})
        plan.stages[keys[name]] = Stage(keys[name], "mask", spec, above, name)
    plan.leaves = list(keys.values())
    return plan


def costs_of(plan: Plan, seconds: dict[str, float]) -> Costs:
    costs = Costs(plan, CPU)
    for stage in plan.stages.values():
        costs.learn(stage, Record(CPU, seconds[stage.label], bytes=100))
    return costs


def test_a_chain_cannot_be_hurried_by_more_slots() -> None:
    plan = graph({"a": [], "b": ["a"], "c": ["b"], "x": [], "y": []})
    costs = costs_of(plan, {"a": 10, "b": 10, "c": 10, "x": 4, "y": 4})
    todo = list(plan.stages)
    assert forecast(plan, todo, costs, slots=1).wall[1] == pytest.approx(38)
    assert forecast(plan, todo, costs, slots=2).wall[1] == pytest.approx(30)
    assert forecast(plan, todo, costs, slots=50).wall[1] == pytest.approx(30)
    seen = forecast(plan, todo, costs, slots=2)
    assert seen.chain == pytest.approx(30)
    assert seen.work[1] == pytest.approx(38)
    assert seen.bytes == 500
    assert seen.files == 25
    assert (seen.work[0], seen.work[2]) == (pytest.approx(38 / FEW), pytest.approx(38 * FEW))


def test_the_longest_way_goes_first() -> None:
    """Two slots, and three short stages beside a chain: short ones first would end at 13, the chain first at 11."""
    plan = graph({"s1": [], "s2": [], "s3": [], "a": [], "b": ["a"]})
    costs = costs_of(plan, {"s1": 3, "s2": 3, "s3": 3, "a": 5, "b": 5})
    assert forecast(plan, list(plan.stages), costs, slots=2).wall[1] == pytest.approx(10)


def test_what_nothing_is_known_of_is_named_and_left_out() -> None:
    plan = graph({"a": [], "b": []})
    costs = Costs(plan, CPU)
    first, _ = plan.stages.values()
    costs.learn(first, Record(CPU, 2.0))
    seen = forecast(plan, list(plan.stages), costs, slots=1)
    assert seen.work[1] == pytest.approx(4.0), "the other is at least a mask of the same network"
    assert seen.basis == {"the same settings": 1, "the same network": 1}
    empty = forecast(plan, list(plan.stages), Costs(plan, CPU), slots=1)
    assert empty.unknown == {"mask": 2}
    assert empty.work == (0, 0, 0)
    assert not empty.basis


SWEEP = """
name: x
protocol: quick
grid:
  dataset: digits
  arch: [resnet20, resnet32]
  mask: [snip, random]
  sparsity: 90%
  recipe: [default, ls]
  seed: 0..1
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "x.yaml").write_text(SWEEP)
    return make_plan(load_sweep(tmp_path / "x.yaml"), Store(tmp_path / "runs"), tmp_path)


def trained(plan: Plan, label: str) -> Stage:
    return next(stage for stage in plan.stages.values() if stage.kind == "train" and stage.label == label)


def result(seconds: float, threads: int = 1, device: str = "cpu") -> Result:
    stamp = {"device": device, "threads": threads}
    return Result(1, Artifact("0" * 64, 1000), {}, {}, stamp, {"seconds": seconds})


def test_the_most_alike_record_counts(plan: Plan) -> None:
    costs = Costs(plan, CPU)
    done = trained(plan, "digits resnet20 snip 90% default seed 0")
    costs.add(done, result(80.0))
    same = costs.estimate(trained(plan, "digits resnet20 snip 90% default seed 1"))
    assert same is not None
    assert (same.mid, same.level) == (pytest.approx(80.0), 0)
    other_recipe = costs.estimate(trained(plan, "digits resnet20 snip 90% ls seed 0"))
    assert other_recipe is not None
    assert (other_recipe.mid, other_recipe.level) == (pytest.approx(80.0), 1)
    assert other_recipe.high == pytest.approx(80.0 * SPREAD[1])
    assert costs.estimate(trained(plan, "digits resnet32 snip 90% ls seed 0")) is None
    costs.add(trained(plan, "digits resnet20 snip 90% ls seed 1"), result(100.0))
    exact = costs.estimate(trained(plan, "digits resnet20 snip 90% ls seed 0"))
    assert exact is not None
    assert (exact.mid, exact.level) == (pytest.approx(100.0), 0)


def test_a_time_taken_elsewhere_says_nothing_here(plan: Plan) -> None:
    costs = Costs(plan, CPU)
    done = trained(plan, "digits resnet20 snip 90% default seed 0")
    costs.add(done, result(80.0, threads=2))
    costs.add(done, result(5.0, device="cuda"))
    assert costs.estimate(done) is None
    assert Costs(plan, Place("cuda", 1)).estimate(done) is None


def test_an_accepted_result_took_no_time_here(plan: Plan) -> None:
    costs = Costs(plan, CPU)
    done = trained(plan, "digits resnet20 snip 90% default seed 0")
    old = result(80.0)
    costs.add(done, Result(1, old.artifact, {}, {}, old.stamp, {**old.provenance, "blessed": {"from": "x"}}))
    assert costs.estimate(done) is None


def test_the_interval_holds_most_records(plan: Plan) -> None:
    costs = Costs(plan, CPU)
    stage = trained(plan, "digits resnet20 snip 90% default seed 0")
    for seconds in (50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 200.0):
        costs.add(stage, result(seconds))
    estimate = costs.estimate(stage)
    assert estimate is not None
    assert estimate.mid == pytest.approx(80.0)
    assert estimate.low <= 55
    assert estimate.high >= 150


def test_a_training_is_measured_by_its_epochs(plan: Plan) -> None:
    stage = trained(plan, "digits resnet20 snip 90% default seed 0")
    assert units(stage) == 8
    protocol = {**stage.spec["protocol"], "epochs": 16}
    longer = Stage("k", "train", {**stage.spec, "protocol": protocol}, stage.parents, "")
    costs = Costs(plan, CPU)
    costs.add(stage, result(80.0))
    estimate = costs.estimate(longer)
    assert estimate is not None
    assert estimate.mid == pytest.approx(160.0)


def test_a_budget_takes_cells_in_order_and_pays_for_what_they_share_once(plan: Plan) -> None:
    costs = Costs(plan, CPU)
    for stage in plan.stages.values():
        costs.learn(stage, Record(CPU, {"data": 10.0, "mask": 20.0, "train": 100.0 / 8}[stage.kind]))
    todo = list(plan.stages)
    high = {stage.kind: costs.estimate(stage).high for stage in plan.stages.values()}  # type: ignore[union-attr]
    first = high["data"] + high["mask"] + high["train"]
    assert within(plan.cells, plan, todo, costs, first - 1)[0] == []
    one, spent = within(plan.cells, plan, todo, costs, first + 1)
    assert [cell.label for cell, _ in one] == [plan.cells[0][0].label]
    assert spent == pytest.approx(first)
    more, spent = within(plan.cells, plan, todo, costs, first + high["train"] + high["mask"] + 1)
    assert len(more) == 2
    everything, spent = within(plan.cells, plan, todo, costs, 1e9)
    assert len(everything) == len(plan.cells)
    assert spent == pytest.approx(forecast(plan, todo, costs, slots=1).work[2])
    assert within(plan.cells, plan, todo, Costs(plan, CPU), 1e9)[0] == [], "nobody could promise it"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("55m", 3300),
        ("1h30m", 5400),
        ("90s", 90),
        ("2d", 172800),
        ("1.5h", 5400),
        ("500h", 1.8e6),
        ("1-12:00:00", 129600),
        ("12:30:00", 45000),
        ("30:00", 1800),
        ("7-00", 604800),
        ("1-12:30", 131400),
    ],
)
def test_times_are_read_as_people_and_slurm_write_them(text: str, seconds: float) -> None:
    assert read_span(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "55 minutes", "-5m", "1h 30", "1e3s", "nan"])
def test_what_is_no_time_is_refused_with_the_way_to_write_it(text: str) -> None:
    with pytest.raises(UserError, match=r"--until: .* is no time; write 55m"):
        given_span("--until", text)


def test_a_stage_is_taken_that_fits_or_whose_checkpoints_make_it_worth_it(plan: Plan) -> None:
    now = [0.0]
    costs = Costs(plan, CPU)
    training = trained(plan, "digits resnet20 snip 90% default seed 0")
    mask = plan.stages[training.parents["mask"]]
    left = TimeLeft.of(1000.0, costs, lambda: now[0])
    assert left.left == pytest.approx(980.0)
    assert left.allows(training), "nothing is known of it"
    costs.add(training, result(800.0))
    costs.add(mask, result(300.0))
    assert left.allows(mask)
    costs.add(mask, result(1000.0))
    assert left.allows(mask), "nobody like this worker will have more"
    now[0] = 700.0
    assert not left.allows(mask), "280 s are left, and it may take longer"
    assert left.allows(training), "it goes on elsewhere from its checkpoint"
    now[0] = 950.0
    assert not left.allows(training), "30 s are no time to get anywhere"
    assert not left.over()
    now[0] = 981.0
    assert left.over()


def test_an_attempt_ends_for_want_of_time_where_the_time_is_up(plan: Plan) -> None:
    now = [0.0]
    costs = Costs(plan, CPU)
    mask = plan.stages[trained(plan, "digits resnet20 snip 90% default seed 0").parents["mask"]]
    left = TimeLeft.of(1000.0, costs, lambda: now[0], limit=1020.0, notice=100.0)
    now[0] = 30.0
    left.begin()  # 950 s remain for stages
    assert left.take(mask) == 1020.0
    now[0] = 899.0
    assert left.because() == {}, "asked to leave for another reason"
    now[0] = 901.0
    assert left.because() == {"cause": "time", "limit": 1020.0, "needs": 0.0}
    costs.add(mask, result(2000.0))
    now[0] = 260.0
    left.take(mask)
    now[0] = 981.0
    assert left.because() == {"cause": "time", "limit": 1020.0, "needs": 2070.0}, "2000 s, and 70 s to begin and leave"
    now[0] = 280.0
    assert left.take(mask) == 0.0, "700 of 950 s are not all that a worker has"
    now[0] = 981.0
    assert left.because() == {"cause": "time"}


@pytest.mark.slow
def test_a_pilot_tries_out_what_is_unknown_and_the_outcome_is_held_against_it(project: Path, sweep: Run) -> None:
    text = (project / "tiny.yaml").read_text()
    (project / "tiny.yaml").write_text(text.replace("recipe: [default, ls]", "recipe: [default, gsw]"))
    before = sweep("tiny.yaml", "--plan")
    assert "nothing like them was ever run: 1 data, 10 mask, 16 train" in before.stdout
    tried = sweep("tiny.yaml", "--plan", "--pilot", "--workers", "1", "--threads", "1")
    assert tried.returncode == 0
    assert "pilot: digits thin random 50% gsw seed 0: about" in tried.stderr
    assert "data           1   to run       0" in tried.stdout, "the data set is made for good"
    assert "forecast: " in tried.stdout
    assert "from records of the same settings (26 stages)" in tried.stdout
    assert "nothing like them" not in tried.stdout
    again = sweep("tiny.yaml", "--plan", "--pilot", "--workers", "1", "--threads", "1", "--budget", "1h")
    assert "pilot:" not in again.stderr, "it is remembered"
    assert "within 1h: 10 cells of 10" in again.stdout
    done = sweep("tiny.yaml", "--workers", "1", "--threads", "1")
    assert done.returncode == 0, done.stderr
    said = re.search(r"forecast: ([\d.]+) core-minutes \(([\d.]+) to ([\d.]+)\) in .*; it took ([\d.]+)", done.stderr)
    assert said, done.stderr
    assert "for " not in said[0], "all of it was run"
