"""What many tests of the mirror need: the real command against the fake server, and all that it holds compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.claims import Observer
from harness.index import stand
from harness.store import Store
from harness.track.about import about_stages
from harness.track.ledger import read_turns
from harness.track.page import Page
from harness.track.target import plans_of, shards_of, wishes
from harness.track.writer import Writer
from tests.track.account import Account
from tests.track.remote import RemoteRun
from tests.track.server import KEY

ROOT = Path(__file__).parents[2]
WANDB = "wandb: {project: mine}\n"


def surroundings(folder: Path, url: str, **more: str) -> dict[str, str]:
    """Return the environment of a person with a key of that server, whose home is a folder of the test's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    own = {"HOME": str(folder), "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    plain = {"NO_COLOR": "1", "COLUMNS": "160", "WANDB_CONFIG_DIR": str(folder / "config")}
    return {**kept, **own, **plain, **more}


def wandb(folder: Path, url: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `harness wandb` in a folder, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", "wandb", *arguments],
        cwd=folder,
        env=surroundings(folder, url, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def pages_of(store: Store) -> dict[str, Page]:
    """Return what every run should say, by id."""
    found: dict[str, Page] = {}
    for wish in wishes(store):
        plans = plans_of(store, wish)
        abouts = about_stages(plans)
        (folder,) = [path for path in (store.root / "wandb").iterdir() if not path.name.startswith("offline")]
        shards = shards_of(folder, wish.project, wish.shard_by, list(abouts.values()))
        writer = Writer(store, shards.of, wish.artifacts, read_turns(folder))
        for saved in plans:
            states = stand(saved.plan, store, Observer(), keep=False).states
            for key, about in abouts.items():
                found |= {page.id: page for page in writer.pages(about, states.get(key)) if page.state != "running"}
    return found


def rows_of(run: RemoteRun) -> list[dict[str, Any]]:
    """Return a run's rows without what wandb adds."""
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in run.history]


def assert_mirrors(server: Account, store: Store, superseded: int = 0) -> dict[str, Page]:
    """Check that a server holds exactly what the store says: runs, rows, summaries, words. Return the pages."""
    pages = pages_of(store)
    remote = {run.id: run for run in server.runs.values()}
    old = {name for name in remote if name not in pages}
    assert len(old) == superseded, old
    assert all("superseded" in remote[name].tags for name in old)
    assert set(pages) <= set(remote)
    for name, page in pages.items():
        run = remote[name]
        assert rows_of(run) == [dict(row) for row in page.rows], name
        assert not run.conflicting, name
        assert run.state == {"finished": "finished", "failed": "failed", "stopped": run.state}[page.state], name
        told = json.loads(json.dumps(page.told["summary"]))
        assert {key: run.summary[key] for key in told} == told, name
        extra = {key for key in run.summary if key not in told and not key.startswith("_")}
        assert extra <= {key for row in page.rows for key in row}, name
        words: Mapping[str, Any] = {"group": run.group, "job_type": run.job_type, "notes": run.notes}
        assert words == {"group": page.group, "job_type": page.job_type, "notes": page.notes}
        assert sorted(run.tags) == list(page.tags), (run.tags, page.tags, run.id)
        assert run.display_name == page.name
        config = json.loads(json.dumps(page.told["config"]))
        assert {key: run.config[key] for key in config} == config
    return pages


def left_over(folder: Path) -> list[str]:
    """Return the processes of a mirror that still run for a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"HOME={folder}\0".encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found
