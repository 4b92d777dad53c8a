"""Claims: registered before the first result, judged when planned, and never unsaid."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from harness.check import load_sweep
from harness.declaring import check_claims
from harness.errors import FileError
from harness.planfile import SavedPlan, as_saved, read_plan
from harness.planner import make_plan
from harness.registry import members, register, registered
from harness.report.assemble import Report, make_report
from harness.report.claims import Judged
from harness.sealed import seal, unseal
from harness.store import Result, Store, digest
from tests.harness.synthetic import write_store

SWEEP = """
name: claimed
protocol: quick
grid:
  {{dataset: digits, arch: resnet20, mask: [snip, random], sparsity: [90%, 98%], recipe: [default, ls], seed: {seeds}}}
claims: [{{name: helps, compare: {{recipe: [ls, default]}}, margin: {margin}, seeds: {planned}{more}}}]
tables: [any-mask]
"""
Row = Callable[[Mapping[str, str]], str]
"""axis -> label to the accuracy, or the state of a hole."""


def store(folder: Path, row: Row, seeds: str = "0..3", margin: float = 1, planned: int = 4, more: str = "") -> Report:
    """Write what a sweep's store lacks, and report."""
    (folder / "x.yaml").write_text(SWEEP.format(seeds=seeds, margin=margin, planned=planned, more=more))
    place, saved = write_store(folder, folder / "x.yaml", rows(row))
    return make_report(place, [saved], rebuild=True)


def rows(row: Row) -> Callable[[Mapping[str, str]], dict[str, str]]:
    """Return what a store's rows are, by axis."""

    def row_of(place: Mapping[str, str]) -> dict[str, str]:
        said = row(place)
        done = said.replace(".", "").isdigit()
        return {"state": "done", "test": said, "dev": said, "cause": ""} if done else {"state": said, "cause": "why"}

    return row_of


def gain(by: float, until: int = 9, spread: float = 0.1) -> Row:
    """Return accuracies with a gain of ls, and a little more of it with every seed; of the first seeds only."""

    def row(place: Mapping[str, str]) -> str:
        seed = int(place["seed"])
        if seed >= until:
            return "missing"
        return f"{80 + (place['recipe'] == 'ls') * (by + spread * (seed - 1.5)):.3f}"

    return row


def judged(report: Report) -> Judged:
    (claim,) = report.claims
    return claim


def test_a_claim_is_registered_before_the_first_result_and_judged_once_all_seeds_are_there(tmp_path: Path) -> None:
    early = judged(store(tmp_path, gain(2.0, until=0)))
    assert not early.exploratory
    assert early.claim.record["results"] == 0
    assert early.claim.record["seeds"] == [0, 1, 2, 3]
    partly = judged(store(tmp_path, gain(2.0, until=3)))
    assert partly.found is None
    assert partly.verdict == ""
    assert "to be judged at 4 seeds (3 are done)" in " ".join(partly.remarks)
    assert partly.claim.analysis is None
    report = store(tmp_path, gain(2.0))
    whole = judged(report)
    assert whole.verdict == "better"
    assert whole.found is not None
    assert (whole.found.mean, whole.found.n, whole.found.cells) == (pytest.approx(2.0), 4, 4)
    assert whole.claim.record["date"] == early.claim.record["date"]
    grid = report.grids[0]
    assert grid.name == "claims"
    assert grid.entry(("helps",), ("verdict",)).text == "better"
    assert "cells from +2.00 to +2.00, 0 of 4 below 0" in grid.caption


@pytest.mark.parametrize(
    ("by", "spread", "margin", "said"),
    [(2.0, 0.1, 1, "better"), (-2.0, 0.1, 1, "worse"), (0.1, 0.1, 1, "equivalent"), (0.5, 2.0, 1, "undecided")],
)
def test_verdicts(by: float, spread: float, margin: float, said: str, tmp_path: Path) -> None:
    store(tmp_path, gain(by, until=0), margin=margin)
    found = judged(store(tmp_path, gain(by, spread=spread), margin=margin))
    assert found.verdict == said


def test_what_is_registered_late_is_exploratory(tmp_path: Path) -> None:
    store(tmp_path, gain(2.0))
    later = store(tmp_path, gain(2.0), margin=0.5)
    assert judged(later).exploratory
    caption = later.grids[0].caption
    assert "exploratory: 32 of its 32 cells had a result" in caption
    assert "Registered earlier, and replaced since: helps" in caption
    assert "better at 4 seeds" in caption, "what an earlier claim came to is told"


def test_another_grid_makes_another_claim(tmp_path: Path) -> None:
    first = judged(store(tmp_path, gain(2.0, until=0))).claim.hash
    more = store(tmp_path, gain(2.0, until=0), seeds="0..5")
    assert judged(more).claim.hash == first, "more seeds leave it what it was"
    text = (tmp_path / "x.yaml").read_text().replace("[snip, random]", "[snip]")
    (tmp_path / "x.yaml").write_text(text)
    sweep, place = load_sweep(tmp_path / "x.yaml"), Store(tmp_path / "runs")
    (narrow,) = registered(as_saved(make_plan(sweep, place, tmp_path), sweep), place)
    assert narrow.hash != first


def test_an_analysis_stands_though_results_change_or_seeds_are_added(tmp_path: Path) -> None:
    store(tmp_path, gain(2.0, until=0))
    store(tmp_path, gain(2.0))
    added = judged(store(tmp_path, gain(2.0, spread=3.0), seeds="0..5"))
    assert added.verdict == "better"
    assert "with seeds added later, which is not the registered test" in " ".join(added.remarks)
    place = Store(tmp_path / "runs")
    path = next(iter(place.root.glob("stages/train/*/*/result-0001.json")))
    result = Result.load(path, 1)
    assert result is not None
    other = Result(2, result.artifact, result.parents, {**result.metrics, "test@last": 10.0}, result.stamp, {})
    path.with_name("result-0002.json").write_bytes(other.dump())
    changed = judged(store(tmp_path, gain(2.0, spread=3.0), seeds="0..5"))
    assert changed.verdict == "better"
    assert "its results have changed since its analysis, which stands" in " ".join(changed.remarks)


def test_claims_of_one_name_in_two_sweeps_are_told_apart_and_adjusted_together(tmp_path: Path) -> None:
    plans = []
    for name, arch, by in (("claimed", "resnet20", 0.1), ("other", "resnet32", 2.0)):
        text = SWEEP.format(seeds="0..3", margin=1, planned=4, more="").replace("claimed", name)
        (tmp_path / "x.yaml").write_text(text.replace("resnet20", arch))
        for until in (0, 9):
            place, saved = write_store(tmp_path, tmp_path / "x.yaml", rows(gain(by, until=until)))
        plans.append(saved)
    grid = make_report(place, plans, rebuild=True).grids[0]
    assert {row for row, _ in grid.entries} == {("helps (claimed)",), ("helps (other)",)}
    assert grid.entry(("helps (other)",), ("verdict",)).text == "better"
    ps = re.search(r"\(Holm\): helps \(claimed\) (\S+), helps \(other\) (\S+)\.", grid.caption)
    assert ps is not None
    assert float(ps[1]) > 0.05 > float(ps[2])


def test_a_claim_of_an_earlier_version_is_the_same_and_interim_analyses_are_told(tmp_path: Path) -> None:
    early = judged(store(tmp_path, gain(2.0, until=0)))
    saved, place = saved_at(tmp_path)
    said = {**early.claim.claim.model_dump(mode="json"), "looks": []}
    cells = {
        digest([{k: v for k, v in labels.items() if k != "world"}, facts.protocol, facts.dev])
        for labels, _, facts in members(saved, early.claim.claim)
    }
    assert early.claim.hash == digest({"claim": said, "cells": sorted(cells)})[:12], "of a field that is no more"
    earlier = early.claim.folder.with_name("helps-0123456789ab")
    earlier.mkdir()
    record = {**early.claim.record, "hash": "0123456789ab", "claim": {**said, "looks": [2, 4]}}
    (earlier / "registered.json").write_bytes(seal(record))
    for seeds, verdict in ((2, "undecided"), (4, "better")):
        look = {"date": "", "seeds": seeds, "data": "", "verdict": verdict, "level": 0.975, "effect": {}}
        (earlier / f"look-{seeds:04d}.json").write_bytes(seal(look))
    (path,) = place.sweep("claimed").glob("plan-*.json")
    body = unseal(path.read_bytes())
    body["declared"]["claims"][0]["looks"] = [2, 4]
    path.write_bytes(seal(body))
    report = make_report(place, [read_plan(path)], rebuild=True)
    assert judged(report).claim.hash == early.claim.hash
    assert "0123456789ab): undecided at 2 seeds, better at 4 seeds" in report.grids[0].caption


def test_who_diverges_more_is_not_called_better(tmp_path: Path) -> None:
    store(tmp_path, gain(2.0, until=0))

    def row(place: Mapping[str, str]) -> str:
        hard = place["recipe"] == "ls" and place["sparsity"] == "98%" and place["seed"] == "3"
        return "diverged" if hard else gain(2.0)(place)

    found = judged(store(tmp_path, row))
    assert found.found is not None
    assert found.found.low > 0
    assert found.verdict == "undecided"
    assert "ls diverged in 2 more pairs than default, so that better is not said" in " ".join(found.remarks)


def test_failures_leave_holes_that_are_counted(tmp_path: Path) -> None:
    store(tmp_path, gain(2.0, until=0))

    def row(place: Mapping[str, str]) -> str:
        broken = place["recipe"] == "default" and place["mask"] == "snip" and place["seed"] == "0"
        return "failed:code" if broken else gain(2.0)(place)

    found = judged(store(tmp_path, row))
    assert found.verdict == "better", "nothing is left to wait for"
    assert "2 of 16 pairs have no difference" in " ".join(found.remarks)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("recipe: [ls, default]", "recipe: [tost, default]", "no cell of the grid has recipe tost"),
        ("seeds: 4", "seeds: 9", "is planned with 9 seeds, the grid has 4 of them; write seed: 0..8"),
        ("margin: 1", "margin: 1, over: [mask]", "over leaves out sparsity"),
        ("margin: 1", "margin: 0", "margin"),
        ("margin: 1", "margin: 1, looks: [2, 4]", "no interim analyses are made"),
        ("recipe: [ls, default]", "recipe: [ls, ls]", "compares ls with itself"),
        ("recipe: [ls, default]", "recipe: [ls, lss]", "'lss' is no recipe"),
        ("recipe: [ls, default]", "seed: [0, 1]", "seed is no axis to compare"),
        ("margin: 1", "margin: 1, where: \"mask == 'snp'\"", "'snp' is no mask"),
        ("margin: 1", "margin: 1, value: speed", "'speed' is no metric"),
    ],
)
def test_a_claim_that_cannot_be_decided_is_told_at_its_line(old: str, new: str, said: str, tmp_path: Path) -> None:
    text = SWEEP.format(seeds="0..3", margin=1, planned=4, more="")
    assert old in text
    (tmp_path / "x.yaml").write_text(text.replace(old, new))

    def check() -> None:
        sweep = load_sweep(tmp_path / "x.yaml")
        check_claims(sweep, make_plan(sweep, Store(tmp_path / "runs"), tmp_path))

    with pytest.raises(FileError) as error:
        check()
    assert said in str(error.value)
    assert "x.yaml:6" in str(error.value)


def saved_at(folder: Path) -> tuple[SavedPlan, Store]:
    sweep, place = load_sweep(folder / "x.yaml"), Store(folder / "runs")
    return as_saved(make_plan(sweep, place, folder), sweep), place


def test_two_that_register_at_once_register_once(tmp_path: Path) -> None:
    store(tmp_path, gain(2.0, until=0))
    saved, place = saved_at(tmp_path)
    assert register(saved, place) == [], "it is there already"
    (one,) = registered(saved, place)
    first, again = (one.keep({"verdict": verdict, "effect": {}, "data": ""}) for verdict in ("better", "worse"))
    assert (first["verdict"], again["verdict"]) == ("better", "better")


FACTORIAL = """
name: factorial
protocol: quick
grid: {{dataset: digits, arch: resnet20, mask: [snip, random], sparsity: 90%, recipe: {recipes}, seed: 0..2}}
tables: [factorial]
"""
TRUE = {"gsw": 1.0, "ls": -0.5}


def factorial(folder: Path, recipes: str, broken: str = "") -> Report:
    (folder / "f.yaml").write_text(FACTORIAL.format(recipes=recipes))

    def row_of(place: Mapping[str, str]) -> dict[str, str]:
        parts = [part for part in TRUE if part in place["recipe"]]
        both = 0.4 * (len(parts) == 2)
        value = 80 + sum(TRUE[part] for part in parts) + both + 0.1 * int(place["seed"]) * len(parts)
        if broken and f"{place['mask']} {place['recipe']} {place['seed']}" == broken:
            return {"state": "failed:code", "cause": "why"}
        return {"state": "done", "test": f"{value:.4f}", "dev": "80", "cause": ""}

    place, saved = write_store(folder, folder / "f.yaml", row_of)
    return make_report(place, [saved], rebuild=True)


def test_effects_of_parts_and_of_pairs_are_what_was_put_in(tmp_path: Path) -> None:
    (grid,) = factorial(tmp_path, "subsets(gsw+ls)").grids
    assert grid.row_keys == [("gsw",), ("ls",), ("gsw × ls",)]
    assert grid.column_keys == [("snip", "90%"), ("random", "90%"), ("all", "")]
    one = grid.entry(("gsw",), ("all", "")).effect
    assert one is not None
    # Seeds add 0.1 to every part; a half of the interaction of 0.4 goes to each main effect.
    assert (one.mean, one.n, one.cells) == (pytest.approx(1.0 + 0.2 + 0.1), 3, 2)
    two = grid.entry(("ls",), ("snip", "90%")).effect
    both = grid.entry(("gsw × ls",), ("snip", "90%")).effect
    assert two is not None
    assert both is not None
    assert two.mean == pytest.approx(-0.5 + 0.2 + 0.1)
    assert both.mean == pytest.approx(0.2), "half of 0.4"
    assert grid.entry(("gsw",), ("snip", "90%")).text.startswith("+1.30 [")
    assert "half the difference" in grid.caption


def test_effects_that_the_grid_cannot_tell_apart_are_refused_with_the_reason(tmp_path: Path) -> None:
    (grid,) = factorial(tmp_path, "[default, gsw, ls]").grids
    assert "need all 4 combinations of gsw, ls" in grid.refusal
    assert "lacks gsw+ls" in grid.refusal
    assert "subsets(gsw+ls)" in grid.refusal
    assert not grid.entries
    (grid,) = factorial(tmp_path, "[default]").grids
    assert "no recipe of the grid has a part" in grid.refusal


def test_a_seed_that_lacks_a_combination_is_left_out_and_counted(tmp_path: Path) -> None:
    (grid,) = factorial(tmp_path, "subsets(gsw+ls)", broken="snip ls 1").grids
    entry = grid.entry(("gsw",), ("snip", "90%"))
    assert entry.effect is not None
    assert entry.effect.n == 2
    assert entry.hole == "1 failed"


def report_of(folder: Path, text: str, value: Callable[[Mapping[str, str]], float]) -> Report:
    """Write all results of a sweep, registered before them, and report."""
    (folder / "y.yaml").write_text(text)
    nothing = {"state": "missing", "test": "", "dev": "", "cause": ""}
    write_store(folder, folder / "y.yaml", lambda place: nothing)

    def row_of(place: Mapping[str, str]) -> dict[str, str]:
        said = f"{value(place):.4f}"
        return {"state": "done", "test": said, "dev": said, "cause": ""}

    place, saved = write_store(folder, folder / "y.yaml", row_of)
    return make_report(place, [saved], rebuild=True)


def test_against_the_dense_network_every_sparsity_is_a_cell(tmp_path: Path) -> None:
    text = """
name: dense
protocol: quick
grid: {dataset: digits, arch: resnet20, mask: snip, sparsity: [98%, 95%, 90%], seed: 0..3}
also: [{mask: dense}]
claims: [{name: as-dense, compare: {mask: [snip, dense]}, margin: 1, seeds: 4}]
"""
    means = {"0%": 95.0, "90%": 94.0, "95%": 92.0, "98%": 80.0}
    found = judged(
        report_of(tmp_path, text, lambda p: means[p["sparsity"]] + 0.1 * int(p["seed"]) * (p["mask"] == "snip"))
    )
    assert found.found is not None
    assert (found.found.cells, found.found.n) == (3, 4)
    assert found.found.mean == pytest.approx((-1 - 3 - 15) / 3 + 0.15)
    assert found.verdict == "worse"


def test_where_tickets_are_an_axis_each_is_a_cell(tmp_path: Path) -> None:
    text = """
name: tickets
protocol: quick
grid:
  {dataset: digits, arch: resnet20, mask: random, sparsity: 90%, recipe: [default, ls], seed: 0..4, ticket_seed: 0..1}
claims: [{name: helps, compare: {recipe: [ls, default]}, margin: 1, seeds: 5}]
"""
    found = judged(
        report_of(
            tmp_path, text, lambda p: 80 + (p["recipe"] == "ls") * (2 * int(p["ticket_seed"]) + 0.1 * int(p["seed"]))
        )
    )
    assert found.found is not None
    assert (found.found.cells, found.found.n) == (2, 5)
    assert found.found.mean == pytest.approx(1.2)


def test_a_knob_can_be_what_is_compared(tmp_path: Path) -> None:
    text = """
name: knobs
protocol: quick
grid: {dataset: digits, arch: resnet20, mask: random, sparsity: 90%, recipe: gsw, gsw.b1: [2, 5], seed: 0..2}
claims: [{name: sharper, compare: {gsw.b1: [5, 2]}, margin: 1, seeds: 3}]
"""
    found = judged(report_of(tmp_path, text, lambda p: 80 + (p["gsw.b1"].startswith("5")) * (2 + 0.1 * int(p["seed"]))))
    assert len(found.asked) == 3
    assert found.verdict == "better"


def test_a_longer_training_or_a_seed_left_out_makes_another_claim(tmp_path: Path) -> None:
    store(tmp_path, gain(2.0))
    saved, place = saved_at(tmp_path)
    (before,) = registered(saved, place)
    text = (tmp_path / "x.yaml").read_text()
    for edited in (
        text.replace("protocol: quick", "protocol: {preset: quick, epochs: 9}"),
        text.replace("tables:", "exclude: [\"mask == 'snip' and seed == 2\"]\ntables:"),
    ):
        assert edited != text
        (tmp_path / "x.yaml").write_text(edited)
        (after,) = registered(*saved_at(tmp_path))
        assert after.hash != before.hash
        assert not after.record


def test_an_analysis_is_told_though_results_are_gone(tmp_path: Path) -> None:
    store(tmp_path, gain(2.0, until=0))
    whole = store(tmp_path, gain(2.0))
    assert judged(whole).verdict == "better"
    line = whole.frame.lines[0]
    shutil.rmtree(whole.store.path("train", line.key))
    later = judged(make_report(whole.store, whole.plans, rebuild=True))
    assert later.verdict == "better"
    assert "which stands" in " ".join(later.remarks)


def test_what_ran_out_of_memory_is_waited_for(tmp_path: Path) -> None:
    store(tmp_path, gain(2.0, until=0))

    def row(place: Mapping[str, str]) -> str:
        big = place["recipe"] == "ls" and place["mask"] == "snip" and place["seed"] == "0"
        return "failed:oom" if big else gain(2.0)(place)

    found = judged(store(tmp_path, row))
    assert found.verdict == ""
    assert "to be judged at 4 seeds (3 are done)" in " ".join(found.remarks)
