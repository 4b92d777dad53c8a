"""Bad input: files of the store that are torn or of other types are passed over or told, never believed."""

from __future__ import annotations

import csv
import gc
import json
import os
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas  # noqa: F401 - loaded before a process's memory is limited
import pyarrow  # noqa: F401
import pytest

from tests.chaos.conftest import FULL, Record, amount
from tests.chaos.fuzz import outside
from tests.chaos.limited import outcomes
from tests.conftest import GRID, run_sweep, write_project

AREA = "Bad input"
pytestmark = pytest.mark.chaos

NAME = "a..b.-"
"""As odd as a sweep's name can be."""
SMALL = GRID.replace("50%", "20%").replace("[default, ls]", "default").replace("name: tiny", f"name: {NAME}")
SMALL = SMALL.replace("thin", "_ü").replace("./_ü.py", "./thin.py") + "launch: {workers: 1}\n"
CLAIM = "claims: [{name: c, compare: {mask: [lth, random]}, margin: 50, seeds: 2}]\n"
COMMANDS = (
    ("status", NAME, "--json"),
    ("status", NAME),
    ("report", NAME, "-q"),
    ("sweep", "tiny.yaml", "--plan"),
)
NUMBERS = ("test@last", "test@best-dev", "best_epoch", "dev_accuracy", "density")
RAW = "@raw@"
ODD: list[Any] = [None, True, [], {}, "x", "", -1, 0, 1e300, 2**70, 10**4000, ["x"], {"x": 1}, "\ud800", "a" * 10**6]
TEXTS = ["NaN", "Infinity", "-Infinity", "1e999", "[" * 100_000, "[" * 900 + "]" * 900, "[" + "0," * 10**6 + "0]"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose sweep has been run to its end."""
    folder = tmp_path_factory.mktemp("above") / "a" / "project"
    folder.mkdir(parents=True)
    write_project(folder)
    (folder / "tiny.yaml").write_text(SMALL + CLAIM)
    done = run_sweep(folder, "tiny.yaml")
    assert done.returncode == 0, done.stderr
    return folder


def candidates(store: Path) -> list[Path]:
    """Return the files that say something, in an order that does not change."""
    kept = (p for p in store.rglob("*") if p.is_file() and not p.is_symlink() and "report" not in p.parts)
    return sorted(p for p in kept if p.suffix in (".json", ".jsonl", ".yaml") or p.name.startswith("claim-"))


def changed(data: bytes, draws: random.Random) -> bytes:
    """Return a file's bytes with something else in them: a value of another type, a part gone, bytes other."""
    match draws.randrange(8):
        case 0:
            return data[: draws.randrange(len(data) + 1)]
        case 1:
            return draws.choice([b"", b"null", b"[]", b"{}", b"3", b'"x"', draws.randbytes(300), b"[" * 100_000])
        case 2:
            at = draws.randrange(len(data) + 1)
            return data[:at] + draws.randbytes(draws.randrange(1, 9)) + data[at + draws.randrange(9) :]
        case 3:
            digits = [found.start() for found in re.finditer(rb"\d", data)]
            at = draws.choice(digits or [0])
            return data[:at] + bytes([ord("0") + draws.randrange(10)]) + data[at + 1 :]
    line, newline, rest = data.partition(b"\n") if not data.startswith(b"{\n") else (data, b"", b"")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return draws.randbytes(40) + data
    for _ in range(draws.randrange(1, 4)):
        value = _odd(value, draws)
    return json.dumps(value).replace(f'"{RAW}"', draws.choice(TEXTS)).encode() + newline + rest


def _odd(value: Any, draws: random.Random) -> Any:
    """Return a value with one thing, somewhere in it, gone or of another type."""
    if isinstance(value, dict) and value and draws.randrange(6):
        name = draws.choice(sorted(value))
        if draws.randrange(4) == 0:
            return {other: item for other, item in value.items() if other != name}
        return {**value, name: _odd(value[name], draws)}
    if isinstance(value, list) and value and draws.randrange(4):
        at = draws.randrange(len(value))
        return [*value[:at], _odd(value[at], draws), *value[at + 1 :]]
    return draws.choice([*ODD, RAW, RAW])


def numbers(store: Path) -> dict[str, dict[str, str]]:
    """Return the numbers of a report's cells, by key."""
    with (store / "sweeps" / NAME / "report" / "cells.csv").open() as file:
        return {row["key"]: {name: row[name] for name in NUMBERS} for row in csv.DictReader(file)}


def snapshot(store: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def answer(case: Path) -> str:
    """Change a file of the store as a number says, give the commands, and put all back as it was."""
    store, draws = case.parent.parent / "runs", random.Random(int(case.name))
    os.chdir(store.parent)
    before = snapshot(store)
    reference = numbers(store)
    path = draws.choice(candidates(store))
    path.write_bytes(changed(before[path], draws))
    gone = [path]
    if path.name == "end.json" or path.name.startswith("claim-"):  # read only where there is no result
        gone += path.parents[path.name == "end.json"].glob("result-*.json")
        gone += [path.parents[0] / f"attempt-{path.name[6:]}" / "end.json"] if path.name.startswith("claim-") else []
        for file in gone[1:]:
            file.unlink(missing_ok=True)
        (store / "cache" / "index" / f"{NAME}.json").unlink(missing_ok=True)
    try:
        said = list(_commands())
        wrong = [
            f"{key} {name}: {value}, was {reference.get(key, {}).get(name)}"
            for key, row in numbers(store).items()
            for name, value in row.items()
            if value and float(value) != float(reference.get(key, {}).get(name) or "nan")
        ]
        stages = {file: data for file, data in before.items() if "stages" in file.parts and file not in gone}
        lost = [str(file) for file, data in stages.items() if not file.exists() or file.read_bytes() != data]
    finally:
        gc.enable()  # a command that lives briefly switches it off
        gc.collect()
        for file in snapshot(store).keys() - before.keys():
            file.unlink()
        for file, data in before.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    return json.dumps({"file": str(path.relative_to(store)), "codes": said, "wrong": wrong, "lost": lost})


def _commands() -> Iterator[int]:
    from typer.testing import CliRunner

    from harness.cli import app

    for argv in COMMANDS:
        done = CliRunner().invoke(app, list(argv))
        if done.exit_code not in (0, 2, 3) or "Traceback" in done.output:
            raise AssertionError(f"{argv}: {done.exit_code}: {done.output[-500:]}") from done.exception
        if done.exit_code and not done.output.strip():
            raise AssertionError(f"{argv}: {done.exit_code} without a word")
        yield done.exit_code


def test_changed_files_of_a_store_are_told_or_made_again(finished: Path, record: Record) -> None:
    assert run_command(finished) == 0
    (cases := finished / "cases").mkdir()
    for number in range(amount(16, 500)):
        (cases / str(number)).write_bytes(b"")
    found = outcomes("tests.chaos.test_results_fuzz:answer", cases)
    faults = {number: said for number, said in found.items() if not said.startswith("{")}
    told: list[Mapping[str, Any]] = [json.loads(said) for said in found.values() if said.startswith("{")]
    count = len(found)
    lost = len(faults) + sum(bool(case["lost"]) for case in told)
    wrong = sum(bool(case["wrong"]) for case in told)
    said = "passed over and made again, or a sentence; the table has the right number or a hole"
    record.note("a changed file of the store: results, plans, claims, caches", count, said, lost=lost, wrong=wrong)
    assert not faults, next(iter(faults.items()))
    assert not [case for case in told if case["lost"] or case["wrong"]]
    assert not FULL or any(2 in case["codes"] for case in told)
    assert any(case["codes"] == [0] * len(COMMANDS) for case in told)


def run_command(folder: Path) -> int:
    from tests.conftest import report_command

    return report_command(folder, NAME, "-q").returncode


def test_the_sweep_command_mends_a_store_of_changed_files(finished: Path, record: Record) -> None:
    store, draws, injected = finished / "runs", random.Random(11), 0
    right, cells = sound(store), [path.name for path in store.glob("stages/train/*/*")]
    for _ in range(amount(1, 8)):
        for path in candidates(store):
            if path.suffix == ".json" and draws.randrange(2):
                path.write_bytes(changed(path.read_bytes(), draws))
                injected += 1
        done = run_sweep(finished, "tiny.yaml", "--yes")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        assert "Traceback" not in done.stdout + done.stderr
    now = sound(store)
    lost = len(set(cells) - now.keys())  # of what no cell needs any more a result may stay away
    wrong = sum(now[key] != sha256 for key, sha256 in right.items() if key in now)
    record.note(
        "changed files of the store, then the sweep command",
        injected,
        "made again, bit for bit",
        lost=lost,
        wrong=wrong,
    )
    assert lost == wrong == 0
    assert run_command(finished) == 0


def test_the_oddest_name_stays_in_the_store(finished: Path, record: Record) -> None:
    made = {path.name for path in finished.iterdir()} - {"thin.py", "tiny.yaml", "cases", "__pycache__"}
    wrong = len(outside(finished.parents[1], finished)) + len(made - {"runs"})
    record.note("an odd name in a sweep that is run", 1, "files in the store alone", wrong=wrong)
    assert wrong == 0
    assert (finished / "runs" / "sweeps" / NAME / "report").is_dir()


def sound(store: Path) -> dict[str, str]:
    """Return every stage's newest artifact by key, of results that are intact."""
    from harness.store import KINDS, Store

    folders = (Store(store).folder(kind, p.name) for kind in KINDS for p in store.glob(f"stages/{kind}/*/*"))
    return {folder.path.name: found.artifact.sha256 for folder in folders if (found := folder.result())}
