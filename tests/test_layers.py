"""What importing a part of the project loads, seen from a fresh process."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "ray", "optuna", "wandb", "matplotlib", "pandas", "sklearn", "submitit")


@pytest.mark.parametrize(
    "module",
    [
        "harness.cli",
        "harness.sweep",
        "harness.worker",
        "harness.driver",
        "harness.supervisor",
        "harness.launch.local",
        "harness.tracking.background",
        "harness.tracking.command",
        "harness.tracking.wandb_process",
        "harness.results",
        "tost.catalog",
    ],
)
def test_the_control_plane_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_tost_never_loads_the_harness() -> None:
    code = (
        "import sys; sys.modules['harness'] = None\n"
        "import tost, tost.catalog as c\n"
        "assert 'torch' not in sys.modules\n"
        "for name in tost.__all__:\n"
        "    getattr(tost, name)\n"
        "for table in (c.MODELS, c.MASKS, c.PARTS):\n"
        "    for entry in table.values():\n"
        "        c.resolve(entry.path)\n"
        "print([m for m in sys.modules if m.startswith('harness.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_line_of_every_table_can_be_imported() -> None:
    from harness import catalog
    from tost import catalog as tost

    for table in (
        tost.MODELS,
        tost.MASKS,
        tost.PARTS,
        catalog.DATASETS,
        catalog.OPTIMIZERS,
        catalog.SCHEDULES,
        catalog.LOSSES,
    ):
        for name, entry in table.items():
            assert callable(tost.resolve(entry.path)), name
    for entry in catalog.DATASETS.values():
        assert not entry.fetch or callable(tost.resolve(entry.fetch))
