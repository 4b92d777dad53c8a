"""Starts of workers by node: those that failed in a row, and the nodes that are excluded for it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.records import CAUSES, Fate
from harness.store import read_json, write_whole

NODE = "node-"
"""What the files of a submission begin with that each job's shell writes first: its node, and what the job is."""
SIGNED_IN = "signed-in-"
"""What the files of a submission begin with that its workers make when their trainer is ready, each with its job.

One that leaves since it could take none of the stages that were free says so in its file."""
OUTSTANDING = "outstanding.json"
"""A file of a submission's cluster and of its jobs that are not known to have ended; gone when all are.

It lists no job, and stays, where sbatch was not answered, so that nobody knows of any."""
OWN_NAME = "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
"""A job's name in its own shell, as the queue shows it: `4711`, or `4711_3` of an array."""
MOST_FAILED = 2
"""Failed starts in a row after which a node is excluded."""
BLAMED = re.compile(r"^srun: error: ([\w.-]+): tasks? [\d,-]+: (?:Exited with|Segmentation|Bus error)", re.MULTILINE)
"""What srun says of the node on which a job of several nodes failed first."""

CANCELLED = re.compile(r"\*\*\* JOB \d+ ON \S+ CANCELLED AT ")
"""What Slurm writes into the log of a job that it ends itself, on whoever's behalf."""


def shell_line(folder: Path) -> str:
    """Return the line of shell by which a job writes down its node."""
    said = f'"$SLURMD_NODENAME $SLURM_JOB_NUM_NODES {OWN_NAME} ${{SLURM_RESTART_COUNT:-0}}"'
    return f'echo {said} > {shlex.quote(f"{folder}/{NODE}")}"$SLURM_JOB_ID"'


def last_words(log: Path | None) -> str:
    """Return the last lines of a job's log."""
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:]) if log else "it left no log"


class Starts:
    """What is known of the nodes that a sweep's workers of one size were started on, a file for each node."""

    def __init__(self, submissions: Path, kind: str) -> None:
        self.submissions, self.kind = submissions, kind
        self.folder = submissions / "nodes" / kind

    def look(self, fate: Callable[[str], Fate | None]) -> None:
        """Count the starts that have succeeded or failed since the last look, the earliest first."""
        found = sorted(self.submissions.glob(f"{self.kind}-*/{NODE}*"), key=lambda path: path.stat().st_mtime)
        for path in found:
            number = path.name.removeprefix(NODE)
            words = path.read_text().split()
            if len(words) != 4:
                continue  # it is being written
            node, nodes, name, restarts = words
            outstanding = read_json(path.parent / OUTSTANDING)
            signed_in = path.parent / f"{SIGNED_IN}{number}"
            # a job that was requeued has an old one too
            if signed_in.exists() and signed_in.stat().st_mtime >= path.stat().st_mtime:
                self._write(node, [])
            elif outstanding and (not outstanding["jobs"] or name in outstanding["jobs"]):
                continue
            elif not ((how := fate(f"{number}.{restarts}")) and how.state in CAUSES):
                logs = {log: log.read_text(errors="replace") for log in sorted(path.parent.glob(f"{name}_*log.out"))}
                if not any(map(CANCELLED.search, logs.values())):  # without accounting a fate is soon forgotten
                    self._failed(node if nodes == "1" else "", name, logs)
            path.unlink()

    def _failed(self, node: str, name: str, logs: Mapping[Path, str]) -> None:
        if not node:
            blamed = [match[1] for text in logs.values() if (match := BLAMED.search(text))]
            node = blamed[0] if blamed else ""
        if node:
            before = (read_json(self.folder / node) or {}).get("failed", [])
            said = f"job {name}: {last_words(next(iter(logs), None))}"
            self._write(node, [*before, said])

    def _write(self, node: str, failed: list[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / node, json.dumps({"failed": failed}).encode())

    def failed(self) -> dict[str, list[str]]:
        """Return by node what its failed starts said, those since the last one that succeeded."""
        nodes = sorted(self.folder.iterdir()) if self.folder.is_dir() else ()
        return {path.name: (read_json(path) or {}).get("failed", []) for path in nodes}

    @property
    def good(self) -> bool:
        """Return whether the last start on some node succeeded."""
        return any(not failed for failed in self.failed().values())

    def bad(self) -> list[str]:
        """Return the nodes on which so many starts in a row failed that they are to be excluded."""
        return [node for node, failed in self.failed().items() if len(failed) >= MOST_FAILED]

    def sentence(self, node: str) -> str:
        """Return what to say of an excluded node."""
        failed = self.failed()[node]
        return (
            f"node {node} is excluded: {len(failed)} workers in a row ended there before they were ready, the last, "
            f"{failed[-1]}; to use it again, remove {self.folder / node}"
        )
