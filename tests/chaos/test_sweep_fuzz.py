"""Bad input: sweep files made wrong by chance are refused with a sentence, or planned; names never leave the store."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.conftest import Record, amount
from tests.chaos.fuzz import outside
from tests.chaos.mutants import BESIDE, Mutants
from tests.conftest import GRID, environment, run_sweep, write_project

AREA = "Bad input"
pytestmark = pytest.mark.chaos

HERE = Path(__file__).resolve().parents[2]
NAMES = ["../x", "../../x", "..", "/tmp/x", "a/../../../x", "~/x", "a\\0b", "", ".x", "-x", "x\\n", "x" * 65, "ünïx"]  # noqa: S108


@pytest.fixture
def inner(tmp_path: Path) -> Path:
    """A project with folders above it, which a path could climb into."""
    folder = tmp_path / "a" / "b" / "project"
    folder.mkdir(parents=True)
    return write_project(folder)


def test_wrong_sweep_files_are_refused_or_planned_and_nothing_else(record: Record) -> None:
    count = amount(300, 20_000)
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.fuzz", str(count)],
        cwd=HERE,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=amount(300, 1500),
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    came = json.loads(done.stdout.splitlines()[-1])
    told = sum(came.get(name, 0) for name in ("refused", "planned", "large"))
    assert came["given"] >= count
    assert min(came["refused"], came["planned"]) > 10, "they must be neither all good nor all bad"
    lost, wrong = came["given"] - told, len(came["outside"])
    found = "a sentence with file and line, or a plan, within 60 s and 2 GB; nothing written outside the store"
    record.note(f"a wrong sweep file, made by {came['by']}", came["given"], found, lost=lost, wrong=wrong)
    assert lost == wrong == 0, came


def test_the_command_ends_with_a_sentence_and_without_a_traceback(inner: Path, record: Record) -> None:
    for name, text in BESIDE.items():
        (inner / name).write_text(text)
    mutants, codes = Mutants(inner), list[int]()
    before = outside(inner.parents[2], inner)
    for number in range(amount(5, 200)):
        (inner / "x.yaml").write_bytes(mutants.draw(random.Random(1000 + number)))
        done = run_sweep(inner, "x.yaml", "--plan", timeout=120)
        said = f"{number}: {done.stdout[-300:]}{done.stderr[-3000:]}"
        assert done.returncode in (0, 2), said
        assert "Traceback" not in done.stdout + done.stderr, said
        assert done.stdout.strip() if done.returncode == 0 else done.stderr.strip(), said
        codes.append(done.returncode)
    wrong = len(set(outside(inner.parents[2], inner)) - set(before))
    silent = sum(code not in (0, 2) for code in codes)
    record.note("a wrong sweep file given to the command", len(codes), "exit code 2", lost=silent, wrong=wrong)
    assert silent == wrong == 0


def test_a_name_is_no_path(inner: Path, record: Record) -> None:
    from typer.testing import CliRunner

    from harness.sweep import app

    places = {
        "name": "",
        "table": 'tables: [{name: "any-mask", rows: [mask], columns: [sparsity]}]',
        "claim": 'claims: [{name: "c", compare: {recipe: [ls, default]}, margin: 1, seeds: 2}]',
    }
    taken = []
    for place in places:
        for name in NAMES:
            text = GRID.replace("tables: [any-mask]\n", "")
            if place == "name":
                text = text.replace("name: tiny", f'name: "{name}"')
            else:
                text += places[place].replace('"any-mask"' if place == "table" else '"c"', f'"{name}"') + "\n"
            (inner / "x.yaml").write_text(text)
            done = CliRunner().invoke(app, [str(inner / "x.yaml"), "--plan", "--store", str(inner / "runs")])
            assert "Traceback" not in done.output
            taken += [f"{place} {name!r}"] * (done.exit_code != 2)
    wrong = len(outside(inner.parents[2], inner)) + len(taken)
    record.note("a path for a name", len(places) * len(NAMES), "exit code 2, with what a name is", wrong=wrong)
    assert wrong == 0, taken
