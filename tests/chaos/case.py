"""A sweep that nothing disturbed, one that was killed, and copies of them in which files are damaged."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.plan import Plan
from harness.planfile import find_plan, read_plan
from harness.report.measured import Measured, measure
from harness.store import Result, Store
from harness.sweep import app
from tests.conftest import THIN, environment, kill_tree, until

SWEEP = """
name: tiny
protocol: {preset: quick, epochs: 3}
use: {thin: "./thin.py:build"}
grid: {dataset: digits, arch: thin, mask: [random, omp], sparsity: [50%], recipe: default, seed: 0}
also:
  - {mask: dense, recipe: default}
tables: [any-mask]
figures: []
"""


@dataclass(frozen=True)
class Calm:
    """A sweep that nothing disturbed, and the same one killed in its first training."""

    folder: Path
    done: Path
    killed: Path
    plan: Plan
    hashes: Mapping[str, str]
    measured: Mapping[str, Measured]

    def stage(self, role: str) -> tuple[str, str]:
        """Return kind and key of a stage by what the plan calls it."""
        stages = self.plan.stages.values()
        found = {
            "data": [s for s in stages if s.kind == "data"],
            "random": [s for s in stages if s.kind == "mask" and "trained" not in s.parents],
            "omp": [s for s in stages if s.kind == "mask" and "trained" in s.parents],
        }
        trained = found["omp"][0].parents["trained"]
        found["dense"] = [self.plan.stages[trained]]
        for name in ("random", "omp"):
            found[f"{name} trained"] = [s for s in stages if s.parents.get("mask") == found[name][0].key]
        (stage,) = found[role]
        return stage.kind, stage.key


def make_calm(folder: Path) -> Calm:
    """Run the sweep twice in a folder: to its end, and killed in the middle of its dense training."""
    (folder / "thin.py").write_text(THIN)
    (folder / "tiny.yaml").write_text(SWEEP)
    command = [sys.executable, "-m", "harness.sweep", "tiny.yaml", "--workers", "1", "--threads", "1", "--store"]
    killed = subprocess.Popen(
        [*command, "killed", "--only", "mask=dense", "--checkpoint-every", "0", "--lease", "1"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(lambda: len(list(folder.glob("killed/stages/train/*/*/attempt-*/checkpoint-*"))) > 1)
    kill_tree(killed.pid)
    killed.wait()
    assert not list(folder.glob("killed/stages/train/*/*/result-*")), "it was killed in the middle"
    subprocess.run([*command, "done"], cwd=folder, env=environment(), check=True, capture_output=True)
    store = Store(folder / "done")
    plan = read_plan(find_plan(store, "tiny")).plan
    return Calm(
        folder,
        store.root,
        folder / "killed",
        plan,
        {key: result.artifact.sha256 for key, result in _results(store, plan).items()},
        {key: found for key in plan.stages if (found := measure(store, key))},
    )


def _results(store: Store, plan: Plan) -> dict[str, Result]:
    found = ((key, store.folder(stage.kind, key).result()) for key, stage in plan.stages.items())
    return {key: result for key, result in found if result is not None}


class Case:
    """A copy of a store with one damaged file, and what the real command makes of it."""

    def __init__(self, calm: Calm, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calm, self.store, self.said = calm, Store(root), ""
        monkeypatch.chdir(calm.folder)

    def path(self, role: str) -> Path:
        return self.store.path(*self.calm.stage(role))

    def forget(self, *roles: str) -> None:
        """Let stages be made again, whose parents are read for that."""
        for role in roles:
            shutil.rmtree(self.path(role))

    def artifact(self, role: str) -> Path:
        return self.path(role) / f"{self.calm.hashes[self.calm.stage(role)[1]]}.safetensors"

    def sweep(self, *arguments: str) -> int:
        """Run the sweep command; a traceback fails the test."""
        given = ["tiny.yaml", "--via", "debug", "--threads", "1", "--yes", "--store", str(self.store.root)]
        done = CliRunner().invoke(app, [*given, *arguments])
        self.said += done.output
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        assert "Traceback" not in done.output
        return done.exit_code

    def amiss(self, dense_only: bool = False) -> tuple[int, int]:
        """Return how many results are lost, and how many are wrong."""
        wanted = dict(self.calm.hashes)
        if dense_only:
            wanted = {key: wanted[key] for _, key in map(self.calm.stage, ("data", "dense"))}
        there = _results(self.store, self.calm.plan)
        lost = sum(key not in there for key in wanted)
        wrong = sum(there[key].artifact.sha256 != sha256 for key, sha256 in wanted.items() if key in there)
        wrong += sum(path.name not in self.calm.plan.stages for path in self.store.root.glob("stages/*/*/*"))
        return lost, wrong
