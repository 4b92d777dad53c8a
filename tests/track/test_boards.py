"""Reports and views: sketched without a server, saved on one, read back, and written over where they are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.planfile import SavedPlan
from harness.report.assemble import make_report
from harness.report.figures import COLOURS
from harness.store import Store
from harness.track.boards import escaped, table_text
from harness.track.sketch import sketch
from harness.track.target import Target
from tests.harness.synthetic import write_fixture_store, write_store
from tests.track.mirrored import WANDB, surroundings, wandb
from tests.track.server import Server

TABLES = "tables: [any-mask]\n"
SMALL = """
name: small
protocol: {preset: quick, epochs: 3}
grid:
  dataset: digits
  arch: [resnet20, resnet32]
  mask: [random, snip]
  sparsity: [90%, 95%]
  recipe: [default, ls]
  seed: 0..1
"""
HOST = Target("https://api.wandb.ai", "lab", "mine")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server
    assert server.unknown == []


def where(key: str) -> dict[str, str]:
    return {"project": "mine", "run": f"{key}-1", "group": f"group {key[:2]} #1"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sketch")
    store, saved = write_fixture_store(folder)
    return sketch(make_report(store, [saved]), where)


def test_a_sketch_is_json_and_has_all_that_a_report_shows(drawn: dict[str, Any]) -> None:
    assert json.loads(json.dumps(drawn, allow_nan=False)) == drawn
    assert [table["name"] for table in drawn["tables"]][:3] == ["claims", "any-mask, resnet20", "any-mask, resnet32"]
    for arch in ("resnet20", "resnet32"):
        kinds = [chart["kind"] for chart in drawn["charts"] if chart["place"] == f"{arch} on digits"]
        assert kinds == ["points", "bars", "lines"]
    assert {gain["title"].split(": ")[-1] for gain in drawn["gains"]} >= {"gsw", "ls", "tost"}
    assert drawn["failures"]
    assert all(failure["run"] for failure in drawn["failures"])


def test_every_number_of_a_table_leads_to_its_runs(drawn: dict[str, Any]) -> None:
    table = next(table for table in drawn["tables"] if table["name"] == "any-mask, resnet32")
    text = table_text(table, HOST)
    numbers = [entry for row in table["rows"] for entry in row["entries"] if entry["runs"]]
    assert numbers
    for entry in numbers:
        for run in entry["runs"]:
            assert f"(https://wandb.ai/lab/mine/runs/{run['run']})" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, "every row has every column"


def test_a_view_colours_its_runs_by_recipe(drawn: dict[str, Any]) -> None:
    view = next(view for view in drawn["views"] if view["name"] == "synthetic: any-mask, resnet20")
    by_recipe: dict[str, set[str]] = {}
    for said in view["runs"].values():
        words = said["name"].split()
        by_recipe.setdefault(words[words.index("seed") - 1], set()).add(said["colour"])
    assert all(len(colours) == 1 for colours in by_recipe.values())
    assert len(set.union(*by_recipe.values())) == len(by_recipe) == 4
    assert set.union(*by_recipe.values()) <= set(COLOURS)


@pytest.mark.parametrize("text", ["a|b", "[x](javascript:alert(1))", "<b>", "*_`", "two\nlines"])
def test_hostile_names_stay_text(text: str) -> None:
    assert "\n" not in escaped(text)
    assert not re.search(r"(?<!\\)[|<>\[\]*_`]", escaped(text))


READ = """
import json, sys
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
report = wr.Report.from_url(sys.argv[1])
views = [ws.Workspace.from_url(url) for url in sys.argv[2:]]
grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
print(json.dumps({
    "title": report.title, "id": report.id, "summary": report.description,
    "text": [block.text for block in report.blocks if isinstance(block, wr.MarkdownBlock)],
    "panels": [type(panel).__name__ for grid in grids for panel in grid.panels],
    "runsets": [[runset.name, runset.project, str(runset.filters)] for grid in grids for runset in grid.runsets],
    "views": [{
        "name": view.name,
        "colours": {run: said.color for run, said in view.runset_settings.run_settings.items()},
        "pinned": view.runset_settings.pinned_columns,
    } for view in views],
}))
"""


def read_back(folder: Path, url: str, *addresses: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", READ, *addresses],
        cwd=folder,
        env=surroundings(folder, url, WANDB_SILENT="true", WANDB_DIR=str(folder), WANDB_ERROR_REPORTING="false"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def small(folder: Path, value: str = "90.5") -> tuple[Store, SavedPlan]:
    (folder / "small.yaml").write_text(SMALL + TABLES + WANDB)
    row = {"state": "done", "test": value, "dev": value, "cause": ""}
    return write_store(folder, folder / "small.yaml", lambda place: row)


@pytest.mark.slow
def test_a_report_and_its_views_are_saved_read_back_and_updated_in_place(tmp_path: Path, server: Server) -> None:
    _, saved = small(tmp_path)
    early = wandb(tmp_path, server.url, "report", "small")
    assert early.returncode == 2
    assert "`harness wandb publish small` comes first" in early.stderr
    assert wandb(tmp_path, server.url, "publish").returncode == 0
    said = wandb(tmp_path, server.url, "report", "small")
    assert said.returncode == 0, said.stderr
    addresses = said.stdout.split()
    seen = read_back(tmp_path, server.url, *addresses)
    assert seen["title"] == "small: tables and curves"
    assert seen["panels"] == ["ScatterPlot", "BarPlot", "LinePlot"] * 2
    assert all(project == "mine" and "small" in filters for _, project, filters in seen["runsets"])
    table = next(text for text in seen["text"] if "| snip | ls |" in text)
    for cell in saved.cells[:4]:
        assert f"/lab/mine/runs/{cell.key}-1" in table
    assert [view["name"] for view in seen["views"]] == ["small: any-mask, resnet20", "small: any-mask, resnet32"]
    for view in seen["views"]:
        assert len(view["colours"]) == 16
        assert "summary:accuracy" in view["pinned"]
    again = wandb(tmp_path, server.url, "report", "small")
    assert again.stdout.split() == addresses
    assert {view.writes for view in server.views.values()} == {2}
    assert read_back(tmp_path, server.url, *addresses)["id"] == seen["id"]
    report = next(view for view in server.views.values() if view.type == "runs")
    del server.views[report.id]
    anew = wandb(tmp_path, server.url, "report", "small")
    assert anew.returncode == 0, anew.stderr
    assert anew.stdout.split()[1:] == addresses[1:]
    assert len([view for view in server.views.values() if view.type == "runs"]) == 1


def test_without_a_server_there_is_a_sketch_and_a_way_to_a_report(tmp_path: Path, server: Server) -> None:
    small(tmp_path)
    server.fault = "dead"
    said = wandb(tmp_path, server.url, "report", "small", "--spec", "out.json")
    assert said.returncode == 0, said.stderr
    made = json.loads((tmp_path / "out.json").read_text())
    assert made["sweep"] == "small"
    assert len(made["views"]) == 2
    refused = wandb(tmp_path, server.url, "report", "small")
    assert refused.returncode == 2
    assert "`harness report small` writes one to browse here" in refused.stderr
    unknown = wandb(tmp_path, server.url, "report", "smal")
    assert unknown.returncode == 2
    assert "did you mean 'small'" in unknown.stderr
    nowhere = wandb(tmp_path, server.url, "report", "small", "--spec", "nowhere/out.json")
    assert nowhere.returncode == 2
    assert "--spec nowhere/out.json: No such file or directory" in nowhere.stderr
    assert not any("Traceback" in run.stderr for run in (said, refused, unknown, nowhere))


def test_a_sweep_that_is_not_mirrored_has_no_report_there(tmp_path: Path, server: Server) -> None:
    (tmp_path / "small.yaml").write_text(SMALL + TABLES)
    write_store(tmp_path, tmp_path / "small.yaml", lambda place: {"state": "missing"})
    said = wandb(tmp_path, server.url, "report", "small", "--spec", os.devnull)
    assert said.returncode == 2
    assert "write wandb: {project: NAME}" in said.stderr
