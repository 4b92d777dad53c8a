"""How the tests themselves are run: one that dies or hangs fails by its name, and the suite ends."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OTHERS = """
def test_before(): pass
def test_after(): pass
"""
FAULTS = {
    "dies": "def test_dies():\n    import os\n    os.abort()\n",
    "spins": "def test_spins():\n    import ctypes\n    ctypes.PyDLL(None).sleep(600)\n",
}
"""The second keeps Python's lock: no handler and no thread of Python gets a turn."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_test_that_dies_or_hangs_fails_by_name_and_ends_the_suite(fault: str, tmp_path: Path) -> None:
    asked = ["make", "--silent", "--no-print-directory", "--eval", "options: ; @echo $(SIDE_BY_SIDE)", "options"]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    _, _, options = said.stdout.partition(" -m pytest ")
    assert "--max-worker-restart 0" in options
    for name in "abcd":
        (tmp_path / f"test_{name}.py").write_text(OTHERS)
    (tmp_path / f"test_{fault}.py").write_text(OTHERS + FAULTS[fault])
    command = [sys.executable, "-m", "pytest", *shlex.split(options), "-c", str(ROOT / "setup.cfg")]
    command += ["--rootdir", str(tmp_path), "-o", "faulthandler_timeout=5", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert f"FAILED test_{fault}.py::test_{fault}" in done.stdout
    assert f"in test_{fault}" in done.stderr + done.stdout, "where it was is shown"
