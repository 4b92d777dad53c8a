"""Where a training step's time goes: measured without a profiler, then looked at with torch's, on one screen."""

from __future__ import annotations

import contextlib
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from harness.errors import UserError
from harness.train.ceiling import SIDE, product
from harness.train.loop import Enough, Watcher, train
from harness.train.order import Order
from harness.train.run import Training
from harness.train.training import prepare
from tost.accounting import step_operations

WARM_UP = 3
"""Steps before anything is measured: the first ones load kernels and grow memory."""
LOOKED_AT = 5
"""Steps under the profiler, which slows them down."""
PRODUCTS = 5
SHOWN = 6
"""Operations of the rest that are named."""
REST = "everything else"
SORTS = {
    "convolutions and matrix products": r"conv|(^|_|:)(b|add|badd)?mm(_|$|backward)|matmul|linear|gemm|mkldnn|onednn",
    "batch norm": r"batch_?norm",
    "masks, and looking for divergence": r"masked_fill|_amp_foreach",
    "optimizer": r"optimizer|_fused_|_foreach_",
    "pooling and activations": r"pool|relu|silu|threshold|softplus|sigmoid|tanh|gelu|mish|clamp",
    "loss": r"softmax|nll|cross_?entropy|one_hot",
    "batches: picked, cropped, scaled": r"index_select|randperm|aten::flip|aten::index|bitwise",
    "copies and changes of layout": r"copy|clone|contiguous|aten::to$|empty|zeros|fill_|zero_",
}
"""By sort, how operations of it are called."""


class Lens(Watcher):
    """A watcher that times some steps, then puts others under the profiler, and ends the loop."""

    def __init__(self, steps: int) -> None:
        self.timed = steps
        self.seconds: list[float] = []
        self.taken, self.last = 0, 0.0
        self.profiler: Any = None
        self.looked, self.wall = 0, 0.0
        """Steps under the profiler, and the seconds that they took."""

    def after_epoch(self, training: Training) -> None:
        """See an epoch done: what it took to evaluate is none of a step's time."""
        self.last = time.perf_counter()

    def after_step(self, training: Training, due: Callable[[], None]) -> None:
        """See a step done; its loss is read, so that a device has finished it."""
        due()
        now = time.perf_counter()
        self.taken += 1
        if WARM_UP < self.taken <= WARM_UP + self.timed:
            self.seconds.append(now - self.last)
        if self.profiler is not None:
            self.looked, self.wall = self.looked + 1, self.wall + now - self.last
            if self.looked == LOOKED_AT:
                self.profiler.stop()
                raise Enough
        elif self.taken >= WARM_UP + self.timed and _room(training):
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if training.images.device.type == "cuda" else []
            self.profiler = profile(activities=activities)
            self.profiler.start()
        self.last = time.perf_counter()


def _room(training: Training) -> bool:
    """Return whether the steps to be looked at come before the epoch's evaluation, which is none of a step's work."""
    return training.position.step + LOOKED_AT <= training.steps or training.steps <= LOOKED_AT


def look_closely(order: Order, steps: int, trace: Path) -> list[str]:
    """Return in lines where a training's time goes, and what stands in the way of more; write the profiler's trace.

    Raises UserError where the training is too short to be timed.
    """
    if order.device.split(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"--profile: torch's profiler knows nothing of {order.device}; --device cpu or cuda")
    run = prepare(order)
    total = run.steps * (run.until - run.position.epoch)
    if total <= WARM_UP + LOOKED_AT:
        raise UserError(f"--profile looks at {WARM_UP + LOOKED_AT + 1} steps or more; this training has {total}")
    operations = run.batch * step_operations(run.model, run.whole_criterion(), run.images.shape)
    lens = Lens(min(steps, total - WARM_UP - LOOKED_AT))
    with contextlib.suppress(Enough):
        train(run, lens)
    if lens.looked < LOOKED_AT:
        raise UserError(f"--profile: this training ends before it has been looked at; take fewer than {steps} --steps")
    lens.profiler.export_chrome_trace(str(trace))
    second = statistics.median(lens.seconds)
    best = peak(order.device, run.precision)
    return [
        f"{1000 * second:.2f} ms a step (median of {len(lens.seconds)}), {run.batch / second:,.0f} images/s: batch "
        f"{run.batch}, {run.precision}, {order.device}, {order.threads} CPU threads",
        "",
        *_shares(lens.profiler.key_averages(), lens.wall if run.images.device.type == "cuda" else None),
        "",
        f"arithmetic: {operations / 1e9:.3g} GFLOP a step, {operations / second / 1e12:.3g} TFLOP/s; a large matrix "
        f"product does {best / 1e12:.3g} here",
        f"ceiling: {run.batch * best / operations:,.0f} images/s, if all of it were such products; this is "
        f"{100 * operations / second / best:.0f} % of that",
        f"trace: {trace} (open it in https://ui.perfetto.dev or chrome://tracing)",
    ]


def peak(device: str, precision: str) -> float:
    """Return the operations a second of a large matrix product: the median of a few."""
    side = SIDE["cuda" if device.startswith("cuda") else "cpu"]
    once, seconds = product(device, precision, side), []
    for _ in range(PRODUCTS + 1):
        began = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - began)
    return float(2 * side**3 / statistics.median(seconds[1:]))


def sort_of(operation: str) -> str:
    """Return what an operation of the profiler's is counted as, nothing where it is of the rest."""
    return next((sort for sort, pattern in SORTS.items() if re.search(pattern, operation, re.IGNORECASE)), "")


def _shares(events: Iterable[Any], wall: float | None) -> list[str]:
    """Return by sort of operation its share of the time, on a device or on the CPU.

    `wall`: on a device, the seconds that the steps took, some of which it may have had nothing to do.
    """
    sorts: dict[str, float] = defaultdict(float)
    rest: dict[str, float] = defaultdict(float)
    for event in events:
        if event.device_type.name == "CUDA":
            continue  # kernels, which the operations that launched them account for
        spent = event.self_cpu_time_total if wall is None else event.self_device_time_total
        sort = sort_of(event.key)
        sorts[sort or REST] += spent
        if not sort:
            rest[event.key] += spent
    if wall is not None and (idle := 1e6 * wall - sum(sorts.values())) > 0:
        sorts["device idle: it waits for the CPU"] = idle
    whole = max(sum(sorts.values()), 1e-9)
    lines = [f"{'time under the profiler':36s}  share  ms a step"]
    lines += [
        f"{sort:36s} {100 * spent / whole:5.1f} %  {spent / 1000 / LOOKED_AT:9.3f}"
        for sort, spent in sorted(sorts.items(), key=lambda pair: -pair[1])
        if spent
    ]
    largest = sorted(rest.items(), key=lambda pair: -pair[1])[:SHOWN]
    named = ", ".join(f"{name} {100 * spent / whole:.1f} %" for name, spent in largest if spent)
    return [*lines, f"  {REST}: {named}"] if named else lines
