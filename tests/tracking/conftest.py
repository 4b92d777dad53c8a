"""The fake W&B server of a test, which must have known all that it was asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tracking.server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server
    assert server.unknown == []
    assert server.broken == []
