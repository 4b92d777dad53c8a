"""Four processes on two nodes train as one does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.train.order import Order
from tests.harness.ranks import trained
from tests.harness.test_group import STEPS, assert_alike, order  # noqa: F401 - a fixture
from tests.harness.test_training import orders  # noqa: F401 - a fixture
from tests.slurm.conftest import ONCE, Cluster

pytestmark = pytest.mark.slurm


@ONCE
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-9), pytest.param("float32", 1e-4, marks=pytest.mark.long)]
)
def test_four_processes_on_two_nodes_train_as_one_does(
    cluster: Cluster,
    order: Order,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    tolerance: float,
) -> None:
    monkeypatch.setitem(os.environ, "SLURM_CONF", cluster.environment["SLURM_CONF"])

    def place(rank: int) -> Sequence[str]:
        node = f"n{1 + rank // 2}"
        return ("srun", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "--mem=1500M", "--chdir", str(Path.cwd()))

    (alone,) = trained(order, 1, STEPS, dtype, tmp_path)
    assert_alike(trained(order, 4, STEPS, dtype, tmp_path, place, meet="n1"), alone, dtype, tolerance)
