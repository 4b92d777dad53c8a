"""The documentation's page on Slurm: its commands as they stand, on a real cluster in place of the reader's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import blocks
from tests.slurm.conftest import ONCE, Cluster, write_profile

pytestmark = [pytest.mark.slurm, pytest.mark.long]
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "slurm.md"
SHARED = "/shared"
"""The page's folder that all nodes see."""


@ONCE
def test_the_pages_commands_run(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    ran = []
    for block in blocks(PAGE.read_text()):
        if block.language == "yaml":
            (tmp_path / block.file).write_text(block.text)
        if block.file == "profile.yaml":
            write_profile(tmp_path, block.file)
        if block.title not in ("", "on a cluster") or block.language != "sh":
            continue
        for words in block.commands():
            given = [word.replace(SHARED, str(tmp_path / "shared")) for word in words]
            command = [sys.executable, "-m", "harness.cli", *given]
            done = subprocess.run(
                command, cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
            ran.append(words[0])
    assert {"sweep", "tick", "doctor", "data"} <= set(ran)
