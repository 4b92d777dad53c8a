"""What the machine can do: a large matrix product in each precision, and a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.figures import Given, Row, spread, timed
from harness.train.ceiling import SIDE, product

BYTES = {"cpu": 2**28, "cuda": 2**31}
ROUNDS = 5
"""Measurements for each repeat that is asked for: they are short."""


def measure(given: Given) -> Iterator[Row]:
    """Yield the TFLOP/s of products and the GB/s, read and written, of a copy."""
    torch.set_num_threads(given.threads)
    repeats = ROUNDS * given.repeats
    for precision in ("fp32", "bf16"):
        yield {"what": f"matrix product, {precision}", "TFLOP/s": spread(products(given, precision, repeats))}
    source = torch.empty(_of(BYTES, given), dtype=torch.uint8, device=given.device)
    into = torch.empty_like(source)
    seconds = timed(_waited(lambda: into.copy_(source), given), repeats)
    yield {"what": "copy", "GB/s": spread([2 * source.numel() / one / 1e9 for one in seconds])}


def products(given: Given, precision: str, repeats: int) -> list[float]:
    """Return the TFLOP/s of a square matrix product, fp32 without TF32."""
    side = _of(SIDE, given)
    return [2 * side**3 / one / 1e12 for one in timed(product(given.device, precision, side), repeats)]


def _of(sizes: dict[str, int], given: Given) -> int:
    size = sizes["cuda" if given.device.startswith("cuda") else "cpu"]
    return size // 8 if given.small else size


def _waited(work: Callable[[], Tensor], given: Given) -> Callable[[], None]:
    def whole() -> None:
        work()
        if given.device.startswith("cuda"):
            torch.cuda.synchronize()

    return whole
