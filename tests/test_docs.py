"""The documentation: a card for every method, its knobs those of the catalog, every code block run as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from harness.catalog import DATASETS
from harness.check import load_sweep
from harness.cli import app
from harness.names import SPECIAL
from harness.planner import make_plan
from harness.store import Store
from tests.conftest import run_sweep
from tost.catalog import MASKS, MODELS, PARTS, Entry, resolve

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.name != "README.md")
CARDS: dict[str, Entry] = {
    **{f"masks/{name}": entry for name, entry in MASKS.items()},
    "masks/file": SPECIAL["file"],
    **{f"recipe/{name}": entry for name, entry in PARTS.items()},
}
HEADINGS = ["Formula", "Knobs", "Cost", "When it fails", "Source", "Use"]


@pytest.mark.parametrize("name", sorted(CARDS))
def test_a_card_tells_all_and_its_knobs_are_the_catalogs(name: str) -> None:
    text = (DOCS / f"{name}.md").read_text()
    if name != "masks/file":
        assert re.findall(r"^## (.*)$", text, re.M) == HEADINGS
        assert re.search(r"\((\w+ )?(19|20)\d\d\)", text.split("## Source")[1]), "paper and year"
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", text.split("## Knobs")[1], re.M))
    assert rows == {knob: str(entry.default) for knob, entry in CARDS[name].knobs.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_code_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.M | re.S)
    assert blocks
    space: dict[str, object] = {"__name__": "card"}
    for language, text in blocks:
        if language == "python":
            exec(compile(text, page.name, "exec"), space)  # noqa: S102 - what a reader would run, one after another
        elif language == "yaml":
            named = re.match(r"# (\w+\.yaml)\n", text)
            file = tmp_path / (named[1] if named else "card.yaml")
            file.write_text(text)
            assert make_plan(load_sweep(file), Store(tmp_path / "runs"), tmp_path).cells
        else:
            assert language == "sh"
            for line in text.splitlines():
                run_line(shlex.split(line)[1:], tmp_path)


def run_line(words: list[str], folder: Path) -> None:
    """Run a line of `harness`; a sweep in a process of its own, as it starts others."""
    if words[0] == "sweep":
        process = run_sweep(folder, *words[1:])
        assert process.returncode == 0, process.stderr
    else:
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output


def test_the_own_loop_is_short_and_prunes() -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "own-loop.md").read_text(), re.M | re.S)
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
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| ([\d,]+) \|$", (DOCS / "models.md").read_text(), re.M)
    assert {name for name, _ in rows} == set(MODELS)
    for name, count in rows:
        net = resolve(MODELS[name].path)(10, 3)
        assert sum(p.numel() for p in net.parameters()) == int(count.replace(",", "")), name


def test_every_link_leads_somewhere() -> None:
    for page in [*PAGES, DOCS / "README.md", DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_names_every_data_set() -> None:
    assert all(name in (DOCS.parent / "README.md").read_text() for name in DATASETS)
