"""Killed, frozen and thawed workers: nothing is lost, nothing published twice, weights end up the same to the bit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from harness.claims import Observer, take
from harness.frontier import Frontier
from harness.plan import Stage
from harness.planfile import find_plan, read_plan
from harness.states import GIVE_UP_AFTER
from harness.status import as_json, gather, render
from harness.store import Store
from harness.supervisor import Setup, Supervisor
from harness.why import explain
from tests.conftest import claims, descendants, hashes, kill_tree, results, save_whole_plan, send, until

Start = Callable[..., subprocess.Popen[bytes]]
Run = Callable[..., subprocess.CompletedProcess[str]]

LONG = "protocol: {preset: quick, epochs: 40}"


@pytest.fixture
def long(project: Path) -> Path:
    """The tiny sweep with trainings of about two seconds."""
    text = (project / "tiny.yaml").read_text().replace("protocol: {preset: quick, epochs: 2}", LONG)
    (project / "tiny.yaml").write_text(text)
    return project


def checkpoints(store: Path) -> set[Path]:
    return set(store.glob("stages/train/*/*/attempt-*/checkpoint-*"))


@pytest.mark.slow
def test_a_tree_killed_five_times_ends_with_the_weights_of_an_undisturbed_run(
    long: Path, start: Start, sweep: Run
) -> None:
    chosen = ("tiny.yaml", "--only", "recipe=ls,seed=0")
    assert sweep(*chosen, "--threads", "1", "--store", "calm").returncode == 0
    store = long / "runs"
    finished: dict[str, int] = {}
    for _ in range(5):
        before = checkpoints(store)
        process = start("harness.sweep", *chosen, "--checkpoint-every", "0.05")
        until(lambda before=before: len(checkpoints(store) - before) > 1)
        kill_tree(process.pid)
        process.wait()
        finished |= {key: claims(store)[key] for key in results(store) if key not in finished}
    last = sweep(*chosen)
    assert last.returncode == 0, last.stderr
    assert hashes(store) == hashes(long / "calm")
    assert all(len(editions) == 1 for editions in results(store).values())
    assert {key: claims(store)[key] for key in finished} == finished, "no finished stage was run again"
    assert any(result["provenance"]["resumed_at_step"] > 0 for (result,) in results(store).values())
    assert not checkpoints(store)


@pytest.mark.slow
def test_a_frozen_worker_is_taken_over_and_does_no_harm_when_it_thaws(long: Path, start: Start, sweep: Run) -> None:
    chosen = ("tiny.yaml", "--only", "mask=dense,seed=0")
    assert sweep(*chosen, "--threads", "1", "--store", "calm").returncode == 0
    store = long / "runs"
    frozen = start(
        "harness.sweep", *chosen, "--workers", "1", "--threads", "1", "--checkpoint-every", "0", "--lease", "1"
    )
    until(lambda: checkpoints(store))
    family = descendants(frozen.pid)
    send(family, signal.SIGSTOP)
    rescue = sweep(*chosen, "--workers", "1", "--threads", "1", "--lease", "1")
    assert rescue.returncode == 0, rescue.stderr
    ((key, (result,)),) = [(k, v) for k, v in results(store).items() if v[0]["metrics"].get("epochs")]
    assert result["provenance"]["generation"] == 2
    published = {path: path.stat().st_mtime_ns for path in store.glob("stages/*/*/*/*.*") if path.is_file()}
    send(family, signal.SIGCONT)
    frozen.communicate(timeout=60)
    assert frozen.returncode == 0
    folder = next(store.glob(f"stages/train/*/{key}"))
    assert json.loads((folder / "attempt-0001" / "end.json").read_text())["outcome"] == "gave up"
    assert json.loads((folder / "attempt-0002" / "end.json").read_text())["outcome"] == "published"
    assert {path: path.stat().st_mtime_ns for path in published} == published
    assert len(results(store)[key]) == 1
    assert hashes(store) == hashes(long / "calm")


def test_a_killed_trainer_is_replaced_and_its_stage_goes_on(long: Path, start: Start) -> None:
    store = long / "runs"
    process = start(
        "harness.sweep",
        "tiny.yaml",
        "--only",
        "mask=dense,seed=0",
        "--workers",
        "1",
        "--threads",
        "1",
        "--checkpoint-every",
        "0",
    )
    until(lambda: checkpoints(store))
    (claim,) = store.glob("stages/train/*/*/claim-0001")
    _, trainer = json.loads(claim.read_bytes().partition(b"\n")[0])["processes"]
    os.kill(trainer["pid"], signal.SIGKILL)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output
    assert "trying again" in output
    assert "ended by SIGKILL" in output
    end = json.loads((claim.parent / "attempt-0001" / "end.json").read_text())
    assert end["outcome"] == "died"
    assert results(store)[claim.parent.name][0]["provenance"]["resumed_at_step"] > 0


def test_a_stage_that_kills_every_trainer_is_given_up(project: Path, sweep: Run) -> None:
    (project / "deadly.py").write_text(
        "import os, signal\n\ndef score(model):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    text = (project / "tiny.yaml").read_text().replace("mask: [random, lth]", "mask: [random, deadly]")
    (project / "tiny.yaml").write_text(
        text.replace('thin: "./thin.py:build"', 'thin: "./thin.py:build", deadly: "./deadly.py:score"')
    )
    done = sweep("tiny.yaml", "--only", "seed=0")
    assert done.returncode == 1
    assert "(3 times in a row); 2 cells held back" in done.stderr
    assert done.stderr.count("trying again: ") == GIVE_UP_AFTER - 1
    (mask,) = (project / "runs" / "stages" / "mask").glob("*/*/attempt-0003")
    assert f"look at it alone: harness debug tiny --like {mask.parent.name[:8]}" in done.stderr
    assert "harness doctor" in done.stderr
    assert "3 of 5 cells done" in done.stderr


BAD = """
import ctypes
import os


def segfault(model):
    ctypes.string_at(0)


def abort(model):
    os.write(2, b"corrupted double-linked list\\n")
    os.abort()


def spin(model):
    return any(iter(int, 1))
"""
"""Native code that crashes, that finds its heap broken, as the C library says it, and that gives Python no turn."""


def test_what_crashes_or_hangs_in_native_code_leaves_its_stack_and_what_to_do(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "bad.py").write_text(BAD)
    text = (project / "tiny.yaml").read_text().replace("mask: [random, lth]", "mask: [segfault, abort, spin]")
    own = ", ".join(f'{name}: "./bad.py:{name}"' for name in ("segfault", "abort", "spin"))
    (project / "tiny.yaml").write_text(text.replace("use: {", f"use: {{{own}, ").replace("seed: 0..1", "seed: 0"))
    save_whole_plan(project)
    store = Store(project / "runs")
    saved = read_plan(find_plan(store, "tiny"))
    stages = {stage.label.split()[3]: stage for stage in saved.plan.stages.values() if stage.kind == "mask"}
    frontier = Frontier(saved.plan, store, Observer())
    said: list[dict[str, object]] = []
    with contextlib.closing(Supervisor(frontier, Setup(), lambda **event: said.append(event), lambda: False)) as runs:

        def run(stage: Stage) -> dict[str, object]:
            folder = store.folder(stage.kind, stage.key)
            claim = take(folder, folder.generation, runs.owner())
            assert claim is not None
            runs.run(stage, claim)
            end = json.loads((claim.attempt / "end.json").read_text())
            return {**end, "log": (claim.attempt / "log").read_text() if (claim.attempt / "log").exists() else ""}

        (data,) = (stage for stage in saved.plan.stages.values() if stage.kind == "data")
        assert run(data)["outcome"] == "published"
        runs.setup = replace(runs.setup, stall=0.02)  # a method of one's own may be silent 144 times as long
        stalled = run(stages["spin"])
        ends = [run(stages[name]) for name in ("segfault", *["abort"] * GIVE_UP_AFTER)]
    assert (stalled["outcome"], stalled["cause"]) == ("died", "stalled")
    assert "the trainer stalled: no progress for" in str(stalled["message"])
    assert "in spin" in str(stalled["log"])
    assert [end.get("signal") for end in ends] == ["SIGSEGV", "SIGABRT", "SIGABRT", "SIGABRT"]
    assert "Fatal Python error: Segmentation fault" in str(ends[0]["log"])
    assert "in segfault" in str(ends[0]["log"])

    status = gather(saved, store, Observer(), rebuild=True)
    assert {(item["cause"], item["attempt"]) for item in as_json(status)["again"]} == {("stalled", 1), ("died", 1)}
    shown = Console(width=200)
    with shown.capture() as status_text:
        shown.print(render(status))
    explain(saved, store, stages["abort"].key, accept=False)
    for text in (status_text.get(), capsys.readouterr().out):
        assert "| corrupted double-linked list" in text
        assert "in abort" in text
        assert f"harness debug tiny --like {stages['abort'].key[:8]}" in text
        assert "harness doctor" in text
    assert "the trainer was ended by SIGABRT (3 times in a row)" in status_text.get()
    assert f"again, after attempt 1: {stages['spin'].label}: the trainer stalled" in status_text.get()
    assert said[-1]["outcome"] == "failed", "what is given up is not said to be tried again"


def test_sigusr1_to_a_trainer_saves_and_lets_the_stage_go_on(long: Path, start: Start) -> None:
    store = long / "runs"
    process = start("harness.sweep", "tiny.yaml", "--only", "mask=dense,seed=0", "--workers", "1", "--threads", "1")
    metrics = until(lambda: list(store.glob("stages/train/*/*/attempt-0001/metrics.jsonl")))
    (claim,) = store.glob("stages/train/*/*/claim-0001")
    _, trainer = json.loads(claim.read_bytes().partition(b"\n")[0])["processes"]
    os.kill(trainer["pid"], signal.SIGUSR1)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output
    assert json.loads((metrics[0].parent / "end.json").read_text())["outcome"] == "stopped"
    assert results(store)[claim.parent.name][0]["provenance"]["generation"] == 2
