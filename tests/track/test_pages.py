"""What runs are told: ids, groups, tags, shards, what was shown before; and the lease of who tells it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.catalog import METRICS
from harness.claims import Lease, Observer, Owner, take
from harness.errors import UserError
from harness.facts import Facts
from harness.index import stand
from harness.machine import machine
from harness.plan import Stage
from harness.planfile import SavedPlan
from harness.sealed import seal
from harness.store import Folder, Store, write_whole
from harness.track.about import About, about_stages, shortened
from harness.track.desk import SIGNS
from harness.track.ledger import Ledger, Shown, acquire
from harness.track.opening import publisher
from harness.track.page import Page, plain, run_id, without_turn
from harness.track.publisher import contradicts
from harness.track.target import MOST_RUNS, Shards, Target, Wish, plans_of, renewed, shards_of, wishes
from harness.track.writer import Writer
from tests.harness.synthetic import write_fixture_store


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, SavedPlan]:
    return write_fixture_store(tmp_path_factory.mktemp("fixture"))


def pages_of(store: Store, saved: SavedPlan, artifacts: str = "reference") -> dict[str, list[Page]]:
    standing = stand(saved.plan, store, Observer(), keep=False)
    writer = Writer(store, Shards("p").of, artifacts)
    abouts = about_stages([saved])
    return {key: writer.pages(about, standing.states.get(key)) for key, about in abouts.items()}


def test_every_stage_but_data_has_a_run_of_its_own(fixture: tuple[Store, SavedPlan]) -> None:
    store, saved = fixture
    abouts = about_stages([saved])
    assert list(abouts) == [key for key, stage in saved.plan.stages.items() if stage.kind != "data"]
    assert {about.role for about in abouts.values()} == {"cell", "dense", "training", "mask", "rescale"}
    for key, pages in pages_of(store, saved).items():
        for page in pages:
            assert re.fullmatch(rf"{key}-\d+", page.id)
            assert page.job_type == abouts[key].stage.kind
            assert len(page.group) <= 128
            assert all(len(tag) <= 64 for tag in page.tags)
            assert f"harness status synthetic --why {key}" in page.notes
            assert "\n" not in page.name


def test_a_group_is_a_cell_without_its_seed(fixture: tuple[Store, SavedPlan]) -> None:
    _, saved = fixture
    abouts = about_stages([saved])
    axes = ("arch", "mask", "sparsity", "recipe")
    groups: dict[tuple[str, ...], set[str]] = {}
    for place, key in saved.places():
        known = tuple("" if place["mask"] == "dense" and axis == "sparsity" else place[axis] for axis in axes)
        groups.setdefault(known, set()).add(abouts[key].group)
    assert all(len(group) == 1 for group in groups.values())
    assert len({next(iter(group)) for group in groups.values()}) == len(groups)
    rounds = [about for about in abouts.values() if about.role == "training"]
    seeds = {about.labels["ticket_seed"] for about in rounds}
    assert len({about.group for about in rounds}) * len(seeds) == len(rounds)


def test_a_summary_has_every_number_that_a_table_can_show(fixture: tuple[Store, SavedPlan]) -> None:
    store, saved = fixture
    pages = pages_of(store, saved)
    finished = [
        page for some in pages.values() for page in some if page.state == "finished" and page.job_type == "train"
    ]
    cells = [page for page in finished if page.config["role"] in ("cell", "dense") and page.rows]
    measured = store.folder("train", cells[0].config["key"]).result()
    assert measured is not None
    for name in METRICS:
        if name in measured.metrics and not isinstance(measured.metrics[name], list):
            assert cells[0].summary[plain(name)] == measured.metrics[name]
    assert cells[0].summary["accuracy"] == measured.metrics["test@last"]
    assert cells[0].summary["provenance"]["host"] in ("node1", "node2")
    assert all(re.fullmatch(r"[A-Za-z_]\w*", name) for page in cells for name in (*page.summary, *page.rows[0]))
    assert cells[0].config["protocol"]["epochs"] == 12


def test_a_failure_is_told_with_its_cause(fixture: tuple[Store, SavedPlan]) -> None:
    store, saved = fixture
    failed = [page for some in pages_of(store, saved).values() for page in some if page.state == "failed"]
    assert failed
    for page in failed:
        assert page.summary["failure"]["cause"]
        assert page.summary["failure"]["message"] in page.notes


def test_cells_name_the_runs_and_artifacts_they_were_made_from(fixture: tuple[Store, SavedPlan]) -> None:
    store, saved = fixture
    pages = {page.id: page for some in pages_of(store, saved).values() for page in some}
    linked = [page for page in pages.values() if "mask" in page.config.get("uses", {}) and page.state == "finished"]
    assert linked
    for page in linked:
        mask = pages[page.config["uses"]["mask"]["run"]]
        assert mask.artifact is not None
        assert mask.artifact["sha256"] == page.config["uses"]["mask"]["sha256"]
        assert f"{mask.artifact['name']}:{mask.artifact['sha256'][:16]}" in page.uses
    none = [page for some in pages_of(store, saved, artifacts="none").values() for page in some]
    assert all(page.artifact is None and not page.uses for page in none)


def test_a_page_is_the_same_whenever_it_is_made(fixture: tuple[Store, SavedPlan]) -> None:
    store, saved = fixture
    one, two = pages_of(store, saved), pages_of(store, saved)
    assert [p.digest for some in one.values() for p in some] == [p.digest for some in two.values() for p in some]


def test_a_stage_of_two_sweeps_is_one_run_with_both_their_names(fixture: tuple[Store, SavedPlan]) -> None:
    _, saved = fixture
    other = replace(saved, plan=replace(saved.plan, name="other"))
    abouts = about_stages([saved, other])
    assert {about.sweeps for about in abouts.values()} == {("synthetic", "other")}
    assert all({"synthetic", "other"} <= set(about.tags) for about in abouts.values())


PAGE = Page("k-1", "p", "n", "g", "train", [], "", {}, [{"a": 1}, {"a": 2}], {}, "running")


@pytest.mark.parametrize(
    ("rows", "state", "shown", "wrong"),
    [
        ([1, 2, 3], "running", [1, 2], False),
        ([1, 2], "finished", [1, 2], False),
        ([1, 9, 3], "running", [1, 2], True),
        ([1], "running", [1, 2], False),
        ([1], "finished", [1, 2], True),
        ([], "failed", [], False),
    ],
)
def test_rows_that_contradict_what_was_shown_are_noticed(
    rows: list[int], state: str, shown: list[int], wrong: bool
) -> None:
    before = replace(PAGE, rows=[{"a": value} for value in shown])
    page = replace(PAGE, rows=[{"a": value} for value in rows], state=state)
    assert contradicts(page, Shown("", len(shown), before.prefix(len(shown)))) is wrong


def test_a_run_that_is_gone_contradicts_nothing() -> None:
    assert not contradicts(replace(PAGE, rows=[], state="stopped", gone=True), Shown("", 5, "x"))


def test_a_run_begun_anew_has_an_id_that_tells_so() -> None:
    assert run_id("ab", 2) == "ab-2"
    assert run_id("ab", 2, 3) == "ab-2-3"
    assert without_turn("ab-2-3") == without_turn("ab-2") == "ab-2"


def many(datasets: int, archs: int, each: int) -> list[About]:
    stage = Stage("k", "train", {}, {}, "")
    return [
        About(stage, "cell", "", "", {"dataset": f"imagefolder:./d {d}", "arch": f"a{a}"}, Facts(), ())
        for d in range(datasets)
        for a in range(archs)
        for _ in range(each)
    ]


def test_projects_are_cut_so_that_each_stays_small(tmp_path: Path) -> None:
    assert shards_of(tmp_path / "a", "p", None, many(1, 1, 10)).axes == ()
    assert shards_of(tmp_path / "b", "p", None, many(3, 1, MOST_RUNS // 2)).axes == ("dataset",)
    cut = shards_of(tmp_path / "c", "p", None, many(2, 2, MOST_RUNS // 2 + 1))
    assert cut.axes == ("dataset", "arch")
    sizes = cut.sizes(many(2, 2, 7))
    assert sizes == {f"p-imagefolder_._d_{d}-a{a}": 7 for d in range(2) for a in range(2)}
    assert shards_of(tmp_path / "a", "p", None, many(3, 1, 100)).axes == (), "what was decided stands"


def test_what_cannot_be_cut_or_was_cut_otherwise_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"10,001 runs; .*spread the sweeps over several projects"):
        shards_of(tmp_path / "a", "p", None, many(1, 1, MOST_RUNS + 1))
    with pytest.raises(UserError, match=r"write shard_by: \[dataset\] \(at most 6,000\)"):
        shards_of(tmp_path / "b", "p", [], many(2, 1, 6000))
    shards_of(tmp_path / "c", "p", ["arch"], many(2, 2, 5))
    with pytest.raises(UserError, match=r"cut by \['arch'\] since"):
        shards_of(tmp_path / "c", "p", ["dataset"], many(2, 2, 5))


def test_addresses() -> None:
    assert Target("https://api.wandb.ai", "lab", "p").url("p-x", "/runs/1") == "https://wandb.ai/lab/p-x/runs/1"
    assert Target("https://w.uni.edu:80/", "lab", "a b").folder(Store(Path("/s"))).name == "w.uni.edu_80--lab--a_b"


def test_a_ledger_survives_its_process_and_a_torn_line(tmp_path: Path) -> None:
    first = Ledger(tmp_path, "sent", 1)
    first.note("a", "s1", {"a-1": Shown("d", 3, "p")})
    first.note("b", "s2", {"b-1": Shown("e", 0, "")})
    first.note("a", "s3", {"a-1": Shown("f", 4, "q")})
    with first.path.open("a") as file:
        file.write('["c", "s4", {"c-1": ["g", 1')
    second = Ledger(tmp_path, "sent", 2)
    assert second.entries == first.entries
    assert second.path.read_text().count("\n") == 2, "only what counts is written again"
    assert not first.path.exists()
    second.forget("a")
    assert Ledger(tmp_path, "sent", 3).entries["a"].signature == ""


def test_a_second_publisher_waits_for_the_first_or_is_refused(tmp_path: Path) -> None:
    first = Lease(tmp_path, 60.0)
    assert first.acquire()
    with pytest.raises(UserError, match=f"process {os.getpid()} on .* publishes this store to this project already"):
        acquire(tmp_path, lambda: False)
    said: list[str] = []

    def waits() -> bool:
        first.release()
        return True

    assert acquire(tmp_path, waits, said.append, pause=0.0).generation == 2
    assert len(said) == 1
    assert "takes this sweep along" in said[0]


def test_a_publisher_on_another_host_is_waited_for_until_its_lease_ends(tmp_path: Path) -> None:
    assert take(Folder.listed(tmp_path), 0, replace(Owner.me(lease=0.5), host="another"))
    said: list[str] = []
    taken = acquire(tmp_path, lambda: False, said.append, length=0.5, pause=0.05)
    assert taken.generation == 2
    assert said == [f"wandb: process {os.getpid()} on another may be gone; waiting for its lease to end"]
    taken.release()


def test_a_publisher_that_fails_at_its_start_gives_its_lease_back(tmp_path: Path) -> None:
    store, target, wish = Store(tmp_path), Target("", "", "p"), Wish("p", None, None, "none", "offline", ())
    target.folder(store).mkdir(parents=True)
    write_whole(target.folder(store) / SIGNS, json.dumps({"boot": " ".join(machine()), "processes": [[1]]}).encode())
    with pytest.raises(ValueError, match="unpack"), publisher(store, wish, target, print):
        raise AssertionError
    assert acquire(target.folder(store), lambda: False).generation == 2


def test_what_sweeps_say_of_one_project_goes_together(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    for name, wandb in {
        "one": ONE,
        "two": {**ONE, "shard_by": ["arch"], "artifacts": "upload", "mode": "offline"},
        "three": {**ONE, "mode": "disabled"},
        "four": {},
    }.items():
        write_plan(store, name, wandb)
    (wish,) = wishes(store)
    assert (wish.project, wish.names, wish.shard_by, wish.artifacts) == ("p", ("one", "two"), ["arch"], "upload")
    assert wish.mode == "offline", "where one says so, nothing is sent"
    assert [found.names for found in wishes(store, ["two"])] == [("one", "two")], "one publisher for all of a project"
    with pytest.raises(UserError, match="four has no `wandb:`"):
        wishes(store, ["four"])
    with pytest.raises(UserError, match="three says mode: disabled"):
        wishes(store, ["three"])
    with pytest.raises(UserError, match="did you mean 'one'"):
        wishes(store, ["ome"])
    write_plan(store, "later", {**ONE, "mode": "auto"})
    assert renewed(store, wish).names == ("later", "one", "two")
    write_plan(store, "five", {**ONE, "shard_by": ["dataset"]})
    with pytest.raises(UserError, match="cut project p in two ways"):
        wishes(store)


@pytest.mark.parametrize("data", [seal({"format": 0}), b'{"format": 4}'])
def test_a_plan_that_cannot_be_read_is_told_of_and_left_out(data: bytes, tmp_path: Path) -> None:
    store, said = Store(tmp_path / "runs"), list[str]()
    write_plan(store, "one", ONE)
    write_plan(store, "two", ONE)
    (store.sweep("two") / "plan-00.json").write_bytes(data)
    (wish,) = wishes(store)
    assert [saved.plan.name for saved in plans_of(store, wish, said.append)] == ["one", "two"]
    (sentence,) = said
    assert "of another version" in sentence


ONE: dict[str, Any] = {
    "project": "p",
    "entity": None,
    "shard_by": None,
    "artifacts": "reference",
    "mode": "auto",
}


def write_plan(store: Store, name: str, wandb: dict[str, Any]) -> None:
    from harness.plan import Plan
    from harness.planfile import NEWEST, dump

    folder = store.sweep(name)
    folder.mkdir(parents=True)
    (folder / NEWEST).write_bytes(dump(SavedPlan(Path(), Plan(name), [], wandb=wandb)))


def test_names_keep_to_what_a_server_takes_and_stay_apart(fixture: tuple[Store, SavedPlan]) -> None:
    saved = fixture[1]
    cells = []
    for number, cell in enumerate(saved.cells):
        labels = [
            f"file:./{'deep/' * 60}{number}/mask.pt" if x == "mask" else y
            for x, y in zip(saved.axes, cell.labels, strict=True)
        ]
        cells.append(cell._replace(labels=tuple(labels)))
    abouts = list(about_stages([replace(saved, cells=cells)]).values())
    assert all(len(about.name) <= 128 and len(about.group) <= 128 for about in abouts)
    assert all(len(tag) <= 64 for about in abouts for tag in about.tags)
    named = [about.name for about in abouts if about.role in ("cell", "dense")]
    assert len(set(named)) == len(named)
    assert shortened("short", 128) == "short"
