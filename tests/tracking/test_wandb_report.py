"""Reports: made without a server, saved on one by the real wandb-workspaces, read back, and updated where they are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.report.assemble import Report, make_report
from harness.tracking.wandb_report import escaped, report_content
from tests.harness.synthetic import write_fixture_store
from tests.tracking.mirrored import WANDB, small_store, surroundings, wandb
from tests.tracking.server import Server

PROJECT = "https://wandb.ai/lab/mine"


def link(key: str) -> tuple[str, str]:
    return f"{PROJECT}/runs/{key}-1", f"{PROJECT}/groups/{key[:2]}"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    store, saved = write_fixture_store(tmp_path_factory.mktemp("report"))
    return make_report(store, [saved])


@pytest.fixture(scope="module")
def content(report: Report) -> dict[str, Any]:
    return report_content(report, link, PROJECT)


def test_content_is_json_and_has_all_that_a_report_shows(content: dict[str, Any]) -> None:
    assert json.loads(json.dumps(content, allow_nan=False))["blocks"] == [list(block) for block in content["blocks"]]
    headings = [value for kind, value in content["blocks"] if kind == "heading"]
    assert headings[:3] == ["claims", "any-mask, resnet20", "any-mask, resnet32"]
    assert headings[-2:] == ["resnet20 on digits", "resnet32 on digits"]
    charts = [value for kind, value in content["blocks"] if kind == "chart"]
    assert [chart.get("x", "share") for chart in charts] == ["share", "epoch"] * 2
    assert {run["arch"] for chart in charts for run in chart["runs"].values()} == {"resnet20", "resnet32"}


def test_every_number_leads_to_its_runs_and_every_row_has_every_column(report: Report, content: dict[str, Any]) -> None:
    tables = dict(zip([grid.name for grid in report.grids], content["blocks"][2::2], strict=False))
    for grid in report.grids:
        text = tables[grid.name][1]
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        shown = [line.key for entry in grid.entries.values() if entry.text for line in entry.lines]
        assert shown or grid.name == "claims"
        assert all(f"({link(key)[0]})" in text for key in shown)


def test_a_bold_number_of_several_seeds_leads_to_their_group(report: Report) -> None:
    made = report_content(report, lambda key: (f"{PROJECT}/runs/{key}-1", f"{PROJECT}/groups/one"), PROJECT)
    text = "\n".join(value for kind, value in made["blocks"] if kind == "text")
    entries = [entry for grid in report.grids for entry in grid.entries.values() if entry.strong]
    assert any(len(entry.lines) > 1 for entry in entries)
    for entry in entries:
        if len(entry.lines) > 1:
            assert f"[**{escaped(entry.text)}**]({PROJECT}/groups/one) seeds " in text


@pytest.mark.parametrize("text", ["a|b", "[x](javascript:alert(1))", "<b>", "*_`", "two\nlines"])
def test_hostile_names_stay_text(text: str) -> None:
    assert "\n" not in escaped(text)
    assert not re.search(r"(?<!\\)[|<>\[\]*_`]", escaped(text))


READ = """
import json, sys
import wandb_workspaces.reports.v2 as wr
report = wr.Report.from_url(sys.argv[1])
grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
print(json.dumps({
    "title": report.title, "id": report.id,
    "text": [block.text for block in report.blocks if isinstance(block, wr.MarkdownBlock)],
    "panels": [type(panel).__name__ for grid in grids for panel in grid.panels],
    "runsets": [[runset.project, str(runset.filters)] for grid in grids for runset in grid.runsets],
}))
"""


def read_back(folder: Path, url: str, address: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", READ, address],
        cwd=folder,
        env=surroundings(folder, url, WANDB_SILENT="true", WANDB_DIR=str(folder), WANDB_ERROR_REPORTING="false"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_a_report_is_saved_read_back_updated_in_place_and_made_again(tmp_path: Path, server: Server) -> None:
    store, saved = small_store(tmp_path, wandb=WANDB + "tables: [any-mask]\n")
    early = wandb(tmp_path, server.url, "report", "small")
    assert early.returncode == 2
    assert "has no run of small yet; first `harness wandb sync small`, then this again" in early.stderr
    assert wandb(tmp_path, server.url, "sync").returncode == 0
    said = wandb(tmp_path, server.url, "report", "small")
    assert said.returncode == 0, said.stderr
    address = said.stdout.strip()
    seen = read_back(tmp_path, server.url, address)
    assert seen["title"] == "small: tables and curves"
    assert seen["panels"] == ["ScatterPlot", "LinePlot"]
    assert all(project == "mine" and "small" in filters for project, filters in seen["runsets"])
    table = next(text for text in seen["text"] if "| snip | ls |" in text)
    for cell in saved.cells[:2]:
        assert f"{server.url}/lab/mine/runs/{cell.key}-1" in table
    blocks = report_content(make_report(store, [saved]), link, PROJECT)["blocks"]
    for where in (where for kind, chart in blocks if kind == "chart" for where in chart["runs"].values()):
        assert any(where.items() <= run.config.items() for run in server.runs.values()), where
    (run,) = (run for run in server.runs.values() if run.id == f"{saved.cells[0].key}-1")
    assert f"{server.url}/lab/mine/reportlist" in str(run.notes)
    assert wandb(tmp_path, server.url, "report", "small").stdout.strip() == address
    (report,) = server.views.values()
    assert report.writes == 2
    server.views.clear()
    anew = wandb(tmp_path, server.url, "report", "small")
    assert anew.returncode == 0, anew.stderr
    assert len(server.views) == 1


def test_without_a_server_or_a_project_a_report_is_refused(tmp_path: Path, server: Server) -> None:
    small_store(tmp_path, seeds=1)
    nowhere = wandb(tmp_path, "http://127.0.0.1:9", "report", "small")
    assert nowhere.returncode == 2
    assert "once that is mended, the same command goes on" in nowhere.stderr
    unknown = wandb(tmp_path, server.url, "report", "smal")
    assert unknown.returncode == 2
    assert "did you mean 'small'" in unknown.stderr
    small_store(tmp_path, seeds=1, wandb="")
    unmirrored = wandb(tmp_path, server.url, "report", "small")
    assert unmirrored.returncode == 2
    assert "write wandb: {project: NAME}" in unmirrored.stderr
