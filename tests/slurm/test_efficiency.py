"""What jobs of a profile that requests too much used, told from a real accounting; and that following it works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import until
from tests.slurm.conftest import ONCE, Cluster

pytestmark = pytest.mark.slurm
WIDE = "partition: main\ncpus: 4\nmemory: 6G\ntime: 4:00:00\nworkers: 2\nper_node: 1\nidle: 5s\nnodes_submit: true\n"
KEYS = ("memory: 6G", "cpus: 4", "time: 4:00:00")


@ONCE
@pytest.mark.long
def test_a_profile_that_requests_too_much_is_told_so_and_one_that_follows_is_not(
    cluster: Cluster, project: Path
) -> None:
    profile = project / "wide.yaml"
    profile.write_text(WIDE)
    done = cluster.sweep(project, "tiny.yaml", "--via", "wide.yaml", timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.search(r"used of what was requested \(27 stages\): memory 0\.\d of 6\.0 GiB a process; CPUs", done.stderr)
    assert re.search(r"jobs?: stages ran in \d+% of their \d+ \w+; in the queue \d+ ", done.stderr)
    (advice,) = [line for line in done.stderr.splitlines() if line.startswith("recommended in ")]
    found = re.findall(r"(\w+): (\S+) \(line (\d)\)", advice)
    assert [(key, line) for key, _, line in found] == [("memory", "3"), ("cpus", "2"), ("time", "4")]
    for line, (key, value, _) in zip(KEYS, found, strict=True):
        profile.write_text(profile.read_text().replace(line, f"{key}: {value}"))
    again = cluster.sweep(project, "tiny.yaml", "--via", "wide.yaml", "--store", "again", timeout=600)
    assert again.returncode == 0, again.stderr
    assert "used of what was requested (27 stages)" in again.stderr
    assert "recommended in " not in again.stderr
    until(lambda: not cluster.jobs(), 60, every=0.5)
    command = [sys.executable, "-m", "harness.cli", "status", "tiny", "--json"]
    told = subprocess.run(command, cwd=project, env=cluster.environment, capture_output=True, text=True, timeout=60)
    said = json.loads(told.stdout)["efficiency"]
    assert said["requested"] == {"memory": 6 * 2**30, "cpus": 4, "seconds": 4 * 3600}
    assert said["jobs"]["memory"] >= max(used["memory"] for used in said["used"].values()) > 2**28
