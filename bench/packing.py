"""Packing: images a second of several workers on one device together, and cells of a real sweep in an hour."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.cells import SWEEP
from bench.figures import Given, Row, command
from bench.training import NOISE

NETWORKS = {"cpu": ("resnet20", "resnet32"), "cuda": ("resnet20", "resnet32", "resnet18")}
COUNTS = {"cpu": (1, 2), "cuda": (1, 2, 4, 8)}
CELLS = 8
EPOCHS = {"cpu": 2, "cuda": 4}
IMAGES = {"cpu": 1_000, "cuda": 12_800}


def measure(given: Given) -> Iterator[Row]:
    """Yield a row for every network and number of workers; a worker has its share of the threads."""
    kind = "cuda" if given.device.startswith("cuda") else "cpu"
    for network in NETWORKS[kind][:1] if given.small else NETWORKS[kind]:
        alone = 0.0
        for workers in (count for count in COUNTS[kind] if count <= max(given.threads, 1) or kind == "cuda"):
            seconds = _seconds(network, workers, kind, given)
            hourly = 3600 * CELLS / seconds
            alone = alone or hourly
            yield {
                "network": network,
                "workers": workers,
                "threads each": max(1, given.threads // workers),
                "cells": CELLS,
                "seconds": seconds,
                "cells an hour": hourly,
                "times one worker": hourly / alone,
            }


def _seconds(network: str, workers: int, kind: str, given: Given) -> float:
    """Return what a sweep takes whose images, masks and first cell are there: workers' start included."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        epochs, images = (1, 64) if given.small else (EPOCHS[kind], IMAGES[kind])
        text = SWEEP.format(arch=network, recipe="default", epochs=epochs, batch=128, last=CELLS)
        (folder / "cells.yaml").write_text(text)
        (folder / "data").mkdir()
        (folder / "noise.py").write_text(NOISE.format(images=images, size=32))
        threads = str(max(1, given.threads // workers))
        told = ("harness.sweep", "cells.yaml", "--device", given.device, "--threads", threads)
        command(*told, "--workers", "1", "--only", f"seed={CELLS}", cwd=folder)
        began = time.perf_counter()
        command(*told, "--workers", str(workers), cwd=folder)
        return time.perf_counter() - began
