"""Long runs: thousands of tiny cells through two workers that neither grow nor leave anything behind."""

from __future__ import annotations

import os
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.claims import Observer, Process
from harness.clean import find_waste
from harness.planfile import NEWEST, read_plan
from harness.store import Result, Store, file_sha256
from tests.chaos.conftest import Record, amount
from tests.chaos.working import Crew, owners
from tests.conftest import THIN, until

pytestmark = pytest.mark.chaos

AREA = "Long runs"
CELLS = amount(60, 2000)
DATA = """
import numpy as np


def load():
    images, labels = np.random.default_rng(0).integers(0, 256, (16, 4, 4), dtype=np.uint8), np.arange(16) % 2
    return (images, labels), (images, labels)
"""
GRID = f"""
name: soak
protocol: {{preset: quick, epochs: 1, batch: 8, dev: none}}
use: {{thin: "./thin.py:build", few: "./few.py:load"}}
grid:
  dataset: few
  arch: thin
  mask: random
  sparsity: 50%
  recipe: [default, ls]
  seed: 0..{CELLS // 2 - 1}
tables: [any-mask]
figures: []
"""
GROWTH = 1.05
"""How much a process's memory may have grown from the second tenth of its life to the last."""
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Life:
    """A process's resident memory and open files, again and again."""

    process: Process
    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def look(self) -> None:
        """Add what is seen now, while it is there."""
        proc = Path(f"/proc/{self.process.pid}")
        try:
            pages, files = int((proc / "statm").read_text().split()[1]), len(os.listdir(proc / "fd"))
        except (FileNotFoundError, ProcessLookupError):
            return
        if pages and not self.process.gone():
            self.memory.append(pages * PAGE)
            self.files.append(files)

    def growth(self) -> float:
        """Return how many times the memory of the second tenth it has at the end."""
        return statistics.median(_tenth(self.memory, 9)) / statistics.median(_tenth(self.memory, 1))

    def more_files(self) -> float:
        """Return how many files more than in the second tenth it has open at the end."""
        return statistics.median(_tenth(self.files, 9)) - statistics.median(_tenth(self.files, 1))


def _tenth(values: list[int], number: int) -> list[int]:
    return values[len(values) * number // 10 : len(values) * (number + 1) // 10]


def watched(crew: Crew, command: subprocess.Popen[bytes], store: Path) -> list[Life]:
    """Follow a sweep's two workers and their trainers from the first stage of both to the end."""

    def at_work() -> set[Process]:
        return {process for found in owners(store).values() for owner in found for process in owner.processes}

    until(lambda: len(at_work()) == 4)
    lives = [Life(process) for process in at_work()]

    def over() -> bool:
        for life in lives:
            life.look()
        return command.poll() is not None

    until(over, 1500, every=amount(1, 20) / 100)
    assert command.returncode == 0, crew.said(command)
    assert at_work() == {life.process for life in lives}, "a trainer or a worker was replaced"
    return lives


def damaged(store: Store, plan: Path) -> tuple[int, int]:
    """Return how many of a plan's stages have no result, and of how many a file is not what it should be."""
    lost = wrong = 0
    for key, stage in read_plan(plan).plan.stages.items():
        folder = store.folder(stage.kind, key)
        result = Result.load(folder.path / "result-0001.json", 1)
        lost += result is None
        if result is not None:
            whole = file_sha256(folder.path / result.artifact.file) == result.artifact.sha256
            wrong += not (whole and folder.edition == 1)
    return lost, wrong


@pytest.mark.long
def test_thousands_of_cells_leave_workers_as_large_as_they_were(tmp_path: Path, record: Record) -> None:
    for name, text in (("thin.py", THIN), ("few.py", DATA), ("soak.yaml", GRID)):
        (tmp_path / name).write_text(text)
    store = Store(tmp_path / "runs")
    with Crew(tmp_path) as crew:
        command = crew.start("harness.sweep", "soak.yaml", "--workers", "2", "--threads", "1")
        lives = watched(crew, command, store.root)
    plan = store.sweep("soak") / NEWEST
    lost, wrong = damaged(store, plan)
    growth, files = max(life.growth() for life in lives), max(life.more_files() for life in lives)
    found = (
        f"memory of workers and trainers {growth - 1:+.1%} from the second tenth to the last, open files {files:+.0f}"
    )
    record.note("cells one after another in the same two workers", CELLS, found, lost=lost, wrong=wrong)
    assert (lost, wrong) == (0, 0)
    assert min(len(life.memory) for life in lives) >= 50
    assert growth < GROWTH, [(life.growth(), life.memory[:: max(1, len(life.memory) // 20)]) for life in lives]
    assert files <= 0, [life.files[:: max(1, len(life.files) // 20)] for life in lives]
    waste = find_waste(store, read_plan(plan).plan, Observer())
    assert (waste.stages, waste.files, waste.running) == ([], [], 0)
    assert not list(store.root.rglob(".draft-*"))
