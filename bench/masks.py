"""How long each mask method scores, and how much memory it takes: a fresh process a figure."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from fractions import Fraction

from bench.figures import ROOT, Given, Row, command, spread

NETWORKS = ("resnet18", "vgg16", "resnet104")
METHODS = ("random", "erk", "magnitude", "snip", "taylor", "grasp", "synflow")
KEEP = Fraction(1, 50)
PER_CLASS = 10


def score(network: str, method: str, device: str, threads: int) -> dict[str, float]:
    """Find one mask of CIFAR-10's shape in this process; return seconds, and MiB above what the network takes."""
    import torch

    from tost.catalog import MASKS, MODELS, resolve, settings
    from tost.masks import find_masks, keep_count, prunable

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = resolve(MODELS[network].path)(10).to(device)
    total = sum(weight.numel() for weight in prunable(net).values())
    images, labels = (
        torch.randn(10 * PER_CLASS, 3, 32, 32, device=device),
        torch.arange(10 * PER_CLASS, device=device) % 10,
    )
    knobs = settings(MASKS[method], {})
    composed = {name: knobs[name] for name in ("steps", "scope") if name in knobs}
    halves = list(zip(images.split(50), labels.split(50), strict=True))
    offered = {**knobs, "batches": halves, "shape": (3, 32, 32), "generator": torch.Generator().manual_seed(0)}
    before = _peak(device)
    began = time.perf_counter()
    find_masks(
        resolve(MASKS[method].path),
        net,
        keep_count(total, KEEP),
        density=KEEP,
        offered=offered,
        **composed,  # type: ignore[arg-type]
    )
    return {"seconds": time.perf_counter() - began, "mib": _peak(device) - before}


def _peak(device: str) -> float:
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    import torch

    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def measure(given: Given) -> Iterator[Row]:
    """Yield a row for every network and method; each measurement is a process of its own."""
    for network in NETWORKS[:1] if given.small else NETWORKS:
        for method in METHODS:
            told = (network, method, given.device, str(given.threads))
            runs = [json.loads(command("bench.masks", *told, cwd=ROOT).stdout) for _ in range(given.repeats)]
            seconds, memory = (spread([run[name] for run in runs]) for name in ("seconds", "mib"))
            yield {"network": network, "method": method, "seconds": seconds, "peak MiB": memory}


if __name__ == "__main__":
    print(json.dumps(score(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))
