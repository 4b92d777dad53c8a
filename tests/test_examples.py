"""The examples: short, told how to run them, and run as they stand."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment, run_sweep

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "examples", tmp_path / "examples"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_run(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 40
    said = re.search(r"python (-m harness\.sweep )?(\w+\.(py|yaml))", ast.get_docstring(ast.parse(text)) or "")
    assert said is not None
    assert (path.parent / said[2]).is_file()


@pytest.mark.parametrize(("name", "shown"), [("own_mask", "fair(power=0.5)"), ("own_dataset", "bars(noise=30.0)")])
def test_a_method_of_one_s_own_trains(name: str, shown: str, folder: Path) -> None:
    done = run_sweep(folder, f"{name}.yaml")
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_the_loop_runs_where_there_is_no_harness(folder: Path) -> None:
    blocked = "import runpy, sys; sys.modules['harness'] = None; runpy.run_path('own_loop.py', run_name='__main__')"
    command = [sys.executable, "-W", "error", "-c", blocked]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)
    found = re.fullmatch(r"density 0\.100, test accuracy (\d+\.\d) %\n", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) > 80


def test_the_installed_package_offers_its_mask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = folder / "site"
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(site), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert list(site.glob("own_mask-1.0.dist-info/entry_points.txt"))
    text = (folder / "own_mask.yaml").read_text()
    named = [line for line in text.splitlines(keepends=True) if not line.startswith("use:")]
    (folder / "own_mask.py").unlink()
    (folder / "own_mask.yaml").write_text("".join(named))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(site)]))
    done = run_sweep(folder, "own_mask.yaml")
    assert done.returncode == 0, done.stderr
    assert "fair(power=0.5)" in done.stdout
    (copy,) = (folder / "runs" / "plugins").glob("*/own_mask.py")
    specs = [path.read_text() for path in (folder / "runs" / "stages" / "mask").glob("*/*/spec.json")]
    assert sum('"package": "own-mask 1.0"' in spec and copy.parent.name in spec for spec in specs) == 2
    assert len(specs) == 3
