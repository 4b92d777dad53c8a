"""The fake W&B server, shown to the real client: what it must keep, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tracking.server import FAULTS, KEY, RemoteRun, Server

pytestmark = pytest.mark.slow

HEAD = """
import json, os, sys, wandb

# Whole seconds: the client takes 0.5 for 0, and 0 for its default of 15.
whats, ends = ("file_stream", "graphql", "file_transfer"), ("min", "max")
waits = {f"x_{what}_retry_wait_{end}_seconds": 1 for what in whats for end in ends}
quiet = {"x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False, "console": "off"}
quick = wandb.Settings(x_file_stream_transmit_interval=1, **waits, **quiet)

def begin(id="one", **how):
    how |= {"resume": "allow", "reinit": "create_new", "settings": quick}
    return wandb.init(entity="lab", project="p", id=id, **how)

def log(run, start, stop):
    for step in range(start, stop):
        run.log({"epoch": step, "loss": 1 / (1 + step)}, step=step, commit=True)

def say(what=None):
    print(json.dumps(what), flush=True)
"""
WHOLE = "run = begin()\nfirst = run.starting_step\nlog(run, 0, 10)\nrun.finish()\nsay(first)"
IN_PARTS = """
run = begin()
for start, stop in (0, 3), (3, 7), (7, 10):
    log(run, start, stop)
    run.config.update({"last": stop}, allow_val_change=True)
    say()
    sys.stdin.readline()
run.finish()
"""


class Client:
    """Scripts with a wandb of their own, pointed at the fake; any traffic beyond the loopback would go there too."""

    def __init__(self, folder: Path, url: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), url)
        folders = {f"WANDB_{name}": str(folder) for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR")}
        server = {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        silent = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "HOME": str(folder)}
        self.folder, self.environment = folder, kept | proxies | folders | server | silent
        self.started: list[subprocess.Popen[str]] = []

    def start(self, script: str) -> subprocess.Popen[str]:
        """Start a script and wait until it says something."""
        command, pipe = [sys.executable, "-c", HEAD + textwrap.dedent(script)], subprocess.PIPE
        how: dict[str, Any] = {"cwd": self.folder, "env": self.environment, "text": True, "start_new_session": True}
        self.started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, **how))
        said(self.started[-1])
        return self.started[-1]

    def run(self, script: str) -> Any:
        """Run a script to its end and return what it said."""
        process = self.start("say()\n" + textwrap.dedent(script))
        answer, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        return json.loads(answer or "null")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server
        assert (server.unknown, server.broken) == ([], [])


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Iterator[Client]:
    client = Client(tmp_path, server.url)
    yield client
    for process in client.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def whole(run: RemoteRun, count: int) -> bool:
    """Whether a run has each of its rows once, in order, at its offset."""
    rows = [(row["_step"], row["epoch"], row["loss"]) for row in run.history]
    return rows == [(step, step, 1 / (1 + step)) for step in range(count)] and not run.conflicting


def said(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline()


def arrive(server: Server, rows: int) -> None:
    """Wait until the server has so many rows of the run."""
    server.until(lambda: len(server.runs["lab", "p", "one"].lines) == rows)


def interrupted(fault: str, server: Server, client: Client) -> RemoteRun:
    """A run of ten rows whose middle four the server refuses at first."""
    process = client.start(IN_PARTS)
    assert process.stdin is not None
    arrive(server, 3)
    server.fault = fault
    process.stdin.write("\n")
    process.stdin.flush()
    said(process)
    if fault != "dead":
        server.until(lambda: server.faulted)
    server.fault = None
    process.communicate("\n\n", timeout=120)
    return server.runs["lab", "p", "one"]


FATAL = ("401", "403", "409")
OFTEN = ("500", "drop", "401")
"""Faults that are tried before every change; the rest by `make test-all`."""
TRIED = [fault if fault in OFTEN else pytest.param(fault, marks=pytest.mark.long) for fault in FAULTS]


@pytest.mark.parametrize("fault", TRIED)
def test_what_passes_loses_no_row_and_a_refused_stream_ends_without_a_word(
    fault: str, server: Server, client: Client
) -> None:
    server.faults_on = {"file_stream"} if fault in FATAL else server.faults_on
    run = interrupted(fault, server, client)
    if fault in FATAL:
        assert (whole(run, 3), run.state) == (True, "running")
        assert client.run(WHOLE) == 3
    assert whole(run, 10)
    assert (run.state, run.config) == ("finished", {"last": 10})


def test_a_client_killed_twice_leaves_each_row_once(server: Server, client: Client) -> None:
    for rows in (3, 6):
        process = client.start(f"run = begin()\nlog(run, 0, {rows})\nsay()\nsys.stdin.readline()")
        arrive(server, rows)
        os.killpg(process.pid, signal.SIGKILL)
    assert client.run(WHOLE) == 6
    run = server.runs["lab", "p", "one"]
    assert whole(run, 10)
    assert (run.state, run.summary["loss"]) == ("finished", 0.1)


def test_what_the_api_reads_of_runs_written_at_once(server: Server, client: Client) -> None:
    seen = client.run("""
        how = {"group": "g", "job_type": "train", "tags": ["a"], "notes": "n", "name": "shown"}
        runs = [begin(f"r{i}", config={"lr": i}, **how) for i in range(3)]
        for run in runs:
            run.define_metric("*", step_metric="epoch")
            log(run, 0, 4)
            run.config.update({"seed": 1})
            run.summary["best"] = 0.5
        runs[1].mark_preempting()
        for code, run in enumerate(runs):
            run.finish(exit_code=code)
        one = wandb.Api().run("lab/p/r0")
        one.tags = ["b"]
        one.update()
        read = {"lr": one.config, "best": one.summary["best"], "rows": [row["_step"] for row in one.scan_history()]}
        for lazy in (True, False):
            for value in ("a", "b"):
                found = wandb.Api().runs("lab/p", filters={"tags": {"$in": [value]}}, per_page=1, lazy=lazy)
                read[f"{value}{lazy}"] = [[run.id, run.state, run.config["lr"]] for run in found]
        read["named"] = [run.id for run in wandb.Api().runs("lab/p", filters={"name": {"$in": ["r1", "r2", "x"]}})]
        try:
            list(wandb.Api().runs("lab/nowhere"))
        except ValueError as error:
            say(read | {"nowhere": str(error), "words": [one.name, one.group, one.job_type, one.notes, one.tags]})
    """)
    tagged = {"a": [["r1", "preempted", 1], ["r2", "failed", 2]], "b": [["r0", "finished", 0]]}
    assert seen == {
        "lr": {"lr": 0, "seed": 1},
        "best": 0.5,
        "rows": [0, 1, 2, 3],
        **{f"{value}{lazy}": runs for value, runs in tagged.items() for lazy in (True, False)},
        "named": ["r1", "r2"],
        "nowhere": "Could not find project nowhere",
        "words": ["shown", "g", "train", "n", ["b"]],
    }
    assert server.runs["lab", "p", "r0"].tags == ["b"]
    server.forget()
    assert not server.runs


def test_a_report_is_saved_in_place(server: Server, client: Client) -> None:
    kinds = client.run("""
        import wandb_workspaces.reports.v2 as wr
        begin().finish()

        panels = wr.PanelGrid(runsets=[wr.Runset(entity="lab", project="p")], panels=[wr.LinePlot(y=["loss"])])
        report = wr.Report(entity="lab", project="p", title="Sweep", blocks=[wr.MarkdownBlock("| a |"), panels])
        report.save()
        again = wr.Report.from_url(report.url)
        again.title, again.blocks = "Other", [*again.blocks, wr.P("more")]
        again.save()
        say([type(block).__name__ for block in wr.Report.from_url(report.url).blocks])
    """)
    assert kinds == ["MarkdownBlock", "PanelGrid", "P"]
    (view,) = server.views.values()
    assert (view.display_name, view.writes) == ("Other", 2)
    assert "more" in view.spec


def test_contradictions_are_kept() -> None:
    run = RemoteRun("lab", "p", "one")
    lines = [json.dumps({"_step": step, "loss": loss, "_runtime": loss}) for step, loss in ((0, 1), (1, 1), (1, 2))]
    for offset, line, wrong in ((0, 0, 0), (1, 1, 0), (1, 1, 0), (1, 2, 1), (2, 1, 3)):
        run.stream({"files": {"wandb-history.jsonl": {"offset": offset, "content": [lines[line]]}}})
        assert len(run.conflicting) == wrong
