"""What a cell asks of the file system of its store, counted in all its processes: on a network each is a trip."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HOOK = """
import os
import sys

_log = os.open(os.environ["COUNTED_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_root = os.environ["COUNTED_ROOT"]
_seen = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir", "os.truncate"}


def _note(event, arguments):
    if event in _seen and isinstance(arguments[0], (str, os.PathLike)):
        path = os.path.abspath(os.fspath(arguments[0]))
        if path.startswith(_root):
            os.write(_log, f"{event} {path[len(_root) + 1:]}\\n".encode())


sys.addaudithook(_note)
"""
SWEEP = """
name: counted
protocol: {{preset: quick, epochs: {epochs}}}
use: {{thin: "./thin.py:build"}}
grid: {{dataset: digits, arch: thin, mask: random, sparsity: 50%, recipe: default, seed: 0..{last}}}
tables: [any-mask]
figures: []
"""
CELL = 120
"""Operations that a cell may cost, its mask and its share of planning and report included: 106 were counted."""


def operations(folder: Path, cells: int, epochs: int) -> Counter[str]:
    """Run a sweep; return how often its processes called the file system, by kind of call and of file."""
    store, log = folder / "runs", folder / "log"
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    (folder / "counted.yaml").write_text(SWEEP.format(epochs=epochs, last=cells - 1))
    told = {"COUNTED_LOG": str(log), "COUNTED_ROOT": str(store / "stages"), "PYTHONPATH": str(folder / "hook")}
    command = [sys.executable, "-m", "harness.sweep", "counted.yaml", "--workers", "1"]
    subprocess.run(command, cwd=folder, env={**os.environ, **told}, check=True, capture_output=True)
    counted: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        event, _, path = line.partition(" ")
        kind = path.partition("/")[0]
        name = Path(path).name.partition("-")[0].partition(".")[0] if path.count("/") > 2 else "folder"
        counted[f"{event} {kind} {name}"] += 1
    return counted


@pytest.mark.slow
@pytest.mark.long
def test_a_cell_costs_few_file_operations_and_an_epoch_one(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    thin = (project / "thin.py").read_text()
    found = {}
    for cells, epochs in ((2, 2), (10, 2), (2, 12)):
        folder = tmp_path_factory.mktemp("counted")
        (folder / "thin.py").write_text(thin)
        found[cells, epochs] = operations(folder, cells, epochs)
    few, many, longer = (sum(found[key].values()) for key in ((2, 2), (10, 2), (2, 12)))
    assert (many - few) / 8 <= CELL, sorted((found[10, 2] - found[2, 2]).items(), key=lambda item: -item[1])[:20]
    rows = "open train metrics"
    assert found[2, 12][rows] - found[2, 2][rows] == 2 * 10, "an epoch opens its metrics once"
    assert longer - few <= 2 * 10 + 12, "and asks for nothing else, but for heartbeats that fall into it"
