"""A sweep in plain words: every remark of a reviewer's provoked and mended, and the whole text of a small sweep."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cell import expand
from harness.check import load_sweep
from harness.reviewing import CHECKS, remarks
from harness.words import count
from tests.conftest import run_sweep
from tests.harness.synthetic import write_fixture_store

ROOT = Path(__file__).parents[2]
WHOLE = """
name: whole
protocol: {preset: tost}
grid:
  dataset: [digits, mnist]
  arch: [resnet20, vgg16]
  mask: [random, snip, {snip: {control: shuffled}}, {snip: {control: fresh}}, small_dense]
  sparsity: [90%]
  recipe: [default, tost]
  seed: 0..2
also:
  - {mask: dense}
  - {mask: snip, recipe: default, epochs: match_cost(tost)}
claims:
  - {name: helps, compare: {recipe: [tost, default]}, where: "mask == 'snip'", margin: 0.5, seeds: 3}
tables: [any-mask]
"""
"""A sweep of which nothing is missing."""

TUNED = """
search: hunt
metric: dev_accuracy
mode: max
searcher: random
scheduler: none
seed: 0
space: {lr: "uniform(0.01, 0.5)"}
tuned:
  - {at: {recipe: tost}, set: {lr: 0.2}, trials: 20, value: 90.0, trial: 3}
"""

Change = tuple[str, str]
PROVOKED: dict[str, list[tuple[list[Change], str]]] = {
    "seeds": [
        ([("seed: 0..2", "seed: 0"), ("claims:\n  -", "#")], "Only 1 seed: a number has no spread"),
        ([("seed: 0..2", "seed: 0..1"), ("seeds: 3", "seeds: 2")], "12.7 standard errors"),
        ([("{mask: dense}", "{mask: dense, seed: 0}")], "Only 1 seed for 8 of 52 entries"),
    ],
    "dense": [([("{mask: dense}", "{mask: dense, arch: vgg16}")], "at digits resnet20; mnist resnet20,")],
    "random": [
        ([("random, snip, {snip: {control: shuffled}}", "snip")], "No random mask stands beside snip,"),
        ([("random, snip,", "omp, snip,"), ("{snip: {control: shuffled}}, ", "")], "beside omp and snip,"),
    ],
    "default": [
        (
            [("{mask: dense}", "{mask: dense, recipe: tost}")],
            "beside tost at digits resnet20 dense; digits vgg16 dense; mnist resnet20 dense and 1 more,",
        )
    ],
    "settings": [
        (
            [("also:", "when: [{if: \"recipe == 'tost'\", set: {lr: 0.05}}]\nalso:")],
            "Recipe default has lr 0.1 and tost 0.05, by a rule under when",
        ),
        (
            [("also:", "when: [{if: \"mask == 'random'\", set: {prunable: conv}}]\nalso:")],
            "Mask random has prunable conv and snip conv+linear",
        ),
        (
            [("also:", "when: [{if: \"mask == 'random'\", set: {epochs: 100}}]\nalso:")],
            "Mask random has epochs 100 and snip 182",
        ),
        (
            [("also:", "when: [{if: \"mask == 'dense'\", set: {gsw.b1: 50}}]\nalso:")],
            "has gsw.b1 its default and dense 50",
        ),
        (
            [("also:", "when: [{if: \"recipe == 'tost'\", set: {protocol: tiny}}]\nalso:")],
            "Recipe default has epochs 182 and tost 300",
        ),
    ],
    "tuning": [
        ([("tables:", "tuned: tuned.yaml\ntables:")], "recipe tost took 20 trials of a search and those of default")
    ],
    "tickets": [([("seed: 0..2", "seed: 0..2\n  ticket_seed: 0")], "All seeds share one ticket")],
    "ghosts": [
        ([("recipe: [default, tost]", "recipe: [default, tost, {gsw: {window: permanent}}]")], "gsw(window=permanent)"),
        ([("recipe: [default, tost]", "recipe: [default, tost, {gsk: {variant: authors}}]")], "gsk(variant=authors)"),
    ],
    "controls": [
        (
            [(", {snip: {control: shuffled}}, {snip: {control: fresh}}, small_dense", "")],
            "add to mask {snip: {control: shuffled}} and {snip: {control: fresh}}, and small_dense",
        ),
        (
            [
                ("snip, {snip: {control: shuffled}}, {snip: {control: fresh}}, small_dense", "gmp"),
                ("mask: snip", "mask: gmp"),
                ("'snip'", "'gmp'"),
            ],
            "add to mask small_dense",
        ),
    ],
    "cost": [([("  - {mask: snip, recipe: default, epochs: match_cost(tost)}\n", "")], "epochs: match_cost(tost)}")],
    "claims": [([("claims:\n  -", "#")], "compare: {recipe: [tost, default]}, margin: 0.5, seeds: 3}]")],
    "narrow": [
        ([("dataset: [digits, mnist]", "dataset: digits")], "one data set (digits): nothing is known"),
        ([("arch: [resnet20, vgg16]", "arch: vgg16")], "add some to arch,"),
    ],
    "short": [
        ([("preset: tost", "preset: quick")], "8 epochs of training (preset quick)"),
        ([("preset: tost", "preset: tost, epochs: 12")], "12 epochs of training are"),
    ],
}
FAIR: list[list[Change]] = [
    [("seed: 0..2", "seed: 0..2\n  lr: [0.1, 0.05]")],  # an axis: every recipe has both
    [("also:", "when: [{if: \"dataset == 'mnist'\", set: {protocol: tiny}}]\nalso:")],  # alike where compared
    [
        ("also:", "when: [{if: \"mask == 'dense'\", set: {prunable: conv}}]\nalso:")
    ],  # which means nothing to a dense one
    [("recipe: [default, tost]", "recipe: [default, tost, {gsw: {b1: 50}}]")],
    [("random, snip", "erk, snip")],
    [
        ("recipe: [default, tost]", "recipe: [default, gsw+ls]"),
        ("match_cost(tost)}", "match_cost(gsw+ls)}"),
        ("[tost,", "[gsw+ls,"),
    ],
]


ALONG = {"seeds": ("claims",)}
"""Remarks that the same change calls for too."""


def changed(tmp_path: Path, changes: list[Change]) -> list[tuple[str, str]]:
    """Return what a reviewer would miss in the whole sweep after some changes."""
    text = WHOLE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (tmp_path / "tuned.yaml").write_text(TUNED)
    (tmp_path / "whole.yaml").write_text(text)
    sweep = load_sweep(tmp_path / "whole.yaml")
    return [(remark.about, remark.said) for remark in remarks(sweep, expand(sweep)[0])]


def test_of_a_whole_sweep_nothing_is_missing(tmp_path: Path) -> None:
    assert changed(tmp_path, []) == []


@pytest.mark.parametrize("changes", FAIR, ids=lambda changes: changes[0][1])
def test_what_is_fair_is_no_remark(changes: list[Change], tmp_path: Path) -> None:
    assert changed(tmp_path, changes) == []


def test_every_remark_is_provoked_here() -> None:
    assert set(PROVOKED) == set(CHECKS)


CASES = [(about, changes, said) for about, cases in PROVOKED.items() for changes, said in cases]


@pytest.mark.parametrize(("about", "changes", "said"), CASES, ids=[f"{about}-{said[:24]}" for about, _, said in CASES])
def test_what_is_missing_is_said_in_one_sentence_with_what_to_write(
    about: str, changes: list[Change], said: str, tmp_path: Path
) -> None:
    found = changed(tmp_path, changes)
    assert [text for name, text in found if name == about and said in text]
    assert all(text.endswith(".") and ("; " in text) for _, text in found)
    assert {name for name, _ in found} <= {about, *ALONG.get(about, ())}, found


HUNT = """
name: hunt
protocol: {preset: quick, epochs: 4}
grid: {dataset: digits, arch: resnet20, mask: snip, sparsity: 90%, recipe: tost}
search: {space: {lr: "uniform(0.01, 0.5)"}, samples: SAMPLES, baseline: BASELINE}
"""


@pytest.mark.parametrize(
    ("samples", "baseline", "said"),
    [
        ("4", "default", ""),
        ("4", "none", "Only tost is tuned"),
        ("{tost: 8, default: 4}", "default", "(tost 8, default 4); write one number: samples: 8."),
    ],
)
def test_of_a_search_it_is_said_where_it_is_unfair(tmp_path: Path, samples: str, baseline: str, said: str) -> None:
    (tmp_path / "hunt.yaml").write_text(HUNT.replace("SAMPLES", samples).replace("BASELINE", baseline))
    sweep = load_sweep(tmp_path / "hunt.yaml")
    found = remarks(sweep, expand(sweep)[0])
    assert [remark.about for remark in found] == ["tuning"] * bool(said)
    assert all(said in remark.said for remark in found)


SMALL = """
name: small
protocol: {preset: tost, epochs: 40}
grid:
  dataset: digits
  arch: resnet20
  mask: [random, lth]
  sparsity: [80%]
  recipe: [default, ls]
  seed: 0..2
also:
  - {mask: dense, recipe: default}
when:
  - {if: "mask == 'random'", set: {prunable: conv}}
claims:
  - {name: smooth, compare: {recipe: [ls, default]}, where: "mask == 'lth'", margin: 0.5, seeds: 3}
tables: [any-mask, {shape: any-mask, name: mixed, blocks: [prunable]}]
"""


GOLDEN = """\
small

What runs
- 15 cells: resnet20 on digits.
- Masks: random (found before training); lth (found at the end of a chain of trainings, each on four fifths of
  the weights of the one before); at 80% of weights removed.
- 3 dense networks beside them.
- Recipes: default and ls; ls is label smoothing.
- 40 epochs in fp32, batch 128, sgd, learning rate 0.1, momentum 0.9, ×0.1 at epochs 19.7802, 29.6703, weight
  decay 0.0002, standard augmentation; dev split stratified:0.1; best epoch by dev accuracy; prunable: conv.
- 40 epochs in fp32, batch 128, sgd, learning rate 0.1, momentum 0.9, ×0.1 at epochs 19.7802, 29.6703, weight
  decay 0.0002, standard augmentation; dev split stratified:0.1; best epoch by dev accuracy; prunable:
  conv+linear.
- Seeds 0–2.
- Reported: test@last.
- 36 trainings: 15 of the cells and 21 that masks and tickets need, each made once for all cells that share
  it; if every cell made its own, there would be 63.

What is there
- 0 of 15 cells finished; 36 trainings to run.

What it costs
- Nothing like them was ever run: 1 data, 27 mask, 36 train, left out of the forecast; --pilot tries them out.

What is compared
- Table any-mask shows accuracy with mask and recipe in rows, dataset and sparsity in columns, in 2 blocks by
  prunable.
- Table any-mask compares 6 cells with recipe default of the same place and seed. All differences are of pairs
  with the same mask, initial weights and order of the images.
- Table mixed shows accuracy with mask and recipe in rows, dataset and sparsity in columns, in 2 blocks by
  prunable.
- Table mixed compares 6 cells with recipe default of the same place and seed. All differences are of pairs
  with the same mask, initial weights and order of the images.
- Claim smooth: ls differs from default in accuracy, where 0.5 is the smallest difference that matters;
  decided with 3 seeds over 3 pairs. All differences are of pairs with the same mask, initial weights and
  order of the images.

What a reviewer would miss
- Mask random has prunable conv and lth conv+linear, by a rule under when (digits resnet20 default seed 0), so
  that their difference is also that of prunable; give both one value, or make it an axis: prunable: [conv,
  conv+linear].
- No control tells whether a mask's gain is of its positions, its initial weights or its size; add to mask
  {lth: {control: shuffled}} and {lth: {control: fresh}}, and small_dense.
- All of it is of one data set (digits) and one network (resnet20): nothing is known of others; add some to
  dataset and to arch, or say so in every claim.
"""


def explained(folder: Path, text: str, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "small.yaml").write_text(text)
    return run_sweep(folder, "small.yaml", "--plan", "--explain", *more)


def test_the_whole_text_of_a_small_sweep(tmp_path: Path) -> None:
    done = explained(tmp_path, SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == GOLDEN


REFUSED = """
name: small
grid:
  dataset: digits
  arch: resnet20
  mask: random
  sparsity: 90%
  recipe: ls
  seed: 0..1
when:
  - {if: "seed == 1", set: {protocol: {preset: tost, precision: bf16}}}
tables: [any-mask, factorial, diagnostics, {shape: any-mask, name: mixed, mix: [precision]}]
"""


def test_a_grid_of_nothing_but_the_baseline_is_said_to_be_that(tmp_path: Path) -> None:
    text = REFUSED.partition("when:")[0].replace("recipe: ls", "recipe: default") + "tables: [any-mask]\n"
    said = sentences(explained(tmp_path, text, "--json").stdout, "compared")
    assert "Table any-mask has nothing but recipe default, which the others would be compared with." in said


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    said = sentences(explained(tmp_path, REFUSED, "--json").stdout, "compared")
    refused = [
        one for one in said if one.startswith("Table any-mask cannot be made of 1 of 1 block: it would mix precisions")
    ]
    assert "write mix: [precision]" in refused[0]
    assert "Table mixed compares nothing: no cell has recipe default of the same place and seed beside it." in said
    assert any(one.startswith("Table factorial compares no pairs: a part's effect") for one in said)
    assert not any(one.startswith("Table diagnostics comp") for one in said)
    bare = explained(tmp_path, REFUSED.partition("tables:")[0])
    assert "write tables: [any-mask]" in bare.stdout


def sentences(text: str, about: str) -> list[str]:
    found: list[str] = json.loads(text)["explanation"][about]
    return found


def test_it_tells_what_the_store_has_and_what_is_compared(tmp_path: Path) -> None:
    store, saved = write_fixture_store(tmp_path)
    done = run_sweep(tmp_path, "synthetic.yaml", "--plan", "--explain", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert set(shown["explanation"]) == {"runs", "there", "costs", "compared", "remarks"}
    assert [set(remark) for remark in shown["explanation"]["remarks"]] == [{"about", "said"}] * 4
    left = shown["stages"]["train"]["to_run"]
    finished = sum(store.folder("train", cell.key).result() is not None for cell in saved.cells)
    cells = count(len(saved.cells), "cell")
    assert sentences(done.stdout, "there")[0] == f"{finished} of {cells} finished; {left} trainings to run."
    assert "7 diverged, 6 failed, 6 running; harness status synthetic" in sentences(done.stdout, "there")[1]
    looked = [one for one in sentences(done.stdout, "compared") if one.startswith("Claim more-seeds")]
    assert "decided with 4 seeds over 24 pairs. All differences" in looked[0]
    text = run_sweep(tmp_path, "synthetic.yaml", "--plan", "--explain").stdout
    assert [line for line in text.splitlines() if line and line[0] not in "- "] == [
        "synthetic",
        "What runs",
        "What is there",
        "What it costs",
        "What is compared",
        "What a reviewer would miss",
    ]


@pytest.mark.parametrize("option", ["--explain", "--json", "--pilot"])
def test_what_goes_with_a_plan_starts_nothing_without(option: str, project: Path) -> None:
    done = run_sweep(project, "tiny.yaml", option)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{option} goes with --plan, which starts nothing; add --plan\n"
    assert not (project / "runs").exists()


def test_of_the_papers_grid_it_remarks_what_is_true_of_it_and_no_more(tmp_path: Path) -> None:
    found = {}
    for path in sorted((ROOT / "sweeps").glob("*.yaml")):
        sweep = load_sweep(path)
        found[path.stem] = [remark.about for remark in remarks(sweep, expand(sweep)[0])]
    assert found == {
        "controls": ["claims", "narrow"],
        "factorial": ["random", "controls", "cost", "claims", "narrow"],
        "full_grid": ["controls", "cost"],
        "quickstart": ["seeds", "controls", "claims", "narrow", "short"],
        "tuning": [],
    }


def test_it_loads_no_torch() -> None:
    code = "import sys, harness.planned; print([m for m in ('torch', 'pandas', 'scipy', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
