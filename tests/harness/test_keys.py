"""Keys and tokens of the environment: in no file below the store, no sbatch file, and no word on the terminal."""

from __future__ import annotations

import base64
import gzip
import os
import re
from pathlib import Path

import pandas as pd
import pytest

from harness.launch import Size
from harness.launch.profiles import load_profile
from harness.launch.slurm import Slurm
from harness.store import Store
from tests.conftest import harness, report_command, run_sweep

KEYS = (
    "WANDB_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "GITHUB_TOKEN",
    "GH_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_CLIENT_SECRET",
    "OPENAI_API_KEY",
    "COMET_API_KEY",
    "NEPTUNE_API_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "RAY_REDIS_PASSWORD",
    "SLURM_JWT",
    "MY_OWN_SECRET",
)
PLANTED = "f00dfeed"
"""What every planted key begins with."""
FAILING = """
def score(model):
    raise RuntimeError("no score today")
"""
KEPT = """
name: kept
protocol: {preset: quick, epochs: 1}
use: {thin: "./thin.py:build", failing: "./failing.py:score"}
grid: {dataset: digits, arch: thin, mask: [random, failing], sparsity: 50%, recipe: default, seed: 0}
tables: [any-mask]
wandb: {project: mine, mode: offline}
"""


def contents(path: Path) -> bytes:
    """Return a file's bytes, and what it has packed."""
    data = path.read_bytes()
    if path.suffix == ".html":
        packed = re.findall(r'id="(?:data|curves)">([^<]+)<', data.decode())
        assert packed
        return data + b"".join(gzip.decompress(base64.b64decode(text)) for text in packed)
    return data + pd.read_parquet(path).to_csv().encode() if path.suffix == ".parquet" else data


def fake_slurm(folder: Path) -> Path:
    """Write commands that take a job, and keep its file, as Slurm does."""
    folder.mkdir()
    for name, text in {"sbatch": "echo Submitted batch job 7", "srun": "exit 0", "squeue": "exit 0"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
def test_a_key_of_the_environment_is_written_nowhere(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(KEYS):
        monkeypatch.setenv(name, f"{PLANTED}{number:032x}")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    (project / "failing.py").write_text(FAILING)
    (project / "kept.yaml").write_text(KEPT)
    done = run_sweep(project, "kept.yaml")
    assert "no score today" in done.stderr
    said = [
        done,
        report_command(project, "kept"),
        run_sweep(project, "kept.yaml", "--plan", "--via", "a100", "--store", "other"),
    ]
    assert "#SBATCH" in said[-1].stdout
    said += [harness(project, *words) for words in (("doctor",), ("status", "kept", "--json"), ("wandb", "sync"))]
    monkeypatch.setenv("PATH", f"{fake_slurm(project / 'bin')}{os.pathsep}{os.environ['PATH']}")
    (project / "p.yaml").write_text("partition: gpu\ncpus: 1\nmemory: 1G\ntime: 30\n")
    profile, document = load_profile(project / "p.yaml")
    launcher = Slurm(profile, Store(project / "runs"), "kept", ["kept"], document)
    launcher.begin()
    assert list(launcher.submit(Size(1), 2)) == ["job 7: 2 workers"]
    written = [path for path in project.rglob("*") if path.is_file() and not path.is_symlink()]
    kinds = {"log", "spec.json", "result-0001.json", "report.html", "cells.parquet", "end.json", "launch.json"}
    assert kinds <= {path.name for path in written}
    assert {".sh", ".pkl"} <= {path.suffix for path in written}
    assert [path for path in written if PLANTED.encode() in contents(path)] == []
    assert [run.args for run in said if PLANTED in run.stdout + run.stderr] == []
