"""The documentation: a card for every method, its knobs those of the catalog, every code block run as it stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from harness.catalog import DATASETS, MEANINGS, METRICS
from harness.cell import AXES
from harness.check import load_sweep
from harness.launch.profiles import load_profile
from harness.names import SPECIAL
from harness.planner import make_plan
from harness.reading import read_document
from harness.store import Store
from tests.conftest import run_module
from tests.documents import Block, blocks, check_options, program
from tost.catalog import MASKS, MODELS, PARTS, Entry, resolve

DOCS = Path(__file__).parents[1] / "docs"
REFERENCE = DOCS / "reference"
FROM_FILE = "../howto/import-masks"
PAGES = sorted(DOCS.rglob("*.md"))
LONG = ("tutorial.md", "howto/local.md", "howto/budget.md", "howto/operation.md", "howto/ray.md", "howto/report.md")
"""Pages whose commands train for longer than a default test may take."""
WORKING = ("sweep", "worker", "tick")
"""Commands that heed signals and set the environment, and so get a process of their own."""
CARDS: dict[str, Entry] = {
    **{f"masks/{name}": entry for name, entry in MASKS.items()},
    FROM_FILE: SPECIAL["file"],
    **{f"recipe/{name}": entry for name, entry in PARTS.items()},
}
HEADINGS = ["Formula", "Knobs", "Cost", "When it fails", "Source", "Use"]


@pytest.mark.parametrize("name", sorted(CARDS))
def test_a_card_tells_all_and_its_knobs_are_the_catalogs(name: str) -> None:
    text = (REFERENCE / f"{name}.md").read_text()
    if name != FROM_FILE:
        assert re.findall(r"^## (.*)$", text, re.M) == HEADINGS
        assert re.search(r"\((\w+ )?(19|20)\d\d\)", text.split("## Source")[1]), "paper and year"
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", text.split("## Knobs")[1], re.M))
    assert rows == {knob: str(entry.default) for knob, entry in CARDS[name].knobs.items()}


def _mark(name: str) -> pytest.MarkDecorator:
    """The tutorial is run before every change, the other long pages by `make conformance`: all take five minutes."""
    return pytest.mark.slow if name == "tutorial.md" else pytest.mark.conformance


def _run(page: Path) -> object:
    name = page.relative_to(DOCS).as_posix()
    return pytest.param(page, id=name, marks=[_mark(name)] if name in LONG else [])


@pytest.mark.parametrize("page", [_run(page) for page in PAGES])
def test_every_code_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page.read_text()):
        TRY[block.language](block, names)


def _python(block: Block, names: dict[str, object]) -> None:
    if block.file:
        Path(block.file).write_text(block.text)
    else:
        exec(compile(block.text, "page", "exec"), names)  # noqa: S102 - what a reader would run, one after another


def _yaml(block: Block, names: object) -> None:
    path = Path(block.file or "card.yaml").absolute()
    path.write_text(block.text)
    if {"grid", "base"} & read_document(path).values.keys():
        assert make_plan(load_sweep(path), Store(path.parent / "runs"), path.parent).cells
    else:
        assert load_profile(path)


def _write(block: Block, names: object) -> None:
    Path(block.file or block.title).write_text(block.text)


def _shell(block: Block, names: object) -> None:
    for words in block.commands():
        if block.title:
            continue
        if words[0] in WORKING and "--plan" not in words:
            ran = run_module("harness.cli", Path.cwd(), *words, timeout=300)
            code, said = ran.returncode, ran.stdout + ran.stderr
        else:
            whose, arguments = program(words)
            done = CliRunner().invoke(whose, arguments)
            code, said = done.exit_code, done.output
        assert code == 0, f"harness {' '.join(words)}: {said}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_command_and_option_exists(page: Path) -> None:
    for block in blocks(page.read_text()):
        for words in block.commands() if block.language == "sh" else ():
            check_options(words)


TRY: dict[str, Callable[[Block, dict[str, object]], None]] = {
    "python": _python,
    "yaml": _yaml,
    "latex": _write,
    "csv": _write,
    "sh": _shell,
    "text": lambda block, names: None,
}
"""What is done with a block of each language; any other is a fault of the page."""


def test_the_own_loop_is_short_and_prunes() -> None:
    (text,) = (block.text for block in blocks((DOCS / "howto" / "own-loop.md").read_text()))
    assert text == (DOCS.parent / "examples" / "own_loop.py").read_text().split('"""\n\n', 1)[1]
    body = text.split("\n\n")[-1]
    assert len(body.strip().splitlines()) <= 15
    space: dict[str, object] = {}
    exec(compile(text, "own-loop", "exec"), space)  # noqa: S102
    from torch import Tensor, nn

    net, masks = space["net"], space["masks"]
    assert isinstance(net, nn.Module)
    assert isinstance(masks, dict)
    weights: dict[str, Tensor] = dict(net.named_parameters())
    assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())
    assert type(net[2]) is nn.ReLU  # type: ignore[index]


def test_the_table_of_networks_is_true() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| ([\d,]+) \|$", (REFERENCE / "networks.md").read_text(), re.M)
    assert {name for name, _ in rows} == set(MODELS)
    for name, count in rows:
        net = resolve(MODELS[name].path)(10, 3)
        assert sum(p.numel() for p in net.parameters()) == int(count.replace(",", "")), name


def test_the_readme_names_every_data_set() -> None:
    assert all(name in (DOCS.parent / "README.md").read_text() for name in DATASETS)


def test_what_sharing_saves_is_true(tmp_path: Path) -> None:
    plan = make_plan(load_sweep(DOCS.parent / "sweeps" / "full_grid.yaml"), Store(tmp_path), tmp_path)
    trainings = sum(stage.kind == "train" for stage in plan.stages.values())
    said = " ".join((DOCS / "explanation" / "sharing.md").read_text().split())
    assert f"{trainings:,} trainings instead of {plan.unshared_trainings():,}" in said
    assert f"{trainings:,} trainings" in (DOCS / "results.md").read_text()


def test_the_reference_has_every_axis_and_a_meaning_for_every_metric() -> None:
    page = (REFERENCE / "sweep-file.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == list(AXES)
    assert MEANINGS.keys() == METRICS.keys()
