"""The fake W&B server, shown to the real client: what it must keep, whatever happens in between."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.track.remote import RemoteRun
from tests.track.server import FAULTS, Remote, Server

pytest.importorskip("wandb")
pytestmark = pytest.mark.slow

FATAL = ("401", "403", "409")

HEAD = """
import json, os, sys, wandb

# Whole seconds: the client takes 0.5 for 0, and 0 for its default of 15.
whats, ends = ("file_stream", "graphql", "file_transfer"), ("min", "max")
waits = {f"x_{what}_retry_wait_{end}_seconds": 1 for what in whats for end in ends}
quiet = {"x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False, "console": "off"}
quick = wandb.Settings(x_file_stream_transmit_interval=1, **waits, **quiet)

def begin(id="one", project="p", **how):
    how.setdefault("resume", "allow")
    return wandb.init(entity="lab", project=project, id=id, reinit="create_new", settings=quick, **how)

def log(run, start, stop):
    for step in range(start, stop):
        run.log({"epoch": step, "loss": 1 / (1 + step)}, step=step, commit=True)

def say(what=None):
    print(json.dumps(what), flush=True)

def heard():
    return sys.stdin.readline()
"""


class Client:
    """Scripts with a wandb of their own, pointed at the fake; any traffic beyond the loopback would go there too."""

    def __init__(self, folder: Path, url: str, key: str) -> None:
        self.folder, self.started = folder, list[subprocess.Popen[str]]()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), url)
        folders = {f"WANDB_{name}": str(folder) for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR")}
        self.environment = (
            kept
            | proxies
            | folders
            | {
                "HOME": str(folder),
                "NO_PROXY": "127.0.0.1",
                "no_proxy": "127.0.0.1",
                "WANDB_BASE_URL": url,
                "WANDB_API_KEY": key,
                "WANDB_ERROR_REPORTING": "false",
                "WANDB_SILENT": "true",
            }
        )

    def start(self, script: str, **environment: str) -> subprocess.Popen[str]:
        """Start a script whose `say` and `heard` are lines of its output and input."""
        process = subprocess.Popen(
            [sys.executable, "-c", HEAD + textwrap.dedent(script)],
            cwd=self.folder,
            env=self.environment | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, script: str, **environment: str) -> Any:
        """Run a script to its end and return what it said last."""
        process = self.start(script, **environment)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        return json.loads(said.splitlines()[-1])

    def command(self, *words: str) -> str:
        """Run the `wandb` command and return what it printed."""
        ran = subprocess.run(
            [sys.executable, "-m", "wandb", *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return ran.stdout + ran.stderr

    def stop(self) -> None:
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server
        assert server.unknown == []
        assert server.broken == []


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Iterator[Client]:
    client = Client(tmp_path, server.url, server.key)
    yield client
    client.stop()


def ask(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def steps(run: RemoteRun) -> list[int]:
    return [row["_step"] for row in run.history]


def whole(run: RemoteRun, count: int) -> bool:
    """Whether a run has each of its rows once, in order, at its offset."""
    rows = [(row["_step"], row["epoch"], row["loss"]) for row in run.history]
    return rows == [(step, step, 1 / (1 + step)) for step in range(count)] and not run.conflicting


def arrive(server: Server, rows: int) -> None:
    """Wait until the server has so many rows of the run."""
    server.until(lambda: len(server.runs["lab", "p", "one"].lines) == rows)


MID_RUN = """
run = begin()
log(run, 0, 3)
say()
heard()
log(run, 3, 7)
run.config["late"] = 1
say()
heard()
log(run, 7, 10)
run.finish()
say()
"""


REPLAY = """
run = begin()
first = run.starting_step
log(run, 0, 10)
run.finish()
say(first)
"""


def interrupted(mode: str, server: Server, client: Client) -> RemoteRun:
    """A run of ten rows whose middle four the server refuses at first."""
    process = client.start(MID_RUN)
    ask(process)
    arrive(server, 3)
    server.fault = mode
    tell(process)
    ask(process)
    if mode != "dead":
        server.until(lambda: server.faulted)
    server.fault = None
    tell(process)
    ask(process)
    return server.runs["lab", "p", "one"]


OFTEN = ("500", "drop")
"""Faults that are tried before every change; the rest by `make test-all`."""


@pytest.mark.parametrize(
    "mode",
    [mode if mode in OFTEN else pytest.param(mode, marks=pytest.mark.long) for mode in FAULTS if mode not in FATAL],
)
def test_a_fault_that_passes_loses_no_row(mode: str, server: Server, client: Client) -> None:
    run = interrupted(mode, server, client)
    assert whole(run, 10)
    assert (run.state, run.config) == ("finished", {"late": 1})


@pytest.mark.parametrize("mode", [FATAL[0], *(pytest.param(mode, marks=pytest.mark.long) for mode in FATAL[1:])])
def test_a_refusal_ends_the_stream_without_a_word_and_a_replay_mends_it(
    mode: str, server: Server, client: Client
) -> None:
    server.faults_on = {"file_stream"}
    run = interrupted(mode, server, client)
    assert whole(run, 3)
    assert run.state == "running"
    assert client.run(REPLAY) == 3
    assert whole(run, 10)
    assert run.state == "finished"


def test_a_client_killed_twice_leaves_each_row_once(server: Server, client: Client) -> None:
    for rows in (3, 6):
        process = client.start(f"run = begin()\nlog(run, 0, {rows})\nsay()\nheard()")
        ask(process)
        arrive(server, rows)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert client.run(REPLAY) == 6
    run = server.runs["lab", "p", "one"]
    assert whole(run, 10)
    assert (run.state, run.summary["loss"]) == ("finished", 0.1)


@pytest.mark.long
def test_two_runs_open_at_once_and_what_the_api_reads_of_them(server: Server, client: Client) -> None:
    read = client.run("""
        how = {"group": "g", "job_type": "train", "tags": ["a"], "notes": "n", "name": "shown"}
        runs = [begin(f"r{i}", config={"lr": i / 10}, **how) for i in range(3)]
        for run in runs:
            run.define_metric("*", step_metric="epoch")
            log(run, 0, 4)
            run.config.update({"seed": 1})
            run.summary["best"] = 0.5
        for run in runs:
            run.finish(exit_code=int(run is runs[2]))
        api = wandb.Api()
        rule = {"config.lr": {"$gte": 0.1}, "tags": "a"}
        chosen = list(api.runs("lab/p", filters=rule, order="-config.lr", per_page=1))
        one = api.run("lab/p/r0")
        one.tags = ["b", "c"]
        one.update()
        api.run("lab/p/r1").delete()
        read = {"viewer": api.viewer.username, "chosen": [run.id for run in chosen], "state": one.state}
        read |= {"config": one.config, "best": one.summary["best"], "full": len(list(one.scan_history()))}
        read |= {"columns": [one.name, one.group, one.job_type, one.notes]}
        read |= {"scan": [row["_step"] for row in one.scan_history(keys=["_step", "loss"])]}
        say(read | {"loss": [row["loss"] for row in one.history(keys=["loss"], pandas=False)]})
    """)
    assert read == {
        "viewer": "lab",
        "chosen": ["r2", "r1"],
        "state": "finished",
        "config": {"lr": 0.0, "seed": 1},
        "best": 0.5,
        "columns": ["shown", "g", "train", "n"],
        "scan": [0, 1, 2, 3],
        "full": 4,
        "loss": [1, 1 / 2, 1 / 3, 1 / 4],
    }
    assert sorted(key[2] for key in server.runs) == ["r0", "r2"]
    run = server.runs["lab", "p", "r0"]
    assert (run.tags, run.config, run.state) == (["b", "c"], {"lr": 0, "seed": 1}, "finished")
    assert server.runs["lab", "p", "r2"].state == "failed"


def test_a_wrong_key(server: Server, client: Client) -> None:
    assert client.run(
        """
        try:
            wandb.login(key=os.environ["WANDB_API_KEY"], verify=True)
        except wandb.errors.AuthenticationError as error:
            say(str(error))
        """,
        WANDB_API_KEY="local-" + "1" * 40,
    ).startswith("Failed to authenticate")
    assert set(server.requests) == {"Viewer"}


@pytest.mark.long
def test_a_rate_limit_delays_and_loses_nothing(server: Server, client: Client) -> None:
    server.rate = 100
    server.allowance, server.counted = 4, time.monotonic()
    client.run("run = begin()\nlog(run, 0, 10)\nrun.finish()\nsay()")
    assert server.refused
    assert whole(server.runs["lab", "p", "one"], 10)


@pytest.mark.long
def test_references_keep_their_digests_and_know_their_runs(server: Server, client: Client) -> None:
    (client.folder / "mask.bin").write_bytes(b"0110")
    said = client.run("""
        def mask():
            made = wandb.Artifact("mask", type="mask", metadata={"sha256": "ab"})
            made.add_reference(f"file://{os.getcwd()}/mask.bin", checksum=False)
            return made

        logger, user = begin("logger"), begin("user", project="q")
        logger.log_artifact(mask(), aliases=["latest", "best"]).wait()
        logger.log_artifact(mask()).wait()
        model = wandb.Artifact("model", type="model")
        model.add_file("mask.bin")
        logger.log_artifact(model).wait()
        used = user.use_artifact("lab/p/mask:latest")
        content = open(os.path.join(user.use_artifact("lab/p/model:v0").download("copy"), "mask.bin")).read()
        logger.finish(), user.finish()
        entry = used.manifest.entries["mask.bin"]
        say({"digest": used.digest, "entry": entry.digest, "ref": entry.ref, "version": used.version,
             "content": content, "metadata": used.metadata, "by": used.logged_by().id,
             "users": [run.id for run in used.used_by()]})
    """)
    (mask,) = server.artifacts["lab", "p", "mask", "mask"]
    assert said == {
        "digest": mask.digest,
        "entry": mask.entries["mask.bin"]["digest"],
        "ref": f"file://{client.folder}/mask.bin",
        "version": "v0",
        "content": "0110",
        "metadata": {"sha256": "ab"},
        "by": "logger",
        "users": ["user"],
    }
    assert (mask.aliases, mask.logged_by) == (["best", "latest"], [("lab", "p", "logger")])
    assert [path for path in server.blobs if path.endswith("/mask.bin")] == [
        f"artifact/{server.artifacts['lab', 'p', 'model', 'model'][0].id}/mask.bin"
    ]


@pytest.mark.long
def test_an_offline_run_is_synced_once(server: Server, client: Client) -> None:
    client.run("""
        run = begin(mode="offline", resume=None, config={"lr": 1}, group="g", tags=["a"])
        log(run, 0, 5)
        run.finish()
        say()
    """)
    assert not server.requests
    (folder,) = (client.folder / "wandb").glob("offline-run-*")
    client.command("sync", str(folder))
    run = server.runs["lab", "p", "one"]
    assert whole(run, 5)
    assert (run.state, run.config, run.group, run.tags) == ("finished", {"lr": 1}, "g", ["a"])
    assert list(folder.glob("*.synced"))


@pytest.mark.long
def test_a_report_and_a_workspace_are_saved_in_place(server: Server, client: Client) -> None:
    pytest.importorskip("wandb_workspaces")
    said = client.run("""
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws

        begin().finish()
        runs = wr.Runset(entity="lab", project="p", filters="Config('lr') >= 0.1 and State == 'finished'")
        panels = [wr.LinePlot(x="epoch", y=["loss"]), wr.BarPlot(metrics=["best"]), wr.RunComparer()]
        table = "| a | b |\\n|---|---|\\n| 1 | 2 |"
        report = wr.Report(entity="lab", project="p", title="Sweep", description="d", blocks=[
            wr.H1("Head"), wr.MarkdownBlock(table), wr.PanelGrid(runsets=[runs], panels=panels)])
        report.save()
        again = wr.Report.from_url(report.url)
        again.title, again.blocks = "Other", [*again.blocks, wr.P("more")]
        again.save()
        blocks = wr.Report.from_url(again.url).blocks
        space = ws.Workspace(entity="lab", project="p", name="mine", sections=[ws.Section(name="s", panels=panels[:1])])
        space.save()
        back = ws.Workspace.from_url(space.url)
        back.name = "yours"
        back.save()
        wr.Report(entity="lab", project="fresh", title="x").save()
        say({"id": report.id, "same": again.id == report.id, "kinds": [type(block).__name__ for block in blocks],
             "table": blocks[1].text, "filters": blocks[2].runsets[0].filters,
             "panels": [type(panel).__name__ for panel in blocks[2].panels],
             "space": back.url == space.url, "section": ws.Workspace.from_url(back.url).sections[0].name})
    """)
    report, space, _ = server.views.values()
    assert said == {
        "id": report.id,
        "same": True,
        "kinds": ["H1", "MarkdownBlock", "PanelGrid", "P"],
        "table": "| a | b |\n|---|---|\n| 1 | 2 |",
        "filters": """Config("lr") >= 0.1 and Metric("State") == 'finished'""",
        "panels": ["LinePlot", "BarPlot", "RunComparer"],
        "space": True,
        "section": "s",
    }
    assert (report.type, report.display_name, report.writes) == ("runs", "Other", 2)
    assert (space.type, space.display_name, space.writes) == ("project-view", "yours", 2)
    assert ("lab", "fresh") in server.projects


def test_what_contradicts_is_noted() -> None:
    run = RemoteRun("lab", "p", "one")
    rows = [json.dumps({"_step": step, "loss": 1, "_runtime": step}) for step in range(3)]
    run.place(0, rows)
    run.place(1, [rows[1].replace('"_runtime": 1', '"_runtime": 7')])
    assert run.conflicting == []
    run.place(2, [rows[2].replace('"loss": 1', '"loss": 2')])
    run.place(3, rows[:1])
    assert [sorted(found) for found in run.conflicting] == [["now", "offset", "was"], ["offsets", "step"]]


def test_a_server_in_a_process_of_its_own(tmp_path: Path) -> None:
    with Remote() as remote:
        client = Client(tmp_path, remote.url, remote.key)
        remote.fail("dead")
        process = client.start("run = begin()\nlog(run, 0, 5)\nrun.finish()\nsay()")
        remote.fail(None)
        ask(process)
        client.stop()
        seen = remote.state()
        assert whole(seen.runs["lab", "p", "one"], 5)
        assert (seen.unknown, seen.broken) == ([], [])
        assert seen.requests["UpsertBucket"] >= 1


def test_what_it_does_not_know_is_named_and_not_retried(client: Client) -> None:
    with Server() as server:
        head = {"Authorization": "Basic " + base64.b64encode(f"api:{server.key}".encode()).decode()}
        body = json.dumps({"query": "query Odd { viewer { shoeSize } }"}).encode()
        request = urllib.request.Request(f"{server.url}/graphql", body, head)  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            assert "shoeSize" in json.load(answer)["errors"][0]["message"]
        assert server.unknown == ['Odd: Cannot query field "shoeSize" on type "User".']
