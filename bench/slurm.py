"""What a stage costs through Slurm: 3,000 one-step trainings by two workers of the development cluster.

Overhead is the workers' time less the seconds that the trainings themselves took. The scheduler's own counters say how
often it was asked. Needs root and Slurm's packages (see slurm/devcluster).
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Given, Row

STAGES, WORKERS = 3000, 2
DEVCLUSTER = Path(__file__).resolve().parents[1] / "slurm" / "devcluster"
ASKING = ("REQUEST_JOB_INFO", "REQUEST_JOB_USER_INFO", "REQUEST_JOB_INFO_SINGLE")
"""What squeue and scontrol show job send; squeue sends others beside it."""

SWEEP = f"""
name: many
protocol: {{preset: quick, epochs: 1, batch: 2000, warmup: 0, milestones: [], dev: none}}
use: {{thin: "./thin.py:build"}}
grid: {{dataset: digits, arch: thin, mask: dense, seed: 0..{STAGES - 2}}}
"""
THIN = """
from torch import nn


def build(classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, classes))
"""
PROFILE = f"""
partition: main
cpus: 1
memory: 1500M
time: 60
workers: {WORKERS}
array: 1
idle: 15s
nodes_submit: true
"""


def measure(given: Given) -> Iterator[Row]:
    """Start a cluster, run the sweep through it, yield what it cost."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path must be short
    (folder / "thin.py").write_text(THIN)
    (folder / "many.yaml").write_text(SWEEP)
    (folder / "dev.yaml").write_text(PROFILE)
    environment = {**os.environ, "SLURM_CONF": str(folder / "cluster" / "etc" / "slurm.conf")}
    cluster = [sys.executable, str(DEVCLUSTER)]
    subprocess.run([*cluster, "start", "--folder", str(folder / "cluster")], check=True)
    try:
        began, asked = time.monotonic(), questions(environment)
        command = [sys.executable, "-m", "harness.sweep", "many.yaml", "--via", "dev.yaml"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        wall, asked = time.monotonic() - began, questions(environment) - asked
        sizes = arrays(environment)
    finally:
        subprocess.run([*cluster, "stop", "--folder", str(folder / "cluster")], check=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    ends, seconds = [], []
    for path in folder.glob("runs/stages/train/*/*/result-0001.json"):
        ends.append(path.stat().st_mtime_ns / 1e9)
        seconds.append(json.loads(path.read_text())["result"]["provenance"]["seconds"])
    ends.sort()
    busy = (ends[-1] - ends[0]) * WORKERS
    overhead = (busy - sum(seconds)) / len(seconds)
    yield {
        "stages": len(seconds),
        "seconds": wall,
        "a training, ms": 1000 * statistics.median(seconds),
        "overhead of a stage, ms": 1000 * overhead,
        "tasks of array jobs": str(sizes),
        "questions to the scheduler": asked,
    }


def questions(environment: dict[str, str]) -> int:
    """Return how often the controller was asked about jobs."""
    told = subprocess.run(["sdiag"], env=environment, capture_output=True, text=True, check=True).stdout  # noqa: S607
    counts: Counter[str] = Counter()
    for name, number in re.findall(r"^\s*(REQUEST_\w+)\s*\(\s*\d+\)\s*count:(\d+)", told, re.MULTILINE):
        counts[name] = max(counts[name], int(number))
    return sum(counts[name] for name in ASKING)


def arrays(environment: dict[str, str]) -> list[int]:
    """Return how many tasks each array job had."""
    told = ["sacct", "--noheader", "--allocations", "--format=jobid%40", "--starttime=now-1day"]
    jobs = subprocess.run(told, env=environment, capture_output=True, text=True, check=True).stdout.split()
    return sorted(Counter(job.partition("_")[0] for job in jobs).values())
