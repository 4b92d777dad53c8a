"""What happens when something goes wrong, or time runs out: causes, workers that leave, ticks, provenance."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import memory, provenance
from harness.check import load_sweep
from harness.claims import Observer, Owner
from harness.failures import last_lines
from harness.frontier import Frontier
from harness.launch.local import this_machine
from harness.planfile import save_plan
from harness.planner import make_plan
from harness.presence import Presence, crowded, present
from harness.sealed import seal, unseal
from harness.store import Store
from harness.supervisor import Setup, Supervisor, Trouble
from harness.train.checkpoint import Checkpoints, Position, load_checkpoint, pack
from harness.train.process import failure
from harness.trainer import Trainer
from harness.watchdog import FIRST, LONGEST, STALL, WHOLE, Watchdog
from tests.conftest import claims, harness, hashes, results, until
from tests.harness import trivial

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[bytes]]
LONG = "protocol: {preset: quick, epochs: 60}"


@pytest.fixture
def long(project: Path) -> Path:
    """The tiny sweep with trainings of some seconds."""
    text = (project / "tiny.yaml").read_text().replace("protocol: {preset: quick, epochs: 2}", LONG)
    (project / "tiny.yaml").write_text(text)
    return project


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("right", ""),
        ("3x3: output wrong by 2 %", "so nothing is trained on its CPU: 3x3: output wrong by 2 %; .* harness doctor"),
        ("SIGSEGV", "so nothing is trained on its CPU: the trainer was ended by SIGSEGV"),
        ("SIGPROF", "so nothing is trained on its CPU: the trainer was ended by SIGPROF"),
        ("SIGKILL", "the trainer was ended by SIGKILL while loading torch"),
    ],
)
def test_the_first_worker_of_a_machine_tries_its_torch_and_leaves_where_it_is_wrong(
    how: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def start(device: str, serve: Any = None) -> Trainer:
        asked.append(serve.keywords["check"] if serve else 0)
        return Trainer(device, partial(trivial.tried, how=how if serve else "right"), "tests.harness.trivial")

    def supervisor(threads: int = 3, device: str = "cpu") -> None:
        frontier = Frontier(trivial.trivial_plan(1, 1), Store(tmp_path), Observer(10.0))
        Supervisor(frontier, Setup(device, threads), lambda **_: None, lambda: False, start).close()

    monkeypatch.setattr("harness.supervisor.Trainer", start)
    for _ in range(2):
        if said:
            with pytest.raises(Trouble, match=said):
                supervisor()
        else:
            supervisor()
    assert asked == ([3, 3] if said else [3, 0]), "what was found right is remembered, and nothing else"
    supervisor(device="cuda")
    assert asked[2:] == [0], "a GPU's worker does not ask"
    if not said:
        supervisor(threads=4)
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        supervisor()
        assert asked[3:] == [4, 3], "other threads and other kernels are tried anew"


def test_a_trainer_that_a_stop_ends_while_it_starts_is_no_trouble(tmp_path: Path) -> None:
    def start(device: str) -> Trainer:
        return Trainer(device, trivial.fallen, "tests.harness.trivial")

    frontier, stopped = Frontier(trivial.trivial_plan(1, 1), Store(tmp_path), Observer(10.0)), threading.Event()
    stopped.set()
    supervisor = Supervisor(frontier, Setup(), lambda **_: None, stopped.is_set, start)
    assert not supervisor.ready
    supervisor.close()


def plan_only(project: Path) -> None:
    """Write the sweep's plan into the store, and run nothing."""
    sweep, store = load_sweep(project / "tiny.yaml"), Store(project / "runs")
    save_plan(make_plan(sweep, store, project), store, sweep, whole=True)


# Causes ---------------------------------------------------------------------------------------------------------------

ADVICE = """
Search for `cudaErrorX' in https://docs.nvidia.com/cuda/ for more information.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
"""What torch writes below every error of CUDA."""


@pytest.mark.parametrize(
    ("error", "outcome", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "failed", "oom"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            "failed",
            "oom",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "failed", "oom"),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), "fault", "device"),
        (torch.AcceleratorError(f"CUDA error: unspecified launch failure{ADVICE}"), "fault", "device"),
        (torch.AcceleratorError(f"CUDA error: out of memory{ADVICE}"), "failed", "oom"),
        (torch.AcceleratorError(f"CUDA error: device-side assert triggered{ADVICE}"), "failed", "code"),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "failed", "code"),
        (RuntimeError("shape '[3]' is invalid for input of size 4"), "failed", "code"),
        (OSError(errno.ENOENT, "no such file"), "failed", "code"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_exception_has_a_cause(error: Exception, outcome: str, cause: str) -> None:
    found = failure(error)
    assert (found["outcome"], found["cause"]) == (outcome, cause)
    assert str(error) in found["message"]


def test_a_plug_in_that_asks_for_too_much_memory_is_tried_again_alone(project: Path, sweep: Run) -> None:
    """A method that fits no half of this machine: it says so as torch's allocator does, until it has all of it."""
    marker = project / "tried"
    (project / "greedy.py").write_text(
        "import pathlib\n"
        "from tost.masks import prunable\n\n\n"
        "def score(model):\n"
        f"    marker = pathlib.Path({str(marker)!r})\n"
        "    if not marker.exists():\n"
        "        marker.touch()\n"
        "        raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: you tried to allocate 64 GB')\n"
        "    return {n: w.detach().abs() for n, w in prunable(model).items()}\n"
    )
    text = (project / "tiny.yaml").read_text().replace("mask: [random, lth]", "mask: greedy")
    (project / "tiny.yaml").write_text(text.replace("use: {", 'use: {greedy: "./greedy.py:score", '))
    done = sweep("tiny.yaml", "--only", "mask=greedy,seed=0", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "1 stage ran out of memory: once more, one at a time" in done.stderr
    (mask,) = (project / "runs" / "stages" / "mask").glob("*/*")
    end = json.loads((mask / "attempt-0001" / "end.json").read_text())
    assert (end["outcome"], end["cause"]) == ("failed", "oom")
    assert end["memory"] == pytest.approx(memory.machine_memory() / 2, rel=0.01)


def test_with_one_worker_there_is_no_larger_class(project: Path, sweep: Run) -> None:
    (project / "greedy.py").write_text("def score(model):\n    raise MemoryError('64 GB')\n")
    text = (project / "tiny.yaml").read_text().replace("mask: [random, lth]", "mask: greedy")
    (project / "tiny.yaml").write_text(text.replace("use: {", 'use: {greedy: "./greedy.py:score", '))
    chosen = ("tiny.yaml", "--only", "mask=greedy,seed=0", "--workers", "1")
    done = sweep(*chosen)
    assert done.returncode == 1
    assert "ran out of memory: once more" not in done.stderr
    assert "out of memory: 64 GB" in done.stderr
    assert "1 failed stage released" in sweep(*chosen, "--retry", "oom").stderr


@pytest.mark.parametrize(
    ("first", "waits", "allowed"),
    [
        (FIRST, [], 3600),  # loading, compiling
        (FIRST, [0.5, 0.5, 0.5], 600),
        (FIRST, [20, 60, 5], 1200),  # steps of a minute
        (FIRST, [3000, 5], 3000),  # what began so slowly may stand as long again
        (FIRST, [3000, 200], 4000),
        (FIRST, [10_000], 10_000),
        (WHOLE, [], 21_600),
        (LONGEST, [], 86_400),
    ],
)
def test_a_trainer_may_take_a_multiple_of_its_usual_time(first: int, waits: list[int], allowed: float) -> None:
    watchdog = Watchdog(STALL, first)
    for seconds in waits:
        for _ in range(int(seconds)):
            watchdog.elapse(1.0)
        watchdog.elapse(seconds % 1)
        watchdog.reset()
    assert watchdog.timeout == pytest.approx(allowed)
    for _ in range(int(allowed)):
        watchdog.elapse(1.0)
    assert not watchdog.expired
    watchdog.elapse(1.0)
    assert watchdog.expired


def test_a_supervisor_that_was_itself_suspended_accuses_nobody() -> None:
    watchdog = Watchdog(STALL)
    watchdog.reset()
    for _ in range(100):
        watchdog.elapse(1e6)  # a laptop that was closed, a job that its scheduler suspended, a store that hung
    assert not watchdog.expired


def test_the_end_of_a_log_tells_what_died_and_where(tmp_path: Path) -> None:
    calls = "".join(f'  File "layer.py", line {line} in f{line}\n' for line in range(9))
    waits = '  File "connection.py", line 395 in _recv\n'
    for here, other in (
        ("Current thread", "Thread"),
        ("Thread", "Thread"),
    ):  # a kernel's own thread is none of Python's
        (tmp_path / "log").write_text(
            "epoch 1\n" * 20 + "corrupted double-linked list\nFatal Python error: Aborted\n\n"
            f"{other} 0x00007f01 (most recent call first):\n{waits}\n"
            f"{here} 0x00007f02 (most recent call first):\n{calls}\nExtension modules: numpy, torch (total: 2)\n"
        )
        told = last_lines(tmp_path / "log")
        assert told[:4] == ["epoch 1", "epoch 1", "corrupted double-linked list", "Fatal Python error: Aborted"]
        assert told[4:] == calls.splitlines()[:4]
    (tmp_path / "log").write_text("\n".join(map(str, range(99))))
    assert last_lines(tmp_path / "log") == [str(number) for number in range(91, 99)]
    assert last_lines(tmp_path / "none") == []


def test_the_kernels_kills_for_memory_are_counted_and_peaks_measured() -> None:
    assert memory.oom_kills() >= 0
    assert 2**28 < memory.machine_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory.forget_peak()
    before = memory.peak()
    block = bytearray(200 * 2**20)
    assert memory.peak() > before + 100 * 2**20
    del block
    memory.forget_peak()
    assert memory.peak() < before + 150 * 2**20


def test_workers_share_the_machines_memory() -> None:
    two, one = this_machine(2, 1, "cpu"), this_machine(1, 1, "cpu")
    assert two.memory == one.memory // 2
    assert f"{two.memory / 2**30:.3f}" in two.argv


# Checkpoints on this machine's own disk -------------------------------------------------------------------------------


@cache
def checkpoint(step: int) -> tuple[str, bytes]:
    return pack(step, Position(step=step), {"w": torch.full((3,), float(step))}, {"data": "a"})


def test_checkpoints_go_to_the_own_disk_first_and_then_to_the_store(tmp_path: Path) -> None:
    attempt, scratch = tmp_path / "attempt", tmp_path / "fast" / "key"
    attempt.mkdir()
    kept = Checkpoints(attempt, str(scratch))
    for step in (1, 2, 3):
        kept.write(*checkpoint(step))
        assert (scratch / checkpoint(step)[0]).exists(), "written when the call returns"
    kept.settle()
    assert (attempt / checkpoint(3)[0]).exists(), "the newest is never left behind"
    assert len(list(scratch.iterdir())) == 2
    for folders in ([scratch], [attempt], [attempt, scratch]):
        found = load_checkpoint(folders, {"data": "a"})
        assert found is not None
        assert found[0].step == 3


def test_a_disk_of_its_own_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    kept = Checkpoints(tmp_path, str(tmp_path / "file" / "key"), said.append)
    kept.write(*checkpoint(1))
    assert (tmp_path / checkpoint(1)[0]).exists()
    assert "goes straight to the store" in said[0]


def test_a_store_that_cannot_be_written_is_told_at_the_next_checkpoint(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "gone", str(tmp_path / "fast"))
    kept.write(*checkpoint(1))
    with pytest.raises(OSError, match="gone"):
        kept.settle()
    with pytest.raises(OSError, match="gone"):
        kept.write(*checkpoint(2))


def test_a_run_goes_on_from_its_own_disk_with_the_weights_of_an_undisturbed_one(
    long: Path, start: Start, sweep: Run
) -> None:
    chosen = ("tiny.yaml", "--only", "mask=dense,seed=0", "--workers", "1", "--threads", "1")
    assert sweep(*chosen, "--store", "calm").returncode == 0
    process = start("harness.sweep", *chosen, "--scratch", "fast", "--checkpoint-every", "0.05")
    fast = until(lambda: list((long / "fast").glob("*/checkpoint-*")))
    os.killpg(process.pid, signal.SIGKILL)
    for owner in Store(long / "runs").root.glob("sweeps/tiny/workers/*"):
        if not owner.name.startswith("log-"):
            until(lambda: not list(present(Store(long / "runs"), "tiny")), 30)
    for path in (long / "runs").rglob("checkpoint-*"):
        path.unlink()  # as if the copy had never been made
    again = sweep(*chosen, "--scratch", "fast")
    assert again.returncode == 0, again.stderr
    assert hashes(long / "runs") == hashes(long / "calm")
    (trained,) = [r for (r,) in results(long / "runs").values() if r["metrics"].get("epochs")]
    assert trained["provenance"]["resumed"] == 1
    assert trained["provenance"]["resumed_at_step"] > 0
    assert not fast[0].parent.exists(), "nothing is left on the disk"


# Workers that leave, several, and ticks -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_worker_that_is_told_to_go_saves_and_leaves(number: int, long: Path, start: Start, sweep: Run) -> None:
    nothing = sweep("tiny.yaml", "--budget", "1s")
    assert nothing.returncode == 2
    assert "--budget 1s: no cell fits" in nothing.stderr
    plan_only(long)
    worker = start("harness.worker", "tiny", "--checkpoint-every", "1000")
    metrics = until(lambda: list((long / "runs").glob("stages/train/*/*/attempt-*/metrics.jsonl")))
    os.killpg(worker.pid, number)  # as a scheduler does: to the fork server and the trainer too
    assert worker.wait(30) == 0
    end = json.loads((metrics[0].parent / "end.json").read_text())
    assert end["outcome"] == "stopped"
    assert list(metrics[0].parent.glob("checkpoint-*"))
    assert end["seconds"] > 0


def test_a_worker_with_little_time_leaves_before_it_is_over(long: Path, start: Start, sweep: Run) -> None:
    text = (long / "tiny.yaml").read_text().replace("epochs: 60", "epochs: 4000")
    (long / "tiny.yaml").write_text(text)
    for given in (14, 60):  # a machine that is busy has not begun to train after 14 s
        told = ("--only", "mask=dense,seed=0", "--workers", "1", "--until", f"{given}s")
        assert start("harness.sweep", "tiny.yaml", *told).wait(2 * given) == 1
        if found := list((long / "runs").glob("stages/train/*/*/attempt-0001")):
            break
    (metrics,) = found
    assert json.loads((metrics / "end.json").read_text())["outcome"] == "stopped"
    assert list(metrics.glob("checkpoint-*"))
    done = harness(long, "worker", "tiny", "--until", "soon")
    assert done.returncode == 2
    assert "--until: 'soon' is no time" in done.stderr


def test_a_tick_starts_what_is_missing_and_a_second_one_nothing(project: Path) -> None:
    nothing = harness(project, "tick", "tiny")
    assert nothing.returncode == 2
    assert "has no plan" in nothing.stderr
    text = (project / "tiny.yaml").read_text().replace("mask: [random, lth]", "mask: random")
    (project / "tiny.yaml").write_text(text)
    plan_only(project)
    first = harness(project, "tick", "tiny.yaml", "--workers", "2", "--threads", "1")
    assert first.returncode == 0, first.stderr
    assert "started 2 workers here" in first.stdout, "a data set, then six trainings can be taken"
    second = harness(project, "tick", "tiny", "--workers", "2", "--threads", "1")
    assert second.returncode == 0
    store = Store(project / "runs")
    until(lambda: json.loads(harness(project, "status", "tiny", "--json").stdout)["cells_done"] == 6)
    until(lambda: not list(present(store, "tiny")), 60)
    assert all(len(editions) == 1 for editions in results(store.root).values())
    assert "tiny: 0 stages to do, 0 could be run now" in harness(project, "tick", "tiny").stdout
    log = next((project / "runs" / "sweeps" / "tiny" / "workers").glob("log-*")).read_text()
    assert "start  digits thin random 50% default seed 0" in log


def test_detached_workers_outlive_the_command_and_are_not_started_twice(project: Path, sweep: Run) -> None:
    command = ("tiny.yaml", "--only", "mask=random", "--via", "local", "--detach", "--workers", "2", "--threads", "1")
    first = sweep(*command)
    assert first.returncode == 0, first.stderr
    assert "submitted 2 workers here" in first.stderr
    store = Store(project / "runs")
    until(lambda: len(list(present(store, "tiny"))) == 2)
    again = sweep(*command)
    assert again.returncode == 0
    assert "submitted nothing" in again.stderr or "4 of 4 cells done" in again.stderr
    until(lambda: not list(present(store, "tiny")), 90)
    done = sweep(*command)
    assert done.returncode == 0
    assert "4 of 4 cells done" in done.stderr
    assert sweep("tiny.yaml", "--via", "debug", "--detach").returncode == 2


def test_no_more_workers_stay_than_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second, third = (Presence(store, "s", Owner.me()) for _ in range(3))
    kept = [mine for mine in (first, second, third) if not crowded(store, "s", 2, mine.path)]
    assert len(kept) == 2
    for presence in (first, second, third):
        presence.leave()
        presence.beat()
    assert not list(present(store, "s")), "a heartbeat does not bring a file back"


def test_several_slots_are_several_workers(project: Path) -> None:
    plan_only(project)
    done = harness(project, "worker", "tiny", "--slots", "2", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "start  digits thin random 50% default seed 0" in done.stdout
    assert json.loads(harness(project, "status", "tiny", "--json").stdout)["cells_done"] == 10
    owners = {
        tuple(p["pid"] for p in json.loads(path.read_bytes().partition(b"\n")[0])["processes"])[:1]
        for path in (project / "runs").glob("stages/train/*/*/claim-*")
    }
    assert len(owners) >= 2


# Provenance -----------------------------------------------------------------------------------------------------------


def test_a_result_says_where_it_comes_from(project: Path, sweep: Run) -> None:
    assert sweep("tiny.yaml", "--only", "mask=random,seed=0,recipe=default").returncode == 0
    store = project / "runs"
    (trained,) = [r for (r,) in results(store).values() if r["metrics"].get("epochs")]
    said = trained["provenance"]
    assert said["source"] == provenance.source_digest()
    assert said["packages"]["torch"] == torch.__version__.partition("+")[0]
    everything = json.loads((store / "provenance" / said["all_packages"]).read_text())
    assert everything["pytest"] == pytest.__version__
    commit, difference = provenance.commit()
    assert said["git"] == commit
    assert bool(said["git_diff"]) == bool(difference)
    if difference:
        assert (store / "provenance" / said["git_diff"]).read_text() == difference
    assert (said["generation"], said["resumed"]) == (1, 0)
    assert said["seconds"] > 0
    assert said["cpu_seconds"] == said["device_seconds"] > 0, "the device was the CPU"
    assert said["peak_memory"] > 2**26
    assert {"host", "system", "driver", "finished", "job"} <= set(said)
    assert set(trained["parents"].values()) <= set(hashes(store).values())


def test_other_code_than_the_plans_is_said_before_the_start(project: Path, sweep: Run) -> None:
    assert sweep("tiny.yaml", "--only", "mask=dense,seed=0").returncode == 0
    for path in (project / "runs" / "sweeps" / "tiny").glob("plan-*.json"):
        path.write_bytes(seal({**unseal(path.read_bytes()), "source": "0" * 16}))
        done = harness(project, "worker", "tiny", "--plan", path.name)
        assert done.returncode == 0
        assert (
            f"this worker's code ({provenance.source_digest()}) differs from the code that made the plan" in done.stderr
        )
    assert claims(project / "runs")
