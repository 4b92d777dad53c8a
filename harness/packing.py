"""How many workers share a machine, or a GPU of it: tried out with the training that a sweep has most of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from harness.costs import Costs
from harness.frontier import Frontier
from harness.launch.local import Machine, this_machine
from harness.outlook import Outlook
from harness.pilot import order_of
from harness.plan import Stage
from harness.store import digest, read_json, write_whole

SECONDS = 3.0
"""How long the steps of every packing are timed."""
WORTH = 1.1
"""How many times as many images a second twice the workers must train to be worth their memory."""
MOST = 16
"""Workers on one device that are tried at most."""
PACKING_VERSION = 1


def pack(machine: Machine, frontier: Frontier, say: Callable[[str], None]) -> Machine:
    """Return a machine with the number of workers, and of threads of each, that trains the most images a second.

    Workers are doubled for as long as that pays; the data sets must have been made. What was found is kept in the
    store's cache for this kind of training on this machine.
    """
    outlook = Outlook(frontier, frontier.survey(), machine)
    costs, cache = outlook.costs, outlook.cache
    stage = typical(costs, outlook.todo)
    order = order_of(frontier, costs, stage) if stage else None
    if stage is None or order is None:
        return machine
    note = (
        cache
        / "pilots"
        / f"{digest([PACKING_VERSION, *map(str, costs.names(stage)[0]), *_place(machine, costs)])}.json"
    )
    found = read_json(note)
    if not found:
        tried: dict[int, float] = {}
        for workers in _counts(machine):
            threads = threads_of(machine, workers)
            speed = images_a_second([{**order, "threads": threads}] * workers, machine)
            say(f"packing: {stage.label}: {workers} on a device, {threads} threads each: {_told(speed)}")
            tried[workers] = speed
            if speed < WORTH * max((s for w, s in tried.items() if w < workers), default=0.0):
                break
        if not (best := max(tried, key=lambda workers: tried[workers])) or not tried[best]:
            return machine
        found = {"workers": fewest(tried), "images_a_second": tried, "label": stage.label}
        note.parent.mkdir(parents=True, exist_ok=True)
        write_whole(note, json.dumps(found).encode())
    workers = int(found["workers"])
    devices = max(1, len(machine.gpus))
    return this_machine(workers * devices, threads_of(machine, workers), machine.device)


def typical(costs: Costs, todo: Sequence[str]) -> Stage | None:
    """Return a training of the sort of which most are to be run, None where there is none."""
    trainings = [stage for key in todo if (stage := costs.plan.stages[key]).kind == "train"]
    sorts = Counter(costs.names(stage)[0] for stage in trainings)
    most = max(sorts.values(), default=0)
    return next((stage for stage in trainings if sorts[costs.names(stage)[0]] == most), None)


def fewest(tried: dict[int, float]) -> int:
    """Return the least number of workers that no greater one beats by enough to be worth it."""
    chosen = min(tried)
    for workers in sorted(tried):
        if tried[workers] >= WORTH * tried[chosen]:
            chosen = workers
    return chosen


def threads_of(machine: Machine, workers: int) -> int:
    """Return the CPU threads of each of some workers on every device of a machine."""
    return max(1, cores() // (workers * max(1, len(machine.gpus))))


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def images_a_second(orders: Sequence[dict[str, object]], machine: Machine) -> float:
    """Train in as many processes as there are orders, all at once; return their images a second together.

    It is 0 where one of them fails, as they do when the device's memory is not enough for all.
    """
    visible = {"CUDA_VISIBLE_DEVICES": machine.gpus[0]} if machine.gpus else {}
    told = {"OMP_NUM_THREADS": str(orders[0]["threads"]), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "harness.train.pilot", str(SECONDS), "--together"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env={**os.environ, **visible, **told},
                )
            )
            for _ in orders
        ]
        said = [_asked(process, json.dumps(order)) for process, order in zip(processes, orders, strict=True)]
        ready = all(process.stdout is not None and process.stdout.readline() for process in processes)
        ended = [process.communicate("\n" if ready else None)[0] for process in processes] if all(said) else []
    speeds = [json.loads(text).get("images_a_second", 0.0) if text.strip() else 0.0 for text in ended]
    return sum(speeds) if speeds and all(speeds) else 0.0


def _asked(process: subprocess.Popen[str], order: str) -> bool:
    assert process.stdin is not None  # it was asked for # noqa: S101
    try:
        process.stdin.write(order + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return False
    return True


def _counts(machine: Machine) -> list[int]:
    most = MOST if machine.gpus else min(MOST, cores())
    return [count for count in (1, 2, 4, 8, 16) if count <= most]


def _place(machine: Machine, costs: Costs) -> list[object]:
    return [machine.device, costs.place.name, cores(), len(machine.gpus), machine.memory * machine.workers]


def _told(speed: float) -> str:
    return f"{speed:,.0f} images/s together" if speed else "it failed, most likely for want of memory"
