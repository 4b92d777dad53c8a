"""At the same time: two who run the same sweep, one who edits it meanwhile, and machines whose clocks disagree."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.planfile import read_plan
from tests.chaos.conftest import Record, amount
from tests.chaos.working import Crew, Held, astray, held, outcomes, owners
from tests.conftest import THIN, descendants, kill_tree, results, run_sweep, save_whole_plan, send, until

pytestmark = pytest.mark.chaos

AREA = "At the same time"
GRID = f"""
name: tiny
protocol: {{preset: quick, epochs: {amount(8, 30)}}}
use: {{thin: "./thin.py:build"}}
grid:
  dataset: digits
  arch: thin
  mask: random
  sparsity: [50%, 70%]
  recipe: [default, ls]
  seed: 0..1
also:
  - {{mask: dense, recipe: default}}
tables: [any-mask]
figures: []
"""
RUN = ("harness.sweep", "tiny.yaml", "--workers", "1", "--threads", "1")
FROM, TO = "recipe: [default, ls]\n  seed: 0..1", "recipe: [default]\n  seed: 0..2"
"""An edit of the file: a recipe less and a seed more."""
GROUP = 100
"""A group that both accounts are put into, with the folder that they share."""
ACCOUNTS = ("daemon", "nobody")


def becoming(name: str) -> list[str]:
    """Return a command that runs another as an account, which may write no more than that but read this code."""
    reads = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    return ["setpriv", f"--reuid={name}", f"--regid={GROUP}", "--clear-groups", *reads]


can_become_others = (
    shutil.which("setpriv") is not None
    and os.getuid() == 0
    and all(
        subprocess.run([*becoming(name), sys.executable, "-c", ""], capture_output=True, check=False).returncode == 0
        for name in ACCOUNTS
    )
)


def write(folder: Path) -> Path:
    (folder / "thin.py").write_text(THIN)
    (folder / "tiny.yaml").write_text(GRID)
    return folder


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the store of an undisturbed run of all that the file and its edit ask for."""
    folder = write(tmp_path_factory.mktemp("calm"))
    (folder / "tiny.yaml").write_text(GRID.replace("seed: 0..1", "seed: 0..2"))
    done = run_sweep(folder, "tiny.yaml", "--workers", "2", "--threads", "1")
    assert done.returncode == 0, done.stderr
    return folder / "runs"


def training(store: Path) -> Held | None:
    """Return a training that somebody works on, past its first epoch."""
    for one in held(store):
        if "train" in one.folder.path.parts and (one.folder.attempt(one.generation) / "metrics.jsonl").exists():
            return one
    return None


def crews(store: Path) -> set[int]:
    """Return the workers that have ever held a stage."""
    return {owner.processes[0].pid for found in owners(store).values() for owner in found}


def freeze(one: Held, number: int = signal.SIGSTOP) -> None:
    send([one.supervisor.pid, one.trainer.pid], number)


@pytest.fixture
def shared() -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Return a folder for two users, and how each starts a command: with an account of its own, where that may be."""
    folder = Path(tempfile.mkdtemp(prefix="shared-"))
    write(folder)
    users: list[dict[str, Any]] = [{"umask": 0o002}, {"umask": 0o022}]
    if can_become_others:
        os.chown(folder, -1, GROUP)
        folder.chmod(0o2775)
        users = [as_user(name, folder) for name in ACCOUNTS]
    yield folder, users
    shutil.rmtree(folder)


def as_user(name: str, folder: Path) -> dict[str, Any]:
    home = folder / f"home-{name}"
    home.mkdir()
    shutil.chown(home, name)
    more = {"HOME": str(home), "USER": name, "LOGNAME": name}
    return {"within": becoming(name), "umask": 0o002, "more": more}


@pytest.mark.long
def test_two_users_who_start_the_same_sweep_do_each_stage_once(
    shared: tuple[Path, list[dict[str, Any]]], calm: Path, record: Record
) -> None:
    folder, users = shared
    runs = folder / "runs"
    with Crew(folder) as crew:
        both = [crew.start(*RUN, **user) for user in users]
        first = until(lambda: training(runs))
        freeze(first)  # until the other has come: one that is quick must not do all of it
        until(lambda: len(crews(runs)) == 2)
        freeze(first, signal.SIGCONT)
        until(lambda: all(command.poll() is not None for command in both), 240)
        assert [command.returncode for command in both] == [0, 0], [crew.said(command) for command in both]
        assert all("10 of 10 cells done" in crew.said(command) for command in both)
    ends = {key: outcomes(runs, key) for key in results(runs)}
    twice = sum(said.count("published") != 1 for said in ends.values())
    wanted = {key for key in results(calm) if key in planned(runs)[0]}
    lost, wrong = astray(runs, calm, wanted)
    accounts = len({path.stat().st_uid for path in runs.glob("stages/*/*/*/result-*.json")})
    fault = f"a stage wanted by the sweeps of two users{' with an account each' if accounts == 2 else ''}"
    record.note(fault, len(wanted), "whoever claims it first runs it, the other waits", lost=lost, wrong=wrong + twice)
    assert (lost, wrong, twice) == (0, 0, 0)
    assert accounts == (len(ACCOUNTS) if can_become_others else 1)


def planned(store: Path) -> list[set[str]]:
    """Return the stages of each plan that was made of the sweep, the oldest plan first."""
    paths = sorted(store.glob("sweeps/tiny/plan-*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [set(read_plan(path).plan.stages) for path in paths]


@pytest.mark.long
def test_a_file_edited_and_run_beside_its_older_self_ends_with_what_each_asked_for(
    tmp_path: Path, calm: Path, record: Record
) -> None:
    runs = write(tmp_path) / "runs"
    with Crew(tmp_path) as crew:
        older = crew.start(*RUN)
        first = until(lambda: training(runs))
        freeze(first)
        (tmp_path / "tiny.yaml").write_text(GRID.replace(FROM, TO))
        before = (runs / "sweeps" / "tiny" / "plan.json").read_bytes()
        refused = run_sweep(tmp_path, *RUN[1:])
        assert refused.returncode == 2, refused.stderr
        assert "would be started no more by 1 worker at work. If that is meant: --yes" in " ".join(
            refused.stderr.split()
        )
        assert (runs / "sweeps" / "tiny" / "plan.json").read_bytes() == before
        newer = crew.start(*RUN, "--yes")
        until(lambda: len(crews(runs)) == 2)
        freeze(first, signal.SIGCONT)
        until(lambda: older.poll() is not None and newer.poll() is not None, 240)
        assert (older.returncode, newer.returncode) == (0, 0), crew.said(older) + crew.said(newer)
        assert "10 of 10 cells done" in crew.said(older)
        assert "9 of 9 cells done" in crew.said(newer)
    old, new = planned(runs)
    assert old - new, "a recipe went"
    assert new - old, "a seed came"
    lost, wrong = astray(runs, calm, old | new)
    fault = "the file edited and run again, a recipe less and a seed more, while its older self runs"
    found = "refused until --yes; both run on, and share what both ask for"
    record.note(fault, 1, found, lost=lost, wrong=wrong)
    assert (lost, wrong) == (0, 0)


unshare = shutil.which("unshare")
can_unshare = (
    unshare is not None
    and subprocess.run([unshare, "--uts", "--pid", "--fork", "true"], capture_output=True, check=False).returncode == 0
)


@pytest.mark.skipif(not can_unshare, reason="needs the right to make name spaces (root)")
def test_hosts_with_clocks_far_apart_overtake_the_dead_alone(tmp_path: Path, calm: Path, record: Record) -> None:
    runs = write(tmp_path) / "runs"
    save_whole_plan(tmp_path)
    spaces = (str(unshare), "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
    told = ("tiny", "--device", "cpu", "--threads", "1", "--lease", "3", "--checkpoint-every", "0.05")
    with Crew(tmp_path) as crew:
        fast, slow = (
            crew.start("tests.chaos.host", host, skew, *told, within=spaces)
            for host, skew in (("host-a", "600"), ("host-b", "-600"))
        )
        until(lambda: {owner.host for found in owners(runs).values() for owner in found} == {"host-a", "host-b"})
        doomed = until(lambda: caught(runs, "host-a", fast))
        kill_tree(fast.pid)
        until(lambda: slow.poll() is not None, 240)
        assert slow.returncode == 0, crew.said(slow)
    wanted = {key for key in results(calm) if key in set(read_plan(runs / "sweeps" / "tiny" / "plan.json").plan.stages)}
    lost, wrong = astray(runs, calm, wanted)
    ends, hosts = {key: outcomes(runs, key) for key in wanted}, owners(runs)
    robbed = sum(said[0] != "published" for key, said in ends.items() if key != doomed)
    found = "only a heartbeat that stands still for a lease of the observer's own clock proves a death"
    claims = sum(map(len, hosts.values()))
    record.note(
        "a stage claimed under a clock 20 minutes from the other's", claims, found, lost=lost, wrong=wrong + robbed
    )
    assert (lost, wrong, robbed) == (0, 0, 0)
    assert [owner.host for owner in hosts[doomed]] == ["host-a", "host-b"]
    assert ends[doomed] == ["vanished", "published"]


def working(store: Path, host: str) -> str:
    """Return a training that a host works on and has saved, nothing where there is none."""
    for key, found in owners(store).items():
        for path in store.glob(f"stages/train/*/{key}"):
            begun = next(path.glob(f"attempt-{len(found):04d}/checkpoint-*"), None)
            if found[-1].host == host and begun and not (path / f"attempt-{len(found):04d}" / "end.json").exists():
                return key
    return ""


def caught(store: Path, host: str, worker: subprocess.Popen[bytes]) -> str:
    """Freeze a host's worker in the middle of a training, and return that; nothing where it got away."""
    key = working(store, host)
    if key:
        send(descendants(worker.pid), signal.SIGSTOP)
        if working(store, host) == key:
            return key
        send(descendants(worker.pid), signal.SIGCONT)
    return ""
