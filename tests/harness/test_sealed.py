"""Files with a checksum of their own: whatever is changed in them, they are believed as they were, or not at all."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from harness.plan import Plan
from harness.planfile import SavedPlan, dump, read_plan
from harness.rows import line_of, rows_of
from harness.sealed import keep_note, read_note, seal, unseal
from harness.store import Store

BODY = {"done": {"a": [1, 2.5, "x"]}, "name": "tiny"}
ROWS = [{"epoch": n, "train_loss": 1.25 / n, "test_accuracy": None} for n in (1, 2, 3)]


def damaged(data: st.DataObject, whole: bytes) -> bytes:
    """Return bytes with one bit flipped, or cut short."""
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        return whole[:place]
    return whole[:place] + bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))]) + whole[place + 1 :]


def test_what_is_sealed_is_json_and_comes_back() -> None:
    assert unseal(seal(BODY)) == BODY
    assert json.loads(seal(BODY))["body"] == BODY


@given(st.data())
def test_a_damaged_seal_is_never_believed(data: st.DataObject) -> None:
    found: object = BODY  # a flip in what only frames it changes nothing
    with contextlib.suppress(ValueError):
        found = unseal(damaged(data, seal(BODY)))
    assert found == BODY


def test_a_note_is_made_again_whatever_is_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "note.json"
    assert read_note(path) is None
    keep_note(path, BODY)
    assert read_note(path) == BODY
    path.unlink()
    (path / "x").mkdir(parents=True)
    keep_note(path, BODY)
    assert read_note(path) is None
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no draft is left"


@given(st.data())
def test_a_damaged_plan_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("p") / "plan.json"
    whole = dump(SavedPlan(path, Plan("tiny"), ["seed"]))
    path.write_bytes(damaged(data, whole))
    found = whole
    with contextlib.suppress(UserError):
        found = dump(read_plan(path))
    assert found == whole
    path.write_bytes(whole[:-2])
    with pytest.raises(UserError, match=r"plan.json: not a plan \(damaged.*run the sweep command again to rewrite it"):
        read_plan(path)


@given(st.data())
def test_a_damaged_row_ends_a_curve_and_shows_no_other_number(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = Store(tmp_path_factory.mktemp("s"))
    folder = store.path("train", "ab" * 16)
    (folder / "attempt-0001").mkdir(parents=True)
    (folder / "claim-0001").touch()
    whole = "".join(map(line_of, ROWS)).encode()
    (folder / "attempt-0001" / "metrics.jsonl").write_bytes(damaged(data, whole))
    found = rows_of(store.folder("train", "ab" * 16))
    known = [{name: row.get(name) for name in ROWS[0]} for row in found]
    assert known == ROWS[: len(known)]


def test_rows_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.path("train", "ab" * 16)
    (folder / "attempt-0001").mkdir(parents=True)
    (folder / "claim-0001").touch()
    (folder / "attempt-0001" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert rows_of(store.folder("train", "ab" * 16)) == ROWS
