"""Files written whole, published once; results that are checked; keys that stay what they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.claims import Observer, Owner, take
from harness.soundness import broken
from harness.states import state_of
from harness.store import Artifact, Result, Store, _writers, digest, place, publish, remove_dead_drafts, write_whole


def test_a_file_is_written_whole_and_readable_by_colleagues(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_whole(tmp_path / "a", b"one")
        write_whole(tmp_path / "a", b"two")
    finally:
        os.umask(old)
    assert (tmp_path / "a").read_bytes() == b"two"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_in_a_files_place_is_told_and_no_draft_is_left(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "a", b"one")
    assert os.listdir(tmp_path) == ["a"]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    target = tmp_path / "a"
    write_whole(target, b"x" * 100_000)
    code = (
        "import sys\nfrom pathlib import Path\nfrom harness.store import _writers, write_whole\n"
        f"for i in range(200): write_whole(Path({str(target)!r}), b'xy'[i % 2:i % 2 + 1] * 100_000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code])
    reads = 0
    while writer.poll() is None:
        data = target.read_bytes()
        assert len(data) == 100_000
        assert len(set(data)) == 1
        reads += 1
    assert writer.returncode == 0
    assert reads > 10


def test_only_the_first_publisher_wins(tmp_path: Path) -> None:
    assert publish(tmp_path / "r", b"first")
    assert not publish(tmp_path / "r", b"second")
    assert (tmp_path / "r").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["r"]


def test_a_link_that_was_made_but_reported_lost_counts_as_made(tmp_path: Path) -> None:
    (tmp_path / "draft").write_bytes(b"x")
    os.link(tmp_path / "draft", tmp_path / "target")  # the server did it, the reply was lost, the client asks again
    assert place(tmp_path / "draft", tmp_path / "target")


def _create(path: Any, flags: int, *more: Any, real: Any = os.open) -> int:
    return int(real(path, flags & ~os.O_EXCL, *more))


def _link(source: Path, target: Path, real: Any = os.link) -> None:
    target.unlink(missing_ok=True)
    real(source, target)


@pytest.mark.parametrize(("what", "name", "lie"), [("O_EXCL", "open", _create), ("link", "link", _link)])
def test_a_file_system_that_gives_one_name_to_several_is_found_out(
    what: str, name: str, lie: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(broken(tmp_path)) == []
    monkeypatch.setattr(os, name, lie)
    assert any(said.startswith(f"{what}: of 16 new names") for said in broken(tmp_path))


def test_many_processes_publish_one_file_exactly_once(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom harness.store import _writers, publish\n"
        "print(sum(publish(Path(sys.argv[1]) / str(i), sys.argv[2].encode()) for i in range(100)))"
    )
    crew = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)], stdout=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    wins = [int(process.communicate(timeout=60)[0]) for process in crew]
    assert sum(wins) == 100
    assert len(os.listdir(tmp_path)) == 100


RESULT = Result(1, Artifact("ab" * 32, 10), {"k": "cd" * 32}, {"test@last": 97.5}, {"device": "cpu"}, {"host": "h"})


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "result-0001.json").write_bytes(RESULT.dump())
    assert Result.load(tmp_path / "result-0001.json", 1) == RESULT


@given(st.data())
def test_a_damaged_result_is_never_believed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    body = bytearray(RESULT.dump())
    place_ = data.draw(st.integers(0, len(body) - 1))
    body[place_] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("r") / "result-0001.json"
    path.write_bytes(bytes(body[: data.draw(st.integers(0, len(body)))]) if data.draw(st.booleans()) else bytes(body))
    loaded = Result.load(path, 1)
    assert loaded is None or loaded == RESULT  # a flip in white space changes nothing


ODD: list[Any] = [None, True, [], {}, "x", -1, 1e300, 2**70, ["x"], {"x": 1}]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_an_end_or_a_claim_with_values_of_other_types_is_passed_over(odd: Any, tmp_path: Path) -> None:
    folder = Store(tmp_path).folder("train", "ab" * 16)
    claim = take(folder, 0, Owner.me())
    assert claim is not None
    claim.end("failed", cause="oom", message="m", resource="ram", memory=5, limit=1, needs=2, epoch=1, step=1)
    for path in (claim.attempt / "end.json", folder.claim_path(1)):
        whole = path.read_bytes()
        said = json.loads(whole)
        for changed in (odd, *({**said, name: odd} for name in said)):
            path.write_text(json.dumps(changed) + "\n")
            assert state_of(Store(tmp_path).folder("train", "ab" * 16), Observer()).name
        path.write_bytes(whole)
        if path.name == "end.json":
            path.unlink()


def test_the_newest_intact_result_counts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.path("train", "ab" * 16)
    folder.mkdir(parents=True)
    (folder / "result-0001.json").write_bytes(RESULT.dump())
    (folder / "result-0002.json").write_bytes(RESULT.dump()[:-20])
    listing = store.folder("train", "ab" * 16)
    assert listing.edition == 2
    found = listing.result()
    assert found is not None
    assert found.edition == 1


def test_a_key_is_pinned() -> None:
    spec = {"kind": "train", "parents": {"data": "x"}, "seed": 0, "protocol": {"lr": 0.1}}
    assert digest(spec) == digest(json.loads(json.dumps(spec)))
    assert digest(spec) == digest(dict(reversed(spec.items())))
    assert digest(spec) == "762b0257662815655c0320a9d93ad837"


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_kept(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = _writers()
    for pid in (gone.pid, os.getpid()):
        (tmp_path / f".draft-{host}-{pid}-0").touch()
    (tmp_path / f".draft-elsewhere-{gone.pid}-0").touch()
    remove_dead_drafts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([f".draft-{host}-{os.getpid()}-0", f".draft-elsewhere-{gone.pid}-0"])
