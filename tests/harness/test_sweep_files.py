"""Sweep files: what is wrong is said with its line, in one go, never as a traceback; what is right is understood."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from harness.cell import expand
from harness.check import load_sweep
from harness.errors import FileError, UserError
from harness.planner import make_plan
from harness.store import Store
from tests.conftest import run_sweep
from tost.catalog import MASKS


def grid(after: str = "", head: str = "protocol: quick\n", name: str = "x", **axes: object) -> str:
    """A good sweep file, with something before the grid, after it, or in place of an axis."""
    values = {"dataset": "digits", "arch": "resnet20", "mask": "snip", "sparsity": "90%", **axes}
    return f"name: {name}\n{head}grid:\n" + "".join(f"  {k}: {v}\n" for k, v in values.items()) + after


def protocol(text: str) -> str:
    return grid(head=f"protocol: {text}\n")


def search(text: str) -> str:
    return grid(f"search: {{space: {{lr: [0.1, 0.2]}}, {text}}}\n")


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{k}: &{k} [{','.join(['*' + j] * 9)}]\n" for j, k in zip("abcdefghi", "bcdefghij", strict=True)
)

BROKEN: dict[str, tuple[str, str]] = {
    "grid is null": ("name: x\ngrid:\n", "x.yaml:2: grid: null is not allowed; write a mapping"),
    "unknown axis": (grid(sparsityy=1), "'sparsityy' is no axis"),
    "unknown key": (grid("wandbb: {project: x}\n"), "x.yaml:8: wandbb: unknown key; allowed are name, "),
    "unknown nested key": (grid("launch: {wokers: 2}\n"), "(did you mean 'workers'?)"),
    "bool for number": (grid("launch: {workers: true}\n"), "launch.workers: True is not allowed; write a number"),
    "name with a path": (grid(name="../evil"), "x.yaml:1: name: '../evil' is not allowed; a name is letters"),
    "name with a control character": (grid(name='"a\\u0007b"'), "name: 'a\\x07b' is not allowed"),
    "no name": ("grid: {mask: dense}\n", "name: is missing"),
    "unknown arch": (grid(arch="[resnet20, resnet21]"), "x.yaml:5: grid.arch: 'resnet21' is no architecture"),
    "unknown mask": (grid(mask="snp"), "(did you mean 'snip'?)"),
    "nested list": (grid(arch="[[a, b]]"), "['a', 'b'] is not allowed; write a name"),
    "mapping for number": (
        grid(lr="{a: {b: {c: 1}}}"),
        "grid.lr: {'a': {'b': {'c': 1}}} is not allowed; write a number",
    ),
    "empty axis": (grid(mask="[]"), "x.yaml:6: grid.mask: is empty"),
    "bool as seed": (grid(seed="[0, true]"), "True is not allowed; write whole numbers from 0 on"),
    "seed range too high": (grid(seed="2147483640..2147483700"), "2147483700 is not allowed"),
    "range backwards": (grid(seed="4..0"), "'4..0' is an empty range"),
    "huge range": (grid(seed="0..999999999999"), "has 1,000,000,000,000 values"),
    "many huge ranges": (grid(seed="[" + ", ".join(["0..900000"] * 60) + "]"), "has over 1,000,000 values"),
    "range of sparsities": (grid(sparsity="1..900000"), "has 900,000 values; at most 10,000"),
    "huge product": (
        grid(seed="0..999999", ticket_seed="0..999999", epochs="[1,2]"),
        "the grid has 2,000,000,000,000 points",
    ),
    "product to be confirmed": (grid(seed="0..999999", epochs="[10, 20]"), "If that is meant: --yes"),
    "everything pruned": (grid(sparsity="100%"), "'100%' is no sparsity; write a share below 1"),
    "percent without sign": (grid(sparsity="90"), "90 is no sparsity"),
    "ladder too long": (grid(sparsity="imp:61"), "ladder levels run from imp:1 to imp:60"),
    "no sparsity": ("name: x\ngrid: {dataset: digits, arch: resnet20, mask: snip}\n", "the axis 'sparsity' is missing"),
    "knob of dense": (grid(mask="{dense: {bn: eval}}"), "dense has no knobs"),
    "unknown knob": (
        grid(mask="{snip: {bnn: eval}}"),
        "'bnn' is not a knob; it has bn, per_class, scope, control (did you mean 'bn'?)",
    ),
    "a list for a knob": (
        grid(mask="{synflow: {steps: [1, 2, 10, 100]}}"),
        "list the method once for each: [{synflow: {steps: 1}}, {synflow: {steps: 2}}, {synflow: {steps: 10}}, ...]",
    ),
    "knob out of range": (grid(mask="{synflow: {steps: 0}}"), "steps: 0 lies outside 1 .. 10000"),
    "infinite knob": (grid(recipe="{gsw: {b1: 1e999}}"), "b1: inf is not a finite number"),
    "folder of digits": (grid(dataset="{digits: {folder: /nope}}"), "'folder' is not a knob"),
    "recipe without parts": (grid(recipe="+"), "'+' is no recipe"),
    "part twice away": (grid(recipe="gsw+ls-gsw-gsw"), "takes away gsw, which is not in it"),
    "unknown set of recipes": (grid(recipe="subset(tost)"), "'subset' is no set of recipes; choose from subsets,"),
    "set of an unknown recipe": (grid(recipe="[default, subsets(tots)]"), "'tots' is no recipe or part"),
    "unknown library": (grid(arch="tv:resnet18"), "'tv' is no library; choose from torchvision, timm"),
    "unknown network of a library": (
        grid(arch="torchvision:resnt18"),
        "'resnt18' is no network of torchvision, which has 80 (did you mean 'resnet18'?)",
    ),
    "knob of a library's network": (grid(arch="{'torchvision:resnet18': {width: 2}}"), "'width' is not a knob"),
    "file without a path": (grid(mask="'file:'"), "write file:PATH with a file of masks"),
    "file that is not there": (grid(mask="file:./nothing.pt"), "'./nothing.pt' is none"),
    "control of gradual pruning": (grid(mask="{gmp: {control: fresh}}"), "'control' is not a knob; it has begin,"),
    "rewound past the end": (grid(mask="{lth: {rewind: 8}}"), "rewind: 8 must lie before the end of the 8 epochs"),
    "fresh and rewound": (
        grid(mask="{lth: {rewind: 2, control: fresh}}"),
        "control: fresh starts from an initialisation that was never trained; it needs rewind: 0",
    ),
    "gradual pruning back in time": (grid(mask="{gmp: {begin: 0.7}}"), "gmp ends at 0.5 of training, not after it"),
    "small network without a width": (
        grid(arch="torchvision:resnet18", mask="small_dense"),
        "small_dense makes the network narrower, but torchvision:resnet18 has no knob width",
    ),
    "cost of an unknown recipe": (grid(epochs="match_cost(tots)"), "'tots' is no recipe or part"),
    "cost matched by another recipe": (
        grid(recipe="ls", epochs="match_cost(tost)"),
        "epochs: match_cost(tost) lengthens the recipe default; give it a block of its own",
    ),
    "unknown augmentation": (
        protocol("{preset: quick, augment: flips}"),
        "'flips' is not allowed; write standard, none or",
    ),
    "no augmentation": (grid(augment="{}"), "grid.augment: {} is not allowed; write standard, none or"),
    "unknown setting of augmentation": (grid(augment="{flips: true}"), "no setting 'flips'; there are crop and flip"),
    "flip of another kind": (
        protocol("{preset: quick, augment: {flip: no}}"),
        "flip: 'no' is not allowed; write true or",
    ),
    "crop out of range": (grid(augment="{crop: 999}"), "crop: 999 is not allowed; write the padding in pixels, from 0"),
    "crop of another kind": (grid(augment="[{crop: true}, none]"), "crop: True is not allowed"),
    "unknown answer to a collapse": (protocol("{preset: quick, on_collapse: ignore}"), "'ignore' is not allowed"),
    "knob without its part": (grid(**{"gsw.b1": "[10, 100]"}), "gsw.b1 has no effect: no recipe here has that part"),
    "preset is a list": (protocol("{preset: [quick]}"), "['quick'] is no preset; choose from tost, tiny, quick"),
    "unknown preset": (protocol("quik"), "'quik' is no preset"),
    "unknown field": (protocol("{preset: quick, epoch: 3}"), "'epoch' is no field"),
    "axis of protocols": (
        grid(head="", protocol="[{preset: quick, lr: {a: 1}}]"),
        "lr: {'a': 1} is not allowed; write a number",
    ),
    "field in an axis of protocols": (
        grid(head="", protocol="[quick, {preset: quick, lrr: 1}]"),
        "x.yaml:7: grid.protocol: 'lrr' is",
    ),
    "milestones past the end": (
        protocol("{epochs: 10, milestones: [5, 20]}"),
        "milestones [5.0, 20.0] must rise and lie inside",
    ),
    "warm-up too long": (
        protocol("{preset: quick, warmup: 12}"),
        "warmup of 12 epochs is no shorter than the 8 epochs",
    ),
    "yes for true": (protocol("{nesterov: yes}"), "nesterov: 'yes' is not allowed; write true or false"),
    "nesterov without momentum": (protocol("{nesterov: true, momentum: 0}"), "nesterov needs a momentum above 0"),
    "best dev without dev": (protocol("{dev: none, report: test@best-dev}"), "report test@best-dev needs a dev split"),
    "odd dev": (protocol("{dev: 'first:1_0 '}"), "write standard, none, first:5000 or stratified:0.1"),
    "set of an unknown preset": (
        grid('when:\n  - if: "seed == 0"\n    set: {protocol: {preset: [a]}}\n'),
        "x.yaml:10: when.set.protocol",
    ),
    "condition calls": (
        grid("exclude: ['__import__(''os'').system(''id'')']\n"),
        "x.yaml:8: exclude: \"__import__('os').system('id')\"",
    ),
    "condition explodes": (grid("exclude: ['9**9**9**9 == seed']\n"), "'9 ** 9 ** 9 ** 9' cannot be compared"),
    "condition too long": (
        grid("exclude: ['" + "seed == 1 or " * 200 + "seed == 2']\n"),
        "a condition of 2609 characters",
    ),
    "condition too deep": (grid("exclude: ['" + "(" * 400 + "seed == 1" + ")" * 400 + "']\n"), "is not a condition"),
    "condition of unknown name": (grid("exclude: [\"ach == 'resnet20'\"]\n"), "(did you mean 'arch'?)"),
    "condition of unknown value": (
        grid("exclude: [\"optimizer == 'sdg'\"]\n"),
        "'sdg' is unknown; choose from sgd, adamw",
    ),
    "condition without order": (grid("when:\n  - if: 'seed < ''a'''\n    set: {lr: 0.2}\n"), "'a' is not a number"),
    "condition of nothing": (grid("exclude: [arch]\n"), "'arch' compares nothing"),
    "condition as a substring": (grid("exclude: [\"arch in 'resnet20'\"]\n"), "`in` wants a list"),
    "condition under another key": (
        grid("when:\n  - condition: seed == 0\n    set: {lr: 0.2}\n"),
        "when.0.if: is missing",
    ),
    "alias bomb": (BOMB + grid(), "expands to over 100000 values through its aliases"),
    "alias of itself": (grid("also: &a [*a]\n"), "nested over 40 levels deep"),
    "tabs": (grid("launch:\n\tworkers: 1\n"), "x.yaml:9: not valid YAML: found character '\\t'"),
    "duplicate key": (grid("  mask: lth\n"), "x.yaml:8: key 'mask' stands twice"),
    "escape too large": ('name: "\\UFFFFFFFF"\n', "not valid YAML"),
    "odd tag": (grid(seed="!foo 5"), "tag '!foo' is not allowed"),
    "python tag": (grid(seed="!!python/object/apply:os.system [id]"), "is not allowed; write plain values"),
    "not a mapping": ("- a\n- b\n", "a sweep file is a mapping"),
    "empty": ("", "a sweep file is a mapping"),
    "two documents": (grid("---\nname: y\n"), "not valid YAML"),
    "base with a null byte": (grid('base: "a\\0b"\n'), "base: 'a\\x00b' is no usable path"),
    "base is missing": (grid("base: other.yaml\n"), "other.yaml: no such file; "),
    "base is itself": (grid("base: x.yaml\n"), "base files form a circle"),
    "own file is missing": (grid("use: {mine: './nope.py:f'}\n"), "x.yaml:8: use: 'mine': "),
    "own name hides the catalog's": (grid("use: {snip: './nope.py:f'}\n"), "the catalog has that name already"),
    "own module is built in": (grid("use: {mine: 'sys:exit'}\n"), "'sys' is built in or compiled"),
    "home of nobody": (grid(dataset="imagefolder:~nosuchuser/x"), "is no usable path"),
    "path too long": (grid(dataset="imagefolder:" + "a" * 300), "is no usable path: File name too long"),
    "folder is missing": (grid(dataset="imagefolder:nowhere"), "nowhere is no folder"),
    "table of an unknown shape": (grid("tables: [any_mask]\n"), "'any_mask' is no table shape; choose from any-mask"),
    "table of an unknown axis": (
        grid("tables: [{name: t, rows: [msk], columns: [sparsity]}]\n"),
        "(did you mean 'mask'?)",
    ),
    "table with an axis twice": (grid("tables: [{name: t, rows: [mask], columns: [mask]}]\n"), "'mask' stands twice"),
    "odd wandb mode": (grid("wandb: {project: p, mode: on}\n"), "wandb.mode: 'on' is not allowed"),
    "odd wandb project": (grid("wandb: {project: a/b}\n"), "wandb.project: 'a/b' is not allowed; a project's name has"),
    "odd wandb entity": (grid("wandb: {project: p, entity: my lab}\n"), "an entity, a user or a team, is letters"),
    "odd wandb key": (
        grid("wandb: {project: p, shard_by: [arch]}\n"),
        "shard_by: gone; all runs go to one project",
    ),
    "empty further block": (grid("also: [{}]\n"), "an empty block repeats the grid"),
    "range of spaces": (
        grid(head="protocol: quick\nsearch: {samples: 4, space: {lr: 'uniform(" + " " * 5000 + "'}}\n"),
        "is no range; write uniform(a, b)",
    ),
    "many lists of seeds": (
        grid("also:\n" + "  - {seed: [0..999999]}\n" * 3),
        "the file lists over 2,000,000 values; write a..b for seeds",
    ),
    "tuned by a name too long": (grid("tuned: " + "a" * 300 + "\n"), "is no usable path: File name too long"),
    "tuned by a number": (grid("tuned: [3]\n"), "tuned: 3 is not allowed; write the path of a file of a search"),
    "table against a number": (
        grid("tables: [{shape: any-mask, baseline: 3}]\n"),
        "tables.0.baseline: 3 is not allowed; write a recipe, or axes with one value each",
    ),
    "table against a list": (
        grid("tables: [{shape: any-mask, baseline: {recipe: [ls]}}]\n"),
        "tables.0.baseline: ['ls'] is not allowed; write a recipe, or axes with one value each",
    ),
    "samples in words": (search("samples: {default: many}"), "search.samples: 'many' is not allowed; write the number"),
    "unknown scheduler": (
        search("samples: 4, scheduler: hyperband"),
        "search.scheduler: 'hyperband' is not allowed; write asha, none or {asha: {grace: 1, reduction: 4}}",
    ),
    "half of a trial": (
        search("samples: 4, scheduler: {asha: {reduction: 2.5}}"),
        "search.scheduler.reduction: 2.5 is not allowed; write a whole number",
    ),
    "unknown key of a scheduler": (
        search("samples: 4, scheduler: {asha: {brackets: 2}}"),
        "search.scheduler.brackets: unknown key; allowed are grace, reduction",
    ),
    "numbers without an end": (grid("baselines: /dev/zero\n"), "baselines: /dev/zero: is no plain file"),
    "all excluded": (grid("exclude: [\"mask == 'snip'\"]\n"), "no cell is left after exclude"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_is_said_with_its_line_and_without_a_traceback(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from harness.sweep import app

    text, said = BROKEN[name]
    (tmp_path / "x.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["x.yaml", "--plan"])
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert "Traceback" not in done.output
    assert len(done.output.splitlines()) <= 25
    assert not any(ord(c) < 32 and c != "\n" for c in done.output)
    assert not re.search(r"\.(str|int|float|literal|list|dict|Asha)[\[.:]", done.output), (
        "a type of pydantic's is named"
    )


@pytest.mark.parametrize(
    ("mask", "use", "said"),
    [
        ("mine", "mine: './nope.py:score'", "x.yaml:3: use: 'mine': {folder}/nope.py: no such file"),
        (
            "nothingalike",
            "",
            "x.yaml:4: grid.mask: 'nothingalike' is no mask method; choose from {known}; "
            "one of your own is named under `use:`, or comes with an installed package",
        ),
    ],
)
def test_a_method_of_ones_own_that_is_not_there_is_told_once(mask: str, use: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        f"name: x\nprotocol: quick\nuse: {{{use}}}\n"
        f"grid: {{dataset: digits, arch: resnet20, mask: [{mask}], sparsity: 90%}}\n"
    )
    with pytest.raises(FileError) as raised:
        load_sweep(tmp_path / "x.yaml")
    known = ", ".join([*MASKS, "dense", "small_dense", "file:PATH"])
    assert str(raised.value) == f"{tmp_path}/" + said.format(folder=tmp_path, known=known)


def test_a_sweep_that_was_run_beside_its_file_is_not_begun_anew_unsaid(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x.yaml").write_text(grid(dataset="digits"))
    new = run_sweep(tmp_path, "there/x.yaml", "--plan")
    assert new.stderr == ""
    (tmp_path / "there" / "runs" / "sweeps" / "x").mkdir(parents=True)
    again = run_sweep(tmp_path, "there/x.yaml", "--plan")
    assert "x is new to the store runs; to go on with what there/runs has of it: --store there/runs" in again.stderr
    assert run_sweep(tmp_path, "there/x.yaml", "--plan", "--store", "there/runs").stderr == ""


def spoil(path: Path, kind: str) -> None:
    if kind == "binary":
        path.write_bytes(bytes(range(256)) * 8)
    elif kind == "utf-16":
        path.write_text(grid(), encoding="utf-16")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "large":
        path.write_text(grid("exclude: [" + "'seed == 1', " * 40_000 + "]\n"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("binary", "not UTF-8 text"),
        ("utf-16", "not UTF-8 text"),
        ("folder", "is a folder"),
        ("pipe", "is no plain file"),
        ("missing", "no such file"),
        ("loop", "cannot be read"),
        ("large", "over 256 KiB"),
    ],
)
def test_what_is_no_sweep_file_at_all_is_said_in_the_real_process(kind: str, said: str, tmp_path: Path) -> None:
    spoil(tmp_path / "x.yaml", kind)
    done = run_sweep(tmp_path, "x.yaml", timeout=5)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read the file")
def test_a_file_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    from harness.reading import read_document

    path = tmp_path / "x.yaml"
    path.write_text(grid())
    path.chmod(0)
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:
        os.seteuid(65534)
        try:
            read_document(path)
        except UserError as error:
            os._exit(0 if "cannot be read: Permission denied" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_all_faults_are_found_in_one_go(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(grid("exclude: [arhc == 'x']\n", arch="rsnet20", mask="[snp, lth]", lr="-1"))
    with pytest.raises(FileError) as caught:
        load_sweep(tmp_path / "x.yaml")
    assert [fault.mark.line for fault in caught.value.faults if fault.mark] == [5, 6, 8, 9]


def load(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "x.yaml").write_text(text)
    return [cell.label for cell in expand(load_sweep(tmp_path / "x.yaml"))[0]]


def test_axes_multiply_and_ranges_and_lists_mix(tmp_path: Path) -> None:
    labels = load(tmp_path, grid(mask="[snip, {snip: {bn: train}}]", sparsity="[90%, .95, imp:12]", seed="[0..1, 7]"))
    assert len(labels) == 2 * 3 * 3
    assert labels[0] == "digits resnet20 snip 90% default seed 0"
    assert labels[-1] == "digits resnet20 snip(bn=train) 93.13% default seed 7"


def test_a_ladder_percentage_is_its_level(tmp_path: Path) -> None:
    cells, united = expand(_loaded(tmp_path, grid(sparsity="[imp:12, 93.13%, 0.9313]")))
    assert [cell.sparsity.level for cell in cells] == [12]
    assert united == 2


def _loaded(tmp_path: Path, text: str) -> object:
    (tmp_path / "x.yaml").write_text(text)
    return load_sweep(tmp_path / "x.yaml")  # type: ignore[return-value]


def test_numbers_are_read_by_yaml_1_2(tmp_path: Path) -> None:
    (cell,) = expand(_loaded(tmp_path, grid(head="protocol: {preset: quick, lr: 1e-4, gamma: .5, epochs: 010}\n")))[0]
    assert (cell.protocol.lr, cell.protocol.gamma, cell.protocol.epochs) == (1e-4, 0.5, 10)


def test_fewer_epochs_keep_the_shape_of_the_schedule(tmp_path: Path) -> None:
    (cell,) = expand(_loaded(tmp_path, grid(head="protocol: {preset: tost, epochs: 91}\n")))[0]
    assert cell.protocol.milestones == (45.0, 67.5)


def test_rules_apply_in_order_and_then_cells_are_excluded(tmp_path: Path) -> None:
    rules = (
        "when:\n  - {if: \"mask == 'lth'\", set: {epochs: 20}}\n  - {if: epochs == 20 and seed > 0, set: {lr: 0.05}}\n"
        "exclude: [lr == 0.05 and seed == 2, \"sparsity > 0.95 and mask in ['snip']\"]\n"
    )
    cells, _ = expand(_loaded(tmp_path, grid(rules, mask="[snip, lth]", sparsity="[90%, 98%]", seed="0..2")))
    made = [(c.mask.name, c.sparsity.label, c.seed, c.protocol.epochs, c.protocol.lr) for c in cells]
    assert made == [
        ("snip", "90%", 0, 8, 0.1),
        ("snip", "90%", 1, 8, 0.1),
        ("snip", "90%", 2, 8, 0.1),
        ("lth", "90%", 0, 20, 0.1),
        ("lth", "90%", 1, 20, 0.05),
        ("lth", "98%", 0, 20, 0.1),
        ("lth", "98%", 1, 20, 0.05),
    ]


def test_protocol_fields_and_knobs_are_axes(tmp_path: Path) -> None:
    labels = load(tmp_path, grid(recipe="[default, gsw]", lr="[0.1, 0.05]", **{"gsw.b1": "[10, 100]"}))
    assert len(labels) == 2 * (1 + 2)
    assert "digits resnet20 snip 90% gsw(b1=10.0) lr=0.05 gsw.b1=10.0 seed 0" in labels


def test_milestones_can_be_an_axis(tmp_path: Path) -> None:
    cells, _ = expand(_loaded(tmp_path, grid(milestones="[[2, 4], [3, 6]]")))
    assert [cell.protocol.milestones for cell in cells] == [(2.0, 4.0), (3.0, 6.0)]


@pytest.mark.parametrize(("written", "label"), [("ls+gsw", "gsw+ls"), ("gsw + ls - gsw", "ls"), ("default+ls", "ls")])
def test_a_recipe_has_one_name_however_it_is_written(written: str, label: str, tmp_path: Path) -> None:
    (cell,) = expand(_loaded(tmp_path, grid(recipe=written)))[0]
    assert cell.recipe.label == label


def test_a_base_is_laid_under_the_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(grid(name="base", seed="0..4"))
    (tmp_path / "x.yaml").write_text(
        "name: top\nbase: base.yaml\ngrid: {seed: 3}\nprotocol: {preset: quick, lr: 0.2}\n"
    )
    sweep = load_sweep(tmp_path / "x.yaml")
    assert sweep.name == "top"
    (cell,) = expand(sweep)[0]
    assert (cell.seed, cell.protocol.lr, cell.mask.name) == (3, 0.2, "snip")
    (tmp_path / "base.yaml").write_text(grid(name="base", mask="snp"))
    with pytest.raises(FileError, match=r"base\.yaml:6: grid\.mask: 'snp'"):
        load_sweep(tmp_path / "x.yaml")


def test_the_full_grid_is_what_the_papers_grid_takes(tmp_path: Path) -> None:
    """4,050 sparse cells; 18 rounds of 45 chains instead of a chain a cell; dense rows with two recipes."""
    plan = make_plan(load_sweep(Path(__file__).parents[2] / "sweeps" / "full_grid.yaml"), Store(tmp_path), tmp_path)
    assert len(plan.cells) == 3 * 5 * (5 * 3 * 6 + 2) * 3 == 4140
    kinds = Counter(stage.kind for stage in plan.stages.values())
    assert kinds == {"data": 3, "mask": 45 * (4 * 3 + 17 + 3), "rescale": 45 * (15 + 1), "train": 4050 + 45 * (18 + 1)}
    without = 4050 + 90 + 45 * 6 * (11 + 14 + 18)
    assert plan.unshared_trainings() == without == 4140 + 11_610
