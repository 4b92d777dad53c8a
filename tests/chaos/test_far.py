"""File systems: late listings, old sizes, lying times and lost replies, as NFS and Lustre have them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.claims import Observer
from harness.frontier import Frontier
from harness.plan import Plan
from harness.store import Store
from tests.chaos.conftest import FULL, Record, amount
from tests.chaos.far import JOURNAL, SPACES, can_unshare, compiled, compiler, far_environment, injected
from tests.conftest import until
from tests.harness.test_storm import kill
from tests.harness.trivial import content, save, trivial_plan

AREA = "File systems"
ROOT = Path(__file__).resolve().parents[2]
HOSTS = (("host-a", 420), ("host-b", -300), ("host-c", 0))
"""Each with the seconds by which its file times are off."""
MOST_STARTS = 100

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(compiler is None, reason="needs a C compiler"),
    pytest.mark.skipif(not can_unshare, reason="needs the right to make name spaces (root)"),
]

FAULTS: dict[str, tuple[dict[str, object], str, str]] = {
    "others' files are found late, sizes are old": (
        {"DELAY": 600},
        "h",
        "a claim or a result is linked, and the server's word counts: work may be done twice, and is published once",
    ),
    "file times are minutes off": ({"SKEW": 1}, "t", "no decision looks at a file's time"),
    "link: made, and EEXIST comes back": ({"LINK": 200}, "e", "the inode says whose it is"),
    "link: made, and EIO comes back": (
        {"LINK": 30, "EIO": 1},
        "ei",
        "the worker leaves with a sentence and code 3; the next one takes over",
    ),
    "rename: made, and ENOENT comes back": ({"RENAME": 200}, "r", "the content says that it was done"),
    "all of these at once": (
        {"DELAY": 400, "SKEW": 1, "LINK": amount(80, 20), "EIO": 1, "RENAME": 150},
        "hteir",
        "as each by itself",
    ),
}


SHORT = ("others' files are found late, sizes are old", "all of these at once")


@pytest.mark.parametrize("fault", FAULTS if FULL else SHORT)
def test_workers_of_three_hosts_publish_every_stage_once(fault: str, tmp_path: Path, record: Record) -> None:
    told, letters, found = FAULTS[fault]
    (tmp_path / "store").mkdir()
    store, plan = Store(tmp_path / "store"), trivial_plan(amount(16, 400), chains=6)
    save(plan, store)
    library = compiled(tmp_path)
    crew: dict[str, subprocess.Popen[bytes]] = {}
    starts = Counter[str]()

    def start(host: str, skew: int) -> None:
        given = {**told, "SKEW": skew} if "SKEW" in told else told
        environment = far_environment(library, store.root, host, SEED=starts.total() + 1, **given)
        environment[JOURNAL] = str(tmp_path / "journal")
        with (tmp_path / "words").open("ab") as words:
            crew[host] = subprocess.Popen(
                [*SPACES, sys.executable, "-m", "tests.chaos.far", str(store.root), "0.05", "2", "0", host],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                start_new_session=True,
            )
        starts[host] += 1

    def over() -> bool:
        """Start again who left with a word about the file system, as a person or a scheduler would."""
        for host, skew in HOSTS:
            if crew[host].poll() == 3 and starts[host] < MOST_STARTS:
                start(host, skew)
        return all(worker.poll() is not None for worker in crew.values())

    try:
        for host, skew in HOSTS:
            start(host, skew)
        until(over, 240, every=0.05)
    finally:
        for worker in crew.values():
            kill(worker)
    words = (tmp_path / "words").read_text()
    counted = injected(library)
    lost, wrong = _amiss(store, plan, tmp_path / "journal")
    record.note(fault, sum(counted[letter] for letter in {*letters, "s"}), found, lost=lost, wrong=wrong)
    assert (lost, wrong) == (0, 0), words
    assert all(counted[letter] for letter in letters), counted
    assert "Traceback" not in words
    assert {worker.returncode for worker in crew.values()} == {0}, words


def _amiss(store: Store, plan: Plan, journal: Path) -> tuple[int, int]:
    """Return how many results are lost; and how many are wrong, published twice, or made by two for one claim."""
    survey = Frontier(plan, store, Observer()).survey()
    wrong = 0
    for key, stage in plan.stages.items():
        folder = store.folder(stage.kind, key)
        result = folder.result()
        if result is not None:
            wrong += folder.edition != 1 or (folder.path / result.artifact.file).read_bytes() != content(key)
        ends = [(folder.end(generation) or {}).get("outcome") for generation in range(1, folder.generation + 1)]
        wrong += ends.count("published") > 1
    made = Counter(json.loads(line)[2] for line in journal.read_text().splitlines())
    return len(survey.todo), wrong + sum(count > 1 for count in made.values())
