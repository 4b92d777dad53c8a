"""File systems: `harness doctor` names what a broken one does, alone and from two hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.meeting import Met, judged
from tests.chaos.conftest import Record
from tests.chaos.far import SPACES, can_unshare, compiled, compiler, far_environment
from tests.harness.test_storm import kill

AREA = "File systems"
pytestmark = pytest.mark.chaos

far = pytest.mark.skipif(compiler is None, reason="needs a C compiler")
two_hosts = pytest.mark.skipif(not can_unshare, reason="needs the right to make name spaces (root)")
LIES = {"excl": "O_EXCL", "link": "link"}
ENTER = (
    "import os, socket, sys; socket.sethostname(sys.argv[1]); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)
"""Take a host's name, and become what else is told."""
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


class Pair:
    """Two calls of `harness doctor --meet`, each on a host of its own."""

    def __init__(self, tmp_path: Path, **faults: object) -> None:
        self.store = tmp_path / "store"
        library = compiled(tmp_path) if faults else tmp_path / "none.so"
        self.processes = [self._start(host, library, faults) for host in ("host-a", "host-b")]

    def _start(self, host: str, library: Path, faults: dict[str, object]) -> subprocess.Popen[str]:
        environment = {**os.environ, "NO_COLOR": "1"}
        if faults:
            environment = far_environment(library, self.store.absolute(), host, **faults)
        return subprocess.Popen(
            [*SPACES, sys.executable, "-c", ENTER, host, *DOCTOR[1:], str(self.store), "--meet"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def said(self) -> list[tuple[int, str]]:
        """Return code and output of both."""
        told = [process.communicate(timeout=180) for process in self.processes]
        return [(p.returncode, out + err) for p, (out, err) in zip(self.processes, told, strict=True)]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made: list[Pair] = []
    yield made
    for pair in made:
        for process in pair.processes:
            kill(process)  # type: ignore[arg-type]


@pytest.mark.long
@two_hosts
def test_two_hosts_meet_and_find_a_file_system_sound(tmp_path: Path, pairs: list[Pair]) -> None:
    pairs.append(Pair(tmp_path))
    (first, one), (second, other) = pairs[0].said()
    assert (first, second) == (0, 0), one + other
    assert "ok    two hosts: with host-b: each of 100 names was won once by O_EXCL, link, rename" in one
    assert "ok    two hosts: with host-a: each of 100 names was won once by O_EXCL, link, rename" in other
    assert not list(pairs[0].store.iterdir()), "nothing of the meeting is left"


@pytest.mark.long
@far
@two_hosts
@pytest.mark.parametrize("lie", LIES)
def test_two_hosts_that_are_given_the_same_name_say_so(
    lie: str, tmp_path: Path, pairs: list[Pair], record: Record
) -> None:
    pairs.append(Pair(tmp_path, LIES=lie))
    said = pairs[0].said()
    named = [bool(re.search(rf"{LIES[lie]}: \d+ of 100 names were taken by both hosts", text)) for _, text in said]
    found = "`harness doctor --meet` on both names it on both"
    record.note(f"{LIES[lie]} gives one name to two hosts", 1, found, wrong=int(not all(named)))
    assert all(named), said
    assert [code for code, _ in said] == [1, 1]
    assert all("-> put the store on a file system" in text for _, text in said)


@pytest.mark.long
@far
@two_hosts
def test_two_hosts_measure_how_late_each_sees_the_other(tmp_path: Path, pairs: list[Pair], record: Record) -> None:
    pairs.append(Pair(tmp_path, DELAY=400))
    said = pairs[0].said()
    delays = [text.partition("there and back, ")[2] for _, text in said]
    measured = [int(part.split()[-2]) for part in delays[0].replace("\n", "").split(", ")[:2]]
    found = "`harness doctor --meet` measures it, and says which --lease it asks for"
    record.note("what one host writes is seen late by the other", 1, found, wrong=int(max(measured) < 50))
    assert [code for code, _ in said] == [0, 0], said
    assert max(measured) >= 50, "draws of up to 400 ms, many times"


def test_a_delay_is_judged_by_the_lease() -> None:
    met = Met("there", {"link": 0}, {"link": 0}, {"by name": 5.0, "in a listing": 40.0, "by its growth": 95.0})
    grades = dict(judged(met, lease=180.0, beats=6))
    assert "in a listing, after up to 40 s" in grades["note"]
    assert "by its growth, after up to 95 s" in grades["bad"]
    assert list(judged(Met("there", {"link": 2}, {"link": 1}), 180.0, 6)) == [
        ("bad", "link: 2 of 100 names were taken by both hosts"),
        ("bad", "link: 1 of 100 names could be taken by neither host"),
    ]
