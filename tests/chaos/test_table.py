"""The page of faults: what was recorded, once, by area."""

from __future__ import annotations

import json

import pytest

from tests.chaos.table import page, read

pytestmark = pytest.mark.chaos


def row(test: str, fault: str, injected: int, **more: object) -> str:
    base = {"area": "Kills", "lost": 0, "wrong": 0, "found": "at once", "full": True}
    return json.dumps({**base, "test": f"tests/chaos/{test}.py::test_it", "fault": fault, "injected": injected, **more})


def test_a_page_adds_up_what_was_recorded_and_takes_a_tests_last_run() -> None:
    rows = read([row("test_a", "SIGKILL", 7, lost=3), row("test_a", "SIGKILL", 5), row("test_b", "SIGKILL", 1000)])
    rows += read([row("test_c", "bit flipped", 2, area="Files", wrong=1)])
    said = page(rows, "run in full")
    assert "1,007 faults injected, 0 results lost, 1 wrong; run in full." in said
    assert "| SIGKILL | 1,005 | 0 | 0 | at once |" in said
    assert "| bit flipped | 2 | 0 | 1 | at once |" in said
    assert said.index("## Kills") < said.index("## Files")
    assert said.count("-m chaos tests/chaos/test_") == 3
