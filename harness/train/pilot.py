"""Try stages out: a few steps of each, timed, to foretell what a sweep will cost; run as a module."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from harness.store import file_sha256
from harness.train.execution import set_execution
from harness.train.images import Split
from harness.train.loop import Enough, Watcher, evaluate, train
from harness.train.network import build, open_images
from harness.train.order import Order
from harness.train.process import prepare_process, set_mode
from harness.train.rescaling import make_scales
from harness.train.run import Training
from harness.train.scoring import make_mask
from harness.train.training import prepare
from tost.catalog import PARTS, settings

WARM_UP = 2
"""Steps that are not timed: the first ones load kernels and grow memory."""
LEAST_STEPS = 3
ITERATIONS = 3
"""Iterations of a rescaling that are tried."""
TESTED = 0.25
"""The share of epochs taken to be the best so far, and so evaluated on the test split too."""


class Stopwatch(Watcher):
    """Times a loop's steps after the first few, and ends it when it has seen enough of them."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.steps, self.began = seconds, 0, 0.0

    def after_step(self, training: Training, due: Callable[[], None]) -> None:
        """See a step done; the loss is read where timing begins and ends, so that a device has then finished."""
        self.steps += 1
        if self.steps == WARM_UP:
            due()
            self.began = time.monotonic()
        timed = self.steps - WARM_UP
        if timed >= LEAST_STEPS and time.monotonic() - self.began >= self.seconds:
            due()
            raise Enough

    @property
    def a_step(self) -> float:
        """Return the seconds of one step."""
        return (time.monotonic() - self.began) / max(1, self.steps - WARM_UP)


def training_seconds(order: Order, seconds: float) -> float:
    """Return the seconds that a whole training would take, ghosts counted for as long as they live.

    Its mask is left out, since pruned weights are multiplied like the others, and so are learnt scales.
    """
    began, order = time.monotonic(), plain(order)
    run = prepare(order)
    setting_up = time.monotonic() - began
    ends = [part["args"]["window"][1] for part in order.spec["recipe"] if "window" in part.get("args", {})]
    ghosts = min(1.0, max(ends, default=0.0))
    first = _a_step(run, seconds, 0) if ghosts else 0.0
    later = _a_step(run, seconds, run.epochs - 1) if ghosts < 1 else 0.0
    for part in run.parts:
        if not part.stays:
            part.detach()
    epochs = min(run.until, run.epochs)
    looking = _evaluation(run, run.images.dev) + TESTED * _evaluation(run, run.images.test)
    return setting_up + epochs * (run.steps * (ghosts * first + (1 - ghosts) * later) + looking)


def plain(order: Order) -> Order:
    """Return a training's order without what other stages would have to make first, a starting point and scales."""
    spec = {k: v for k, v in order.spec.items() if k not in ("rewind", "start")}
    spec["recipe"] = [part for part in spec["recipe"] if not ("name" in part and PARTS[part["name"]].stage)]
    return _with(order, spec=spec)


def _a_step(run: Training, seconds: float, epoch: int) -> float:
    """Time steps from the start of an epoch; an epoch too short for it is followed by the next."""
    at, watch = run.position, Stopwatch(seconds)
    at.epoch, at.step, at.loss_sum, at.correct, at.seen, at.rows = epoch, 0, 0.0, 0, 0, []
    until, run.until = run.until, epoch + 1
    try:
        while True:
            train(run, watch)
            at.epoch, at.rows = epoch, []
    except Enough:
        return watch.a_step
    finally:
        run.until = until


def _evaluation(run: Training, split: Split) -> float:
    """Return the seconds of an evaluation, timed on a few batches."""
    if not len(split):
        return 0.0
    part = Split(split.cut(slice(1000)), split.labels[:1000])
    evaluate(run, Split(split.cut(slice(10)), split.labels[:10]))
    began = time.monotonic()
    evaluate(run, part)
    return (time.monotonic() - began) * len(split) / len(part)


def mask_seconds(order: Order) -> float:
    """Return the seconds of a mask stage, run whole; a trained network is stood in for by the initial one."""
    if "needs_trained" in order.spec:
        spec = {k: v for k, v in order.spec.items() if k != "needs_trained"}
        path = Path(order.attempt) / "trained.safetensors"
        model = build(order, open_images(order))
        path.write_bytes(save({name: value.contiguous() for name, value in model.state_dict().items()}))
        order = _with(order, spec=spec, parents={**order.parents, "trained": (str(path), file_sha256(path))})
    began = time.monotonic()
    make_mask(order)
    return time.monotonic() - began


def rescale_seconds(order: Order) -> float:
    """Return the seconds of a rescaling, from its first iterations."""
    method = order.spec["method"]
    whole = int(settings(PARTS[method["name"]], method.get("args", {}))["iterations"])
    tried = min(whole, ITERATIONS)
    args = {**method.get("args", {}), "iterations": tried}
    began = time.monotonic()
    make_scales(_with(order, spec={**order.spec, "method": {**method, "args": args}}), Stopwatch(0.0))
    return (time.monotonic() - began) * whole / tried


def _with(order: Order, **changes: Any) -> Order:
    return Order(**{**vars(order), **changes})


def try_out(orders: Iterable[dict[str, Any]], seconds: float) -> None:
    """Time one stage after another; print a JSON line for each."""
    for message in orders:
        parents = {role: tuple(value) for role, value in message["parents"].items()}
        with tempfile.TemporaryDirectory(prefix="pilot-") as folder:
            order = Order(**{**message, "parents": parents, "attempt": folder})
            torch.set_num_threads(order.threads)
            said: dict[str, Any] = {"key": order.key}
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    said["seconds"] = {
                        "train": lambda order=order: training_seconds(order, seconds),
                        "mask": lambda order=order: mask_seconds(order),
                        "rescale": lambda order=order: rescale_seconds(order),
                    }[order.kind]()
            except Exception as error:  # told, and the next stage is tried: a pilot ends no sweep
                said["failed"] = f"{type(error).__name__}: {error}"
        print(json.dumps(said), flush=True)  # noqa: T201 - the result of the process


def train_together(message: dict[str, Any], seconds: float, begin: Callable[[], object]) -> float:
    """Return the images a second of a training's steps, timed once others have come as far: `begin` waits for them."""
    parents = {role: tuple(value) for role, value in message["parents"].items()}
    with tempfile.TemporaryDirectory(prefix="pilot-") as folder, contextlib.redirect_stdout(sys.stderr):
        order = Order(**{**message, "parents": parents, "attempt": folder})
        torch.set_num_threads(order.threads)
        set_mode(order.fast)
        order = plain(order)
        run = prepare(order)
        set_execution(order, run)
        _a_step(run, 0.0, 0)
        begin()
        return run.batch / _a_step(run, seconds, 0)


def main() -> None:
    """Time the stages that come in as lines; or, with --together, one beside others that do the same."""
    prepare_process()
    seconds = float(sys.argv[1])
    if "--together" not in sys.argv:
        try_out(map(json.loads, sys.stdin), seconds)
        return
    answers = sys.stdout

    def answer(**message: Any) -> None:
        print(json.dumps(message), file=answers, flush=True)

    def begin() -> None:
        answer(ready=True)
        sys.stdin.readline()

    try:
        answer(images_a_second=train_together(json.loads(sys.stdin.readline()), seconds, begin))
    except Exception as error:  # told: a pilot ends no sweep
        answer(failed=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
