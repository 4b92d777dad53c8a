"""How a fast training runs its network: as it is, compiled, or as a CUDA graph; tried out and remembered."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.sealed import keep_note, read_note
from harness.store import digest
from harness.train.order import Order
from harness.train.run import Training

EAGER = "eager"
CHOICES: Mapping[str, Mapping[str, Any]] = {"compiled": {}, "graphs": {"mode": "reduce-overhead"}}
"""What torch.compile is told for each; `graphs` replays a step's kernels at once, which needs CUDA."""
VERSION = 1
LEAST = 300.0
"""Seconds that a training must still take for a trial to be worth its while."""
WINDOW = 1.0
"""Seconds of steps that are timed."""
WARM_UP = 3
PAYS = 1.1
"""How many times as long the rest of a training must take as it is, for another way to be chosen."""


def hasten(order: Order, run: Training) -> None:
    """Let a training that may be fast, and has this process alone, run in the way that is soonest done.

    On a CPU torch's compiler lays every convolution channels last: no network is compiled that must lie otherwise.
    """
    free = run.images.device.type != "cpu" or run.layout == torch.channels_last
    if order.fast and run.group.world == 1 and free:
        run.execution = choose(order, run)
        run.forward = ready(run.model, run.execution)


def choose(order: Order, run: Training) -> str:
    """Return how the steps that are left of a training are done soonest: `eager`, or one of CHOICES.

    Found out with the network's own steps on noise, and kept in the store's cache for this network, recipe, batch,
    precision and sort of device.
    """
    steps = run.until * run.steps - run.done
    note = Path(order.store) / "cache" / "pilots" / f"{digest(_sort(order, run))}.json"
    found = read_note(note)
    if not found:
        with _undisturbed():
            eager = try_out(run, EAGER)
        if eager.get("seconds", 0.0) * steps < LEAST:  # or it fails, as its training will, and say why
            return EAGER
        with _undisturbed():
            found = {EAGER: eager} | {name: try_out(run, name) for name in choices(run.images.device)}
        keep_note(note, found)
    return quickest(found, steps, 1 + len(ends(order)))


def quickest(found: Mapping[str, Mapping[str, float]], steps: int, times: int) -> str:
    """Return the way that does so many steps soonest, where it has to be made ready some number of times."""

    def seconds(name: str) -> float:
        return times * found[name]["ready"] * (name != EAGER) + steps * found[name]["seconds"]

    best = min((name for name in found if "seconds" in found[name]), key=seconds)
    return best if seconds(best) * PAYS < seconds(EAGER) else EAGER


def choices(device: torch.device) -> list[str]:
    """Return the ways that a device knows."""
    return [name for name in CHOICES if name != "graphs" or device.type == "cuda"]


def ends(order: Order) -> set[float]:
    """Return the points of a training at which its network changes, and must be made ready again."""
    windows = [part["args"]["window"][1] for part in order.spec["recipe"] if "window" in part.get("args", {})]
    return {float(end) for end in windows if end < 1}


def ready(model: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """Return a network's forward pass in one of the ways."""
    if name == EAGER:
        return model
    torch._dynamo.config.suppress_errors = True  # what cannot be compiled is run as it is
    torch._dynamo.reset()  # it makes a function ready a few times only, and networks of a kind share theirs
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False, **CHOICES[name])

    def forward(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call] # a graph's outputs of the step before are no longer wanted
        return compiled(images)

    return forward


def try_out(run: Training, name: str) -> dict[str, Any]:
    """Return the seconds of a step (forwards and backwards, on noise), and those until the first few were done.

    Where that fails, what was said.
    """
    device = run.images.device
    model = copy.deepcopy(run.model).train()
    images = torch.randn(run.batch, *run.images.shape, device=device).contiguous(memory_format=run.layout)
    labels = torch.arange(run.batch, device=device) % run.images.classes
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    forward, trial = ready(model, name), replace(run, execution=name)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with trial.autocast():
            loss = run.criterion(forward(images), labels)
        torch.autograd.backward(loss)

    began = time.perf_counter()
    try:
        for _ in range(WARM_UP):
            step()
        wait()
        warm, steps = time.perf_counter(), 0
        while time.perf_counter() - warm < WINDOW:
            step()
            steps += 1
            wait()
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # it is trained as it is, where the error is told if it is the network's own
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    return {"seconds": (time.perf_counter() - warm) / steps, "ready": warm - began}


def _sort(order: Order, run: Training) -> list[Any]:
    """Return what the speed of a training's steps depends on."""
    device = run.images.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    made_of = [order.spec["arch"], order.spec.get("small"), order.spec["recipe"], order.spec["protocol"].get("loss")]
    sizes = [run.images.shape, run.images.classes, run.batch, run.precision, order.threads]
    return [VERSION, "execution", torch.__version__, name, *made_of, *sizes]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave torch's random streams as they were, and its compiler's advice unsaid."""
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        yield
