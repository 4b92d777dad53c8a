"""What tests of the mirror share: a small sweep, the real command against the fake server, and a comparison of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.claims import Observer
from harness.index import stand
from harness.planfile import SavedPlan
from harness.store import Store
from harness.tracking.run_record import SUPERSEDED, RunRecord, rerun_id, run_records, split_run_id, stage_infos
from harness.tracking.settings import settings_of
from tests.harness.synthetic import write_store
from tests.tracking.server import KEY, RemoteRun, Server

ROOT = Path(__file__).parents[2]
WANDB = "wandb: {project: mine}\n"
SMALL = """
name: small
protocol: {{preset: quick, epochs: {epochs}}}
grid:
  dataset: digits
  arch: resnet20
  mask: [random, snip]
  sparsity: 90%
  recipe: [default, ls]
  seed: 0..{last_seed}
"""


def small_store(
    folder: Path, seeds: int = 2, epochs: int = 12, wandb: str = WANDB, broken: str = "", name: str = "small"
) -> tuple[Store, SavedPlan]:
    """Write a store with the finished stages of a small sweep: six to a seed. `broken`: a stage that failed."""
    text = SMALL.format(epochs=epochs, last_seed=seeds - 1).replace("name: small", f"name: {name}")
    (folder / f"{name}.yaml").write_text(text + wandb)
    done = {"state": "done", "test": "90.5", "dev": "90.5", "cause": ""}
    return write_store(folder, folder / f"{name}.yaml", lambda place: done, broken)


def surroundings(folder: Path, url: str, **more: str) -> dict[str, str]:
    """Return the environment of a person with a key of that server, whose home is a folder of the test's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    own = {"HOME": str(folder), "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    plain = {"NO_COLOR": "1", "COLUMNS": "160", "WANDB_CONFIG_DIR": str(folder / "config")}
    return {**kept, **own, **plain, **more}


def start_wandb(folder: Path, url: str, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """Start `harness wandb` in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "wandb", *arguments],
        cwd=folder,
        env=surroundings(folder, url, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wandb(folder: Path, url: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `harness wandb` in a folder, to its end."""
    process = start_wandb(folder, url, *arguments, **more)
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def records_of(store: Store, remote: Sequence[str]) -> dict[str, RunRecord]:
    """Return the final records of a store by the id that each has among the runs of a server."""
    reruns: dict[str, int] = {}
    for first, rerun in map(split_run_id, remote):
        reruns[first] = max(rerun, reruns.get(first, 0))
    (settings,) = settings_of(store, [])
    plans = settings.plans(store, print)
    states = {key: state for saved in plans for key, state in stand(saved.plan, store, Observer()).states.items()}
    made = (
        run_records(store, info, states.get(key), "", lambda run: rerun_id(run, reruns.get(run, 0)))
        for key, info in stage_infos(plans).items()
    )
    return {record.id: record for records in made for record in records if record.final}


def rows_of(run: RemoteRun) -> list[dict[str, Any]]:
    """Return a run's rows without what wandb adds."""
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in run.history]


def assert_mirrors(server: Server, store: Store, superseded: int = 0) -> dict[str, RunRecord]:
    """Check that a server has all that the store says, each row once and to its last digit; return the records."""
    remote = {run.id: run for run in server.runs.values()}
    records = records_of(store, list(remote))
    old = set(remote) - set(records)
    assert len(old) == superseded, old
    assert all(SUPERSEDED in remote[name].tags for name in old)
    assert set(records) <= set(remote)
    for name, record in records.items():
        run, sent = remote[name], json.loads(json.dumps(record.payload))
        assert rows_of(run) == sent["rows"], name
        assert not run.conflicting, name
        assert record.state == "stopped" or run.state == record.state, name
        assert {key: run.summary[key] for key in sent["summary"]} == sent["summary"], name
        assert {key: run.config[key] for key in sent["config"]} == sent["config"], name
        assert (run.display_name, run.group, run.job_type) == (record.name, record.group, record.job_type)
        assert sorted(run.tags) == list(record.tags)
    return records


def processes_of(folder: Path) -> list[int]:
    """Return the processes that run for a folder of `surroundings`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"HOME={folder}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
