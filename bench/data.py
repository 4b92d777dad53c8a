"""Batches of CIFAR-10's shape by second: the harness's, and those of a loader of single images.

Both crop at random from 4 pixels of padding, flip, scale and shuffle; noise has the place of the images. What is timed
ends with batches on the device. The ratio is to the per-image loader with as many workers as threads.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.figures import Given, Row, spread
from bench.per_image import loader
from harness.train.decode import Decoded
from harness.train.images import Images, encode

BATCH = 128
WARM_UP = 10
"""Batches that are not timed: workers start, and fill their queues."""
SPEC = {"dev": "none", "normalize": "measured", "augment": {"pad": 4, "flip": True}}

Draw = Callable[[], Iterator[Tensor]]
"""Makes batches on the device, without end."""


def measure(given: Given) -> Iterator[Row]:
    """Yield a row for each way to make batches, all of them measured in turn in every repeat."""
    count, seconds = (2_000, 0.2) if given.small else (50_000, given.seconds)
    workers = max(1, given.threads)
    torch.set_num_threads(workers)
    decoded, device = _noise(count), torch.device(given.device)
    pixels = torch.from_numpy(decoded.train_images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.safetensors"
        tensors, about = encode(decoded, 0, "noise")
        save_file(tensors, path, about)
        near, far = (Images(path, SPEC, device, resident) for resident in (True, False))
        ways: dict[tuple[str, int | None], Draw] = {
            ("harness, images on the device", None): lambda: _ours(near),
            ("harness, images mapped on the host", None): lambda: _ours(far),
            ("per image", workers): lambda: _theirs(pixels, workers, device),
            ("per image", 0): lambda: _theirs(pixels, 0, device),
        }
        rates: dict[tuple[str, int | None], list[float]] = {way: [] for way in ways}
        for way in [*ways] * given.repeats:
            rates[way].append(_rate(ways[way](), seconds))
    usual = statistics.median(rates["per image", workers])
    for (pipeline, helpers), found in rates.items():
        yield {
            "pipeline": pipeline,
            "threads": workers,
            "workers": helpers,
            "batch": BATCH,
            "images": count,
            "images_per_second": spread(found),
            "ratio": statistics.median(found) / usual,
        }


def _noise(count: int) -> Decoded:
    draws = np.random.default_rng(0)
    pixels, labels = draws.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % 10
    return Decoded(pixels, labels, pixels[:100], labels[:100], tuple("0123456789"))


def _ours(images: Images) -> Iterator[Tensor]:
    for epoch in itertools.count():
        for _, batch, _ in images.epoch(0, epoch, BATCH, 0):
            yield batch


def _theirs(images: Tensor, workers: int, device: torch.device) -> Iterator[Tensor]:
    batches = loader(images, BATCH, workers)
    while True:
        for batch, labels in batches:
            labels.to(device, non_blocking=True)
            yield batch.to(device, non_blocking=True)


def _rate(batches: Iterator[Tensor], seconds: float) -> float:
    """Return the images a second of the batches drawn in so many seconds."""
    for _ in range(WARM_UP):
        last = next(batches)
    wait = torch.cuda.synchronize if last.is_cuda else lambda: None
    wait()
    drawn, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        drawn += len(next(batches))
    wait()
    return drawn / (time.perf_counter() - began)
