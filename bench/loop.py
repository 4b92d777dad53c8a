"""Training steps: images a second of the trainer's loop and of the reference loop, and the share of the peak."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch

from bench.figures import Given, Row, spread
from bench.peak import products
from bench.reference_loop import step_seconds
from bench.training import BATCH, GHOSTS, IMAGES, SIZE, Stopwatch, orders, timed_steps
from harness.train.execution import COMPILED, EAGER
from harness.train.process import prepare_process
from tost.accounting import layers
from tost.catalog import MODELS, resolve

NETWORKS = {
    "cpu": ("resnet18", "resnet20", "resnet32", "vgg16", "mobilenet"),
    "cuda": (
        "resnet18",
        "resnet50",
        "resnet20",
        "resnet32",
        "resnet56",
        "resnet104",
        "vgg16",
        "mobilenet",
        "mobilenetv2",
    ),
}
PRECISIONS = ("fp32", "bf16")


def measure(given: Given) -> Iterator[Row]:
    """Yield a row for every network and precision: the reference, fp32 as it is, stands beside both."""
    prepare_process()
    torch.set_num_threads(given.threads)
    cuda = given.device.startswith("cuda")
    networks = ("resnet20",) if given.small else NETWORKS["cuda" if cuda else "cpu"]
    batch, images = (8, 500) if given.small else (BATCH, IMAGES)
    noise = torch.randint(256, (images, SIZE, SIZE, 3), dtype=torch.uint8)
    peak = {name: statistics.median(products(given, name, 10)) for name in PRECISIONS}
    for network in networks:
        reference = spread(
            [
                batch / one
                for one in step_seconds(
                    network, given.device, noise, batch, given.threads, given.seconds, given.repeats
                )
            ]
        )
        account = layers(resolve(MODELS[network].path)(10), (3, SIZE, SIZE)).values()
        operations = 3 * sum(layer.dense_flops for layer in account)  # forward, and backward twice as much
        with tempfile.TemporaryDirectory() as folder:
            made = orders(Path(folder), given.device, [network], PRECISIONS, ["default", GHOSTS], batch, images)
            for order, way in product(made, (EAGER, *(COMPILED if cuda else ()))):
                watch = Stopwatch(given.seconds, given.repeats)
                said = timed_steps(order, watch, way)
                speed = spread([batch / one for one in watch.a_step])
                plain = said["recipe"] == "default"
                share = operations * float(speed["median"]) / 1e12 / peak[said["precision"]]
                yield {
                    **said,
                    "images/s": speed,
                    "reference": reference,
                    "times the reference": float(speed["median"]) / float(reference["median"]),
                    "% of peak": 100 * share if plain else None,
                }
