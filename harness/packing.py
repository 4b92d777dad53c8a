"""How many workers share a machine, or a GPU of it: tried out with the training that a sweep has most of."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from harness.costs import Costs
from harness.frontier import Frontier
from harness.launch.local import Machine, cores, this_machine
from harness.machine import machine as this_host
from harness.memory import gpu_memory
from harness.options import Options
from harness.outlook import Outlook
from harness.pilot import order_of
from harness.plan import Stage
from harness.sealed import keep_note, read_note
from harness.store import digest

SECONDS = 3.0
"""How long the steps of every packing are timed."""
WORTH = 1.1
"""How many times as many images a second twice the workers must train to be worth their memory."""
MOST = 16
"""Workers on one device that are tried at most."""
PATIENCE = 600.0
"""Seconds after which processes that are tried out are ended."""
PACKING_VERSION = 3


def pack(machine: Machine, frontier: Frontier, options: Options, say: Callable[[str], None]) -> Machine:
    """Return a machine with the number of workers that trains the most images a second.

    Workers are doubled for as long as that pays; the data sets must have been made. Each has its share of the cores, or
    as many threads as are asked for. What was found is kept in the store's cache, for this sort of training on this
    machine.
    """
    outlook = Outlook(frontier, frontier.survey(), machine)
    stage, trainings = typical(outlook.costs, outlook.todo)
    order = order_of(frontier, outlook.costs, stage) if stage else None
    if stage is None or order is None:
        return machine
    memory, threads = gpu_memory(machine.gpus[0]) if machine.gpus else 0, options.threads
    place = [this_host()[0], machine.device, cores(), len(machine.gpus), memory, threads]
    sort = [PACKING_VERSION, *map(str, outlook.costs.names(stage)[0]), place, options.fast, options.execution]
    note = outlook.cache / "pilots" / f"{digest(sort)}.json"
    devices = max(1, len(machine.gpus))
    useful = math.ceil(trainings / devices)
    found = read_note(note)
    if not found:
        order |= {"device": machine.device, "fast": options.fast, "execution": options.execution}
        tried = try_out(order, stage.label, machine, threads, useful, say)
        if not tried:
            return machine
        found = {"workers": fewest(tried), "images_a_second": tried, "label": stage.label}
        if useful >= 2 * max(tried) or len(tried) < len(counts(machine, threads, useful)):
            keep_note(note, found)
    workers = min(int(found["workers"]), useful)
    packed = this_machine(workers * devices, threads or threads_of(machine, workers), machine.device)
    return replace(packed, gpus=machine.gpus)  # which may bear other names here


def try_out(
    order: Mapping[str, Any],
    label: str,
    machine: Machine,
    threads: int | None,
    useful: int,
    say: Callable[[str], None],
) -> dict[int, float]:
    """Return images a second by number of workers on a device; nothing where not even one could be tried."""
    tried: dict[int, float] = {}
    for workers in counts(machine, threads, useful):
        own = threads or threads_of(machine, workers)
        speed, trouble = images_a_second([{**order, "threads": own}] * workers, machine)
        told = f"{speed:,.0f} images/s together" if speed else f"failed: {trouble}"
        say(f"packing: {label}: {workers} on a device, {own} threads each: {told}")
        if not speed:
            break
        tried[workers] = speed
        if speed < WORTH * max((tried[fewer] for fewer in tried if fewer < workers), default=0.0):
            break
    return tried


def typical(costs: Costs, todo: Sequence[str]) -> tuple[Stage | None, int]:
    """Return a training of the sort of which most are to be run, and the number of all trainings to run."""
    trainings = [stage for key in todo if (stage := costs.plan.stages[key]).kind == "train"]
    sorts = Counter(costs.names(stage)[0] for stage in trainings)
    most = max(sorts.values(), default=0)
    return next((stage for stage in trainings if sorts[costs.names(stage)[0]] == most), None), len(trainings)


def fewest(tried: Mapping[int, float]) -> int:
    """Return the least number of workers that no greater one beats by enough to be worth it."""
    chosen = min(tried)
    for workers in sorted(tried):
        if tried[workers] >= WORTH * tried[chosen]:
            chosen = workers
    return chosen


def counts(machine: Machine, threads: int | None, useful: int) -> list[int]:
    """Return the numbers of workers on a device that are tried: no more than have cores, and something to do."""
    most = MOST if machine.gpus else min(MOST, max(1, cores() // (threads or 1)))
    return [count for count in (1, 2, 4, 8, 16) if count <= min(most, max(1, useful))]


def threads_of(machine: Machine, workers: int) -> int:
    """Return the CPU threads of each of some workers on every device of a machine."""
    return max(1, cores() // (workers * max(1, len(machine.gpus))))


def images_a_second(orders: Sequence[Mapping[str, Any]], machine: Machine) -> tuple[float, str]:
    """Train in as many processes as there are orders, all at once; return their images a second together.

    Where one of them fails, as they do when the device's memory is not enough for all, that is 0, and what it said.
    """
    visible = {"CUDA_VISIBLE_DEVICES": machine.gpus[0]} if machine.gpus else {}
    told = {"OMP_NUM_THREADS": str(orders[0]["threads"]), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [sys.executable, "-m", "harness.train.pilot", str(SECONDS), "--together"]
    with ExitStack() as stack:
        processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **visible, **told},
            )
            for _ in orders
        ]
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)  # before it is waited for, however this ends
        deadline = threading.Timer(PATIENCE, _kill, [processes])
        deadline.daemon = True
        stack.callback(deadline.cancel)
        deadline.start()
        for process, order in zip(processes, orders, strict=True):
            _say(process, json.dumps(order))
        words = [_hear(process) for process in processes]
        if all("ready" in said for said in words):
            for process in processes:  # all of them, before one is waited for: they are to be timed together
                _say(process, "begin")
            words = [_hear(process) for process in processes]
    if all("images_a_second" in said for said in words):
        return sum(float(said["images_a_second"]) for said in words), ""
    failed = [str(said["failed"]) for said in words if "failed" in said]
    return 0.0, (failed or ["a process ended without a word, most likely for want of memory"])[0]


def _kill(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None  # it was asked for # noqa: S101
    with suppress(BrokenPipeError):  # what became of it is heard
        process.stdin.write(line + "\n")
        process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next message of a process, an empty one where it has ended."""
    assert process.stdout is not None  # it was asked for # noqa: S101
    said: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
    return said
