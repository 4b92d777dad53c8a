"""Tables: the arithmetic, the pairs, the holes, and what is refused."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cell import AXES, Cell, expand
from harness.check import load_sweep
from harness.declared import TABLES, Table
from harness.errors import FileError
from harness.facts import fact_reader
from harness.foreign import read_foreign
from harness.report.frame import Frame, Line
from harness.report.grids import Entry, Grid
from harness.report.measured import Measured
from harness.report.pairing import pairs
from harness.report.remarks import beyond
from harness.report.stats import paired_p
from harness.report.tables import build
from harness.report.writers import on_terminal
from harness.store import digest

SWEEP = """
name: x
protocol: quick
grid: {dataset: digits, arch: resnet20, mask: [snip, lth], sparsity: [90%, 98%], recipe: [default, gsw], seed: 0..2}
also: [{mask: dense, recipe: default}]
"""


FACTS = fact_reader()


def line(cell: Cell, value: float | None, reason: str = "") -> Line:
    metrics = {"test@last": value, "test@best-dev": value}
    measured = Measured(1, "a", metrics, {"device": "cpu"}) if value is not None else None
    labels = {axis: str(cell.axis(axis)) for axis in AXES[:-1]}
    return Line(labels, FACTS(cell), digest(labels), measured, reason=reason)


GUESSED = ("snip", "gsw", "98%")


@pytest.fixture
def frame(tmp_path: Path) -> Frame:
    """Accuracy = 90 + seed, 2 more with gsw, 10 less at 98 %; the dense network has 99."""
    (tmp_path / "x.yaml").write_text(SWEEP)
    lines = []
    for cell in expand(load_sweep(tmp_path / "x.yaml"))[0]:
        value: float | None = 99.0
        if cell.mask.name != "dense":
            value = 90 + cell.seed + 2 * (cell.recipe.text == "gsw") - 10 * (cell.sparsity.share > 0.95)
        reason = ""
        if cell.mask.name == "lth" and cell.recipe.text == "gsw" and cell.sparsity.share > 0.95:
            value, reason = None, "failed"
        if cell.mask.name == "lth" and cell.recipe.text == "default" and cell.seed == 2:
            value, reason = None, "missing"
        lines.append(line(cell, value, reason))
    return Frame.of(lines)


def grid(frame: Frame, table: Table = TABLES["any-mask"]) -> Grid:
    (made,) = build(table, frame)
    return made


def text(made: Grid, *place: str) -> str:
    rows = len(made.rows)
    return made.entry(place[:rows], place[rows:]).text


def test_mean_deviation_count_and_paired_difference(frame: Frame) -> None:
    made = grid(frame)
    assert text(made, "snip", "default", "digits", "90%") == "91.00 ± 1.00 (3)"
    assert text(made, "snip", "gsw", "digits", "98%") == "83.00 ± 1.00 (3) +2.00"


def test_holes_are_shown_with_their_reason_and_never_dropped(frame: Frame) -> None:
    made = grid(frame)
    assert text(made, "lth", "gsw", "digits", "98%") == "– [3 failed]"
    assert text(made, "lth", "default", "digits", "90%") == "90.50 ± 0.71 (2) [1 missing]"
    assert text(made, "lth", "gsw", "digits", "90%") == "93.00 ± 1.00 (3) +2.00 (2 of 3)", (
        "paired by seed: the missing one is left out"
    )
    assert made.entry(("lth", "gsw"), ("digits", "90%")).differences == (2.0, 2.0)


def test_the_dense_network_stands_under_every_sparsity(frame: Frame) -> None:
    made = grid(frame)
    assert [text(made, "dense", "default", *column) for column in made.column_keys] == ["99.00 ± 0.00 (3)"] * 2
    assert made.column_keys == [("digits", "90%"), ("digits", "98%")]
    assert ("dense", "gsw") not in made.row_keys


def test_axes_that_a_table_does_not_name_give_a_block_each(frame: Frame) -> None:
    blocks = build(Table(name="t", rows=("recipe",), columns=("sparsity",)), frame)
    assert [block.name for block in blocks] == ["t, snip", "t, lth", "t, dense"]


def test_differences_that_are_equal_have_no_brackets_and_the_caption_says_why(frame: Frame) -> None:
    assert text(grid(frame), "snip", "gsw", "digits", "90%") == "93.00 ± 1.00 (3) +2.00"
    why = "No brackets where all seeds differ by the same"
    assert why in grid(frame).caption
    spread = [
        replace(one, measured=replace(one.measured, metrics={"test@last": one.value**1.01, "test@best-dev": 0.0}))
        if one.measured and one.value
        else one
        for one in frame.lines
    ]
    assert why not in grid(Frame.of(spread)).caption


def test_every_hole_is_told_the_first_six_by_cause(frame: Frame) -> None:
    holes = [replace(one, measured=None, reason="failed", cause=f"cause {n}") for n, one in enumerate(frame.lines[:8])]
    caption = grid(Frame.of([*holes, *frame.lines[8:]])).caption
    assert "Holes: 'failed: cause 0'; " in caption
    assert "'failed: cause 5' and 2 more." in caption


def test_a_single_seed_has_no_deviation() -> None:
    assert Entry((91.234,)).text == "91.23 (1)"
    assert Entry((), (), ("failed", "failed", "missing")).text == "– [2 failed, 1 missing]"


def test_what_is_no_better_than_guessing_is_counted_and_named(frame: Frame) -> None:
    def learnt(one: Line, value: float) -> Line:
        metrics = {"test@last": value, "test@best-dev": value}
        return replace(one, measured=replace(one.measured, metrics=metrics)) if one.measured else one

    lines = [replace(one, test_images=400, classes=10) for one in frame.lines]
    assert not any(entry.at_chance for entry in grid(Frame.of(lines)).entries.values())
    assert "guessing" not in grid(Frame.of(lines)).caption
    edge = 100 * (0.1 + 1.96 * 0.015)  # the standard error of 10 % of 400 images is 1.5 %
    values = iter([2.0, edge - 0.01, edge + 0.01])
    chosen = [one for one in lines if (one.axis("mask"), one.axis("recipe"), one.axis("sparsity")) == GUESSED]
    told = {id(one): learnt(one, next(values)) for one in chosen}
    made = grid(Frame.of([told.get(id(one), one) for one in lines]))
    entry = made.entry(("snip", "gsw"), ("digits", "98%"))
    assert entry.text.endswith("[2 at chance]")
    assert entry.hole == "", "nothing is missing there"
    assert sum(other.at_chance for other in made.entries.values()) == 2
    names = "; ".join(one.short for one in chosen[:2])
    assert f"No better than guessing (95 % interval): {names}." in made.caption
    unknown = grid(Frame.of([replace(one, test_images=0) for one in told.values()]))
    assert not any(other.at_chance for other in unknown.entries.values())


def test_what_a_part_reaches_only_in_part_stands_below(frame: Frame) -> None:
    assert "Reached in part" not in grid(frame).caption
    told = {"reached": {"gsw": "1 of 3 ReLUs"}, "activations_of": "1 of 3 ReLUs"}
    lines = [measured(metrics={**one.metrics, **told})(one) for one in frame.lines]
    said = f"Reached in part, the others being calls of functions: gsw 1 of 3 ReLUs of {lines[0].axis('arch')}."
    assert said in grid(Frame.of(lines)).caption
    said = f"not behind calls of functions: 1 of 3 ReLUs of {lines[0].axis('arch')}."
    assert said in grid(Frame.of(lines), TABLES["diagnostics"]).caption
    assert said not in grid(Frame.of(lines)).caption


@pytest.mark.parametrize("width", [60, 80, 200])
def test_on_a_terminal_no_label_or_number_is_cut(width: int, frame: Frame) -> None:
    from rich.console import Console

    made = grid(frame)
    out = Console(width=width, record=True, file=io.StringIO())
    out.print(*on_terminal(made, width), sep="\n")
    text = out.export_text()
    for row in made.row_keys:
        for column in made.column_keys:
            assert made.entry(row, column).text in text
    assert "…" not in text
    assert text.count("recipe") >= len(on_terminal(made, width))


def changed(one: Line, **fields: Any) -> Line:
    """Return a line with other fields, those of its identity by name too."""
    identity = {name: fields.pop(name) for name in list(fields) if name in vars(one.identity)}
    return replace(one, identity=replace(one.identity, **identity), **fields)


def with_identity(frame: Frame) -> Frame:
    """Give every line what a real one has: a mask by its ticket, weights and an order by the seed."""
    lines = []
    for one in frame.lines:
        ticket = f"{one.axis('mask')} {one.axis('sparsity')} {one.axis('seed')}"
        mask = "none" if one.dense else ticket
        lines.append(changed(one, mask=mask, mask_key=ticket, theta0=one.axis("seed"), order=one.axis("seed")))
    return Frame.of(lines)


def test_pairs_share_mask_weights_and_order(frame: Frame) -> None:
    whole = with_identity(frame)
    found = pairs(whole, {"recipe": "default"})
    assert len(found) == 12, "every line of gsw has its own"
    for pair in found.values():
        assert pair.lacks == ""
        assert pair.base.axis("recipe") == "default"
        assert all(pair.line.axis(a) == pair.base.axis(a) for a in ("mask", "sparsity", "seed"))
    assert "same mask, initial weights and order" in grid(whole).caption


@pytest.mark.parametrize(
    ("differs", "says", "compared"),
    [
        ({"mask": "another", "mask_key": "another stage"}, "mask not shared: 1 of 8 pairs (snip)", True),
        ({"mask": "moving"}, "mask not shared: 1 of 8 pairs (snip)", True),
        ({"theta0": "another"}, "initial weights not shared: 1 of 8 pairs (snip)", True),
        ({"mask": "made again"}, "Not compared: 1 pairs (snip), their masks are of one stage", False),
        ({"order": "another"}, "Not compared: 1 pairs (snip), another order", False),
    ],
)
def test_what_pairs_lack_is_said_and_disagreeing_parents_are_never_compared(
    differs: dict[str, str], says: str, compared: bool, frame: Frame
) -> None:
    lines = list(with_identity(frame).lines)
    at = next(n for n, one in enumerate(lines) if one.axis("mask") == "snip" and one.axis("recipe") == "gsw")
    lines[at] = changed(lines[at], **differs)
    made = grid(Frame.of(lines))
    assert says in made.caption
    entry = made.entry(("snip", "gsw"), ("digits", "90%"))
    assert len(entry.differences) == (3 if compared else 2)
    assert len(entry.values) == 3, "its own number stands all the same"


def test_any_axis_can_be_what_is_compared(frame: Frame) -> None:
    whole = with_identity(frame)
    table = Table(name="t", rows=("mask",), columns=("sparsity",), blocks=("recipe",), baseline={"mask": "snip"})
    made = build(table, whole)[0]
    assert text(made, "lth", "90%").startswith("90.50 ± 0.71 (2)")
    assert made.entry(("lth",), ("90%",)).differences == (0.0, 0.0)
    assert made.entry(("snip",), ("90%",)).differences == ()
    assert "mask not shared" in made.caption


def test_a_control_is_compared_with_its_own_mask(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "name: c\nprotocol: quick\ngrid: {dataset: digits, arch: resnet20, mask: [snip, {snip: {control: shuffled}}, "
        "lth, {lth: {control: fresh}}], sparsity: 90%, seed: 0..1}\n"
    )
    lines = [line(c, 90 + 2.0 * (c.mask.name == "lth") - 1.0 * bool(c.mask.given)) for c in
             expand(load_sweep(tmp_path / "c.yaml"))[0]]  # fmt: skip
    made = grid(Frame.of(lines), TABLES["controls"])
    assert made.entry(("default", "lth(control=fresh)"), ("digits", "90%")).differences == (-1.0, -1.0)
    assert made.entry(("default", "lth"), ("digits", "90%")).differences == ()
    assert "the same mask without control" in made.caption


@pytest.mark.parametrize(
    ("field", "value"),
    [("dev", "first:100"), ("content", "f" * 64), ("epochs", 9), ("precision", "bf16"), ("prunable", "conv")],
)
def test_a_table_refuses_to_mix_unless_told(field: str, value: Any, frame: Frame) -> None:
    lines = [changed(one, content="a" * 64) for one in frame.lines]
    odd = lines[-1]
    if field == "content":
        lines[-1] = changed(odd, content=value)
    elif field == "dev":
        lines[-1] = replace(odd, facts=replace(odd.facts, dev=value))
    else:
        lines[-1] = replace(odd, facts=replace(odd.facts, protocol={**odd.facts.protocol, field: value}))
    whole = Frame.of(lines)
    made = grid(whole)
    assert str(value) in made.refusal
    assert f"mix: [{field}]" in made.refusal
    assert not made.entries
    told = grid(whole, TABLES["any-mask"].model_copy(update={"mix": (field,)}))
    assert not told.refusal
    assert "Mixed, as asked: " in told.caption
    assert str(value) in told.caption


def test_other_lengths_for_another_data_set_are_no_mixture(frame: Frame) -> None:
    longer = [
        replace(one, labels={**one.labels, "dataset": "tiny"}, key=f"t{one.key}",
                facts=replace(one.facts, protocol={**one.facts.protocol, "epochs": 300}))
        for one in frame.lines
    ]  # fmt: skip
    made = grid(Frame.of([*frame.lines, *longer]))
    assert not made.refusal
    assert "8 epochs" in made.caption
    assert "300 epochs" in made.caption


def test_sweeps_that_differ_in_a_field_alone_stand_apart(frame: Frame) -> None:
    other = [
        replace(one, key=f"o{one.key}", facts=replace(one.facts, protocol={**one.facts.protocol, "lr": 0.5}))
        for one in frame.lines
    ]
    blocks = build(TABLES["any-mask"], Frame.of([*frame.lines, *other]))
    assert [block.name for block in blocks] == ["any-mask, lr 0.1", "any-mask, lr 0.5"]
    again = build(TABLES["any-mask"], Frame.of([*frame.lines, *frame.lines]))
    assert [block.name for block in again] == ["any-mask"], "the same cell of two sweeps counts once"


def test_two_results_of_one_cell_are_refused(frame: Frame) -> None:
    odd = replace(frame.lines[0], key="e" * 32)
    assert "two results stand for" in grid(Frame.of([*frame.lines, odd])).refusal


def test_the_best_stand_out_among_what_is_compared(frame: Frame) -> None:
    made = grid(frame, TABLES["any-mask"].model_copy(update={"emphasis": "best"}))
    bold = {(row, column[1]) for (row, column), entry in made.entries.items() if entry.strong}
    assert bold == {(("snip", "gsw"), "90%"), (("snip", "gsw"), "98%"), (("lth", "gsw"), "90%")}


def test_what_differs_for_sure_stands_out_after_holm(frame: Frame) -> None:
    lines = [
        changed(one, measured=replace(one.measured, metrics={"test@last": one.value + 0.01 * int(one.axis("seed"))}))
        if one.measured and one.value is not None and one.axis("recipe") == "gsw"
        else one
        for one in frame.lines
    ]
    made = grid(Frame.of(lines), TABLES["any-mask"].model_copy(update={"emphasis": "significant"}))
    tested = {row: entry for (row, column), entry in made.entries.items() if entry.p is not None and column[1] == "90%"}
    assert set(tested) == {("snip", "gsw"), ("lth", "gsw")}
    plain = paired_p(tested["snip", "gsw"].differences)
    assert tested["snip", "gsw"].p == pytest.approx(4 * plain), "the smallest of four, one of which is a hole"
    assert tested["snip", "gsw"].strong
    assert "Holm" in made.caption


FOREIGN = (
    "arch,mask,sparsity,recipe,value,std,n,source\n"
    "resnet20,snip,90%,default,88.5,0.4,5,Lee\nresnet20,snip,90%,default,88.7,,,Wang\nresnet20,rigl,90%,default,91.25,,,Evci\nvgg16,snip,90%,default,1,,,no\n"
)


def test_foreign_numbers_join_by_axes_and_are_marked(frame: Frame) -> None:
    frame.foreign = read_foreign(FOREIGN.encode(), "published.csv")
    made = grid(frame)
    assert text(made, "snip", "default (foreign)", "digits", "90%") == "88.50 ± 0.40 (5)†"
    assert text(made, "snip", "default (foreign 2)", "digits", "90%") == "88.70†"
    assert text(made, "rigl", "default", "digits", "90%") == "91.25†"
    assert text(made, "rigl", "default", "digits", "98%") == ""
    assert made.row_keys.index(("snip", "default (foreign)")) == made.row_keys.index(("snip", "gsw")) + 1
    assert "† Not measured here" in made.caption
    assert "no" not in made.caption.partition("†")[2].split(), "another network's number has no place here"
    assert all(not entry.differences for entry in made.entries.values() if entry.foreign)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mask,value\nsnip,1\n", "line 1: has no column 'source'"),
        ("value,source\n1,\n", "line 2: has no source"),
        ("value,source\nx,a\n", "line 2: value 'x' is not allowed"),
        ("value,source\nnan,a\n", "line 2: value 'nan' is not allowed"),
        ("value,source,n\n1,a,0.5\n", "line 2: n 0.5"),
        ("value,source,std\n1,a,-1\n", "line 2: std"),
        ("value,source\n1,a,3\n", "line 2: 3 cells under 2 columns"),
        ("value,source,metric\n1,a,speed\n", "line 2: 'speed' is no metric"),
        ("value,source,value\n1,a,1\n", "two columns"),
        ('value,source\n1,"a\n', "line"),
        ("value,source\n", "has no rows"),
        ("", "line 1"),
    ],
)
def test_a_broken_file_of_foreign_numbers_is_told_by_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        read_foreign(text.encode(), "x.csv")
    with pytest.raises(ValueError, match="UTF-8"):
        read_foreign(b"\xff\xfe", "x.csv")


def field(name: str, value: Any) -> Callable[[Line], Line]:
    return lambda one: replace(one, facts=replace(one.facts, protocol={**one.facts.protocol, name: value}))


def measured(**fields: Any) -> Callable[[Line], Line]:
    return lambda one: replace(one, measured=replace(one.measured, **fields)) if one.measured else one


TOLD: dict[str, Callable[[Line], Line]] = {
    "files": lambda one: changed(one, content="c" * 64),
    "split": lambda one: replace(one, facts=replace(one.facts, dev="first:7")),
    "column": field("report", "test@best-dev"),
    "epochs": field("epochs", 77),
    "precision": field("precision", "bf16"),
    "prunable": field("prunable", "conv"),
    "batch": field("batch", 77),
    "rate": field("lr", 0.077),
    "optimizer": field("optimizer", "adamw"),
    "schedule": field("milestones", [7.0]),
    "decay": field("weight_decay", 0.077),
    "augmentation": field("augment", "none"),
    "augmentation in words": lambda one: replace(one, facts=replace(one.facts, augment="no crops and no flips")),
    "tuning": lambda one: replace(one, facts=replace(one.facts, trials=7, tuned_by="dev_loss")),
    "device": measured(stamp={"device": "cuda", "device_name": "NVIDIA X", "world": 2}),
    "execution": measured(stamp={"device": "cpu", "execution": "compiled"}),
    "execution, as earlier versions said it": measured(stamp={"device": "cpu", "fast": "compiled"}),
    "code": measured(provenance={"source": "7" * 16}),
    "commit": measured(provenance={"git": "7" * 40, "git_diff": "x.diff"}),
    "note": lambda one: replace(one, note="test is the validation split"),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_caption_is_complete(name: str, frame: Frame) -> None:
    other = grid(Frame.of([TOLD[name](one) for one in frame.lines])).caption
    assert other != grid(frame).caption


@pytest.mark.parametrize("stamp", [{}, {"fast": "eager"}, {"fast": True, "execution": "eager"}])
def test_results_of_any_version_that_ran_eager_are_told_alike(stamp: dict[str, Any], frame: Frame) -> None:
    other = Frame.of([measured(stamp={"device": "cpu", **stamp})(one) for one in frame.lines])
    assert "Devices: cpu." in grid(other).caption


@pytest.mark.parametrize(
    ("dataset", "augment", "said"),
    [
        ("digits", "standard", "standard augmentation"),
        ("imagefolder:x", "standard", "random crops padded by 4 and no flips"),
        ("imagefolder:x", "{flip: true}", "random crops padded by 4 and horizontal flips"),
        ("imagefolder:x", "{crop: 0}", "no augmentation"),
        ("digits", "{crop: 0, flip: true}", "no crops and horizontal flips"),
        ("digits", "none", "no augmentation"),
    ],
)
def test_captions_say_what_was_done_to_images_where_the_catalog_does_not(
    dataset: str, augment: str, said: str, tmp_path: Path
) -> None:
    head = f"{{preset: quick, augment: {augment}}}"
    text = SWEEP.replace("protocol: quick", f"protocol: {head}").replace("digits", f'"{dataset}"')
    (tmp_path / "x.yaml").write_text(text)
    lines = [line(cell, 90.0) for cell in expand(load_sweep(tmp_path / "x.yaml"))[0]]
    assert f"weight decay 0.0005, {said}; dev split" in grid(Frame.of(lines)).caption


def test_a_note_says_of_which_data_sets_it_is(frame: Frame) -> None:
    other = [replace(one, labels={**one.labels, "dataset": "mine"}, key=f"m{one.key}") for one in frame.lines]
    noted = [replace(one, note="no test image of 1 of 2 classes (a)") for one in other]
    assert "No test image of 1 of 2 classes (a)." in grid(Frame.of(noted)).caption
    assert "No test image of 1 of 2 classes (a) (mine)." in grid(Frame.of([*frame.lines, *noted])).caption


def test_nonzeros_are_told_by_number(frame: Frame) -> None:
    lines = [
        replace(one, measured=replace(one.measured, metrics={**one.measured.metrics, "kept": 1234, "prunable": 56789}))
        if one.measured
        else one
        for one in frame.lines
    ]
    assert "resnet20, 56,789 prunable: 1,234 at 90%, 1,234 at 98%" in grid(Frame.of(lines)).caption


def test_a_caption_says_of_which_share_of_the_weights_a_sparsity_is(frame: Frame) -> None:
    assert beyond(900, {"b.weight": 30, "a.weight": 30, "c.weight": 40}) == (
        "sparsities are of 90 % of its weights; left dense: c.weight, a.weight, b.weight"
    )
    more = {f"blocks.{n}.in_proj_weight": 25 for n in range(5)}
    one = next(line for line in frame.lines if line.measured)
    assert one.measured is not None
    metrics = {**one.metrics, "kept": 10, "prunable": 375, "left_out": more}
    caption = grid(Frame.of([replace(one, measured=replace(one.measured, metrics=metrics))])).caption
    assert (
        "Not of all weights: resnet20: sparsities are of 75 % of its weights; left dense: blocks.0.in_proj_weight, "
        "blocks.1.in_proj_weight, blocks.2.in_proj_weight and 2 more."
    ) in caption


def test_settings_that_differ_beside_what_is_compared_are_named(frame: Frame) -> None:
    def tuned(one: Line) -> Line:
        return field("lr", 0.05)(one) if one.axis("recipe") == "gsw" else one

    caption = grid(Frame.of([tuned(one) for one in frame.lines])).caption
    assert "Compared although they differ in lr 0.05 and 0.1: 8 of 8 pairs." in caption


def test_a_recipe_of_several_knobs_is_no_baseline_by_its_bare_name(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text(
        "name: k\nprotocol: quick\ngrid: {dataset: digits, arch: resnet20, mask: snip, sparsity: 90%, "
        "recipe: [default, gsw], gsw.b1: [2, 5], seed: 0..1}\n"
    )
    frame = Frame.of([line(cell, 90.0 + len(cell.recipe.parts)) for cell in expand(load_sweep(tmp_path / "k.yaml"))[0]])
    made = grid(frame, TABLES["components"].model_copy(update={"baseline": "gsw"}))
    assert all(not entry.differences for entry in made.entries.values())
    assert "No differences: no cell here is gsw" in made.caption
    made = grid(frame, TABLES["components"].model_copy(update={"baseline": "gsw(b1=5.0)"}))
    assert made.entry(("default",), ("90%",)).differences == (-1.0, -1.0)


def test_a_baseline_is_read_as_its_axis_is(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(
        "name: b\nprotocol: quick\ngrid: {dataset: digits, arch: resnet20, mask: snip, sparsity: [90%, 98%], "
        "recipe: gsw+ls}\ntables: [{shape: components, baseline: ls+gsw}, "
        "{name: t, rows: [sparsity], columns: [recipe], baseline: {sparsity: 0.9}}]\n"
    )
    tables = load_sweep(tmp_path / "b.yaml").tables
    assert tables[0].compared == {"recipe": "gsw+ls"}
    assert tables[1].compared == {"sparsity": "90%"}


def test_texts_of_others_are_no_markup_on_a_terminal(frame: Frame) -> None:
    from rich.console import Console

    made = grid(Frame.of([replace(one, cause="cannot open [/scratch/x] on [cuda]") for one in frame.lines]))
    out = Console(width=300, record=True, file=io.StringIO())
    out.print(*on_terminal(made, 300), sep="\n")
    assert "[/scratch/x] on [cuda]" in out.export_text()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("{name: cells, rows: [mask], columns: [sparsity]}", "a table cannot be named 'cells'"),
        ("{shape: [any-mask]}", "is no table shape"),
        ("{shape: any-mas}", "did you mean 'any-mask'"),
        ("{shape: any-mask, blocks: [seed]}", "seed makes no block"),
        ("{shape: any-mask, columns: [effect]}", "effect stands in rows only"),
        ("{shape: any-mask, baseline: {mask: snp}}", "did you mean 'snip'"),
        ("{shape: any-mask, mix: [epoch]}", "did you mean 'epochs'"),
        ("{shape: any-mask, emphasis: bold}", "emphasis"),
        ("{shape: any-mask, values: [speed]}", "is no metric"),
        ("{shape: any-mask, blocks: [mask]}", "stands twice"),
    ],
)
def test_a_table_that_cannot_be_is_told_at_its_line(table: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"{SWEEP}tables:\n  - {table}\n")
    with pytest.raises(FileError) as error:
        load_sweep(tmp_path / "x.yaml")
    assert said in str(error.value)
    assert "x.yaml:" in str(error.value)
