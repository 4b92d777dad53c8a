"""File systems: `harness doctor` names what a broken one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.conftest import Record
from tests.chaos.far import compiled, compiler, far_environment

AREA = "File systems"
pytestmark = pytest.mark.chaos

far = pytest.mark.skipif(compiler is None, reason="needs a C compiler")
LIES = {"excl": "O_EXCL", "link": "link"}
DOCTOR = [sys.executable, "-m", "harness.cli", "doctor", "--store"]


@far
@pytest.mark.parametrize("lie", LIES)
def test_a_promise_that_is_broken_is_named_with_its_remedy(lie: str, tmp_path: Path, record: Record) -> None:
    store = tmp_path / "store"
    environment = far_environment(compiled(tmp_path), store.absolute(), "here", LIES=lie)
    done = subprocess.run([*DOCTOR, str(store)], env=environment, capture_output=True, text=True, timeout=120)
    named = f"breaks what claims and results rest on: {LIES[lie]}: of 16 new names" in done.stdout
    record.note(f"{LIES[lie]} gives one name to several", 1, "`harness doctor` names it", wrong=int(not named))
    assert named, done.stdout + done.stderr
    assert done.returncode == 1
    assert "-> put the store on a file system" in done.stdout
    assert not list(store.iterdir()), "nothing of the trial is left"
