"""How long each mask method scores, and how much memory it takes: a fresh process a figure, a table at the end.

python bench/masks.py --out bench/results/masks-cpu.md
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

NETWORKS = ("resnet18", "vgg16", "resnet104")
METHODS = ("random", "erk", "magnitude", "snip", "taylor", "grasp", "synflow")
KEEP = Fraction(1, 50)
PER_CLASS = 10


def measure(network: str, method: str, device: str, threads: int) -> dict[str, float]:
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


def main() -> None:
    """Measure everything, several times, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "METHOD"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.device, options.threads)))
        return
    lines = [
        f"# Scoring one mask at 2 % density on {options.device}",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {options.threads} threads; CIFAR-10 shapes, {PER_CLASS} "
        f"images a class, default knobs; median of {options.repeats}, each in a fresh process; memory: peak above "
        "the network's own.",
        "",
        "| network | method | seconds | peak MiB |",
        "|---|---|---:|---:|",
    ]
    for network in NETWORKS:
        for method in METHODS:
            command = [sys.executable, __file__, "--one", network, method, "--device", options.device]
            command += ["--threads", str(options.threads)]
            runs = [
                json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                for _ in range(options.repeats)
            ]
            seconds, mib = (statistics.median(run[key] for run in runs) for key in ("seconds", "mib"))
            lines.append(f"| {network} | {method} | {seconds:.1f} | {mib:,.0f} |")
            print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
