"""The commands at a terminal: examples that work, completion, JSON, exit codes, stdout and stderr, colours."""

from __future__ import annotations

import base64
import gzip
import json
import os
import pty
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import harness
from harness import completing, sweep
from harness.catalog import DATASETS
from harness.cli import app
from harness.options import CAUSES
from harness.terminal import command
from tests.conftest import environment, save_whole_plan, write_project

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "commands.md").read_text()
Command = Any
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-8]|4[0-8]|9[0-7])[0-9;]*m")


def tree(verb: Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Command]]:
    """Yield every command and group below one, itself among them."""
    yield path, verb
    for name, below in getattr(verb, "commands", {}).items():
        yield from tree(below, (*path, name))


TREE = dict(tree(typer.main.get_command(app)))
LEAVES = {" ".join(path): command for path, command in TREE.items() if not hasattr(command, "commands")}


def run(*argv: str) -> Any:
    return CliRunner().invoke(app, argv)


def examples(path: tuple[str, ...]) -> list[list[str]]:
    """Return the examples of a command's help as argument lists, without the program's name."""
    _, found, text = run(*path, "--help").stdout.partition("Examples:\n")
    lines = [shlex.split(line) for line in text.splitlines() if line.strip()]
    assert found
    modules = {"harness.sweep": ["sweep"], "harness.worker": ["worker"]}
    return [[*modules[words[2]], *words[3:]] if words[0] == "python" else words[1:] for words in lines]


@pytest.mark.parametrize("path", TREE, ids=" ".join)
def test_every_help_ends_with_examples_that_parse(path: tuple[str, ...]) -> None:
    found = examples(path)
    assert 2 <= len(found) <= 4
    for words in found:
        names = [name for name in TREE if tuple(words[: len(name)]) == name]
        command = TREE[max(names, key=len)]
        with command.make_context("x", words[len(max(names, key=len)) :], resilient_parsing=not names[1:]):
            pass
        own = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= own, words
    assert any(tuple(words[: len(path)]) == path for words in found)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's own sweeps and profiles, two files of masks, and a planned sweep that ran nothing."""
    import torch
    from safetensors.torch import save_file

    for folder in ("sweeps", "slurm"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    write_project(tmp_path)
    save_whole_plan(tmp_path)
    masks = {"conv.weight": torch.tensor([[True, False], [False, False]]), "fc.weight": torch.tensor([True, True])}
    torch.save(masks, tmp_path / "a.pt")
    save_file(masks | {"fc.weight": torch.tensor([True, False])}, tmp_path / "b.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_quick_examples_run(place: Path) -> None:
    from harness.check import load_sweep
    from harness.planfile import save_plan
    from harness.planner import make_plan
    from harness.store import Store

    quickstart, store = load_sweep(place / "sweeps" / "quickstart.yaml"), Store(place / "runs")
    save_plan(make_plan(quickstart, store, place), store, quickstart, whole=True)
    quick = [words for path in TREE for words in examples(path) if is_quick(words)]
    assert len(quick) >= 8
    for words in quick:
        done = run(*words)
        assert done.exit_code == 0, (words, done.output)
        assert done.stdout


def is_quick(words: list[str]) -> bool:
    starts = [["status", "quickstart"], ["status", "sweeps/quickstart.yaml"], ["sweep", "sweeps/quickstart.yaml"]]
    if words[:2] in starts:
        return "--watch" not in words and (words[0] == "status" or "--plan" in words)
    return words[:3] in (["mask", "compare", "a.pt"], ["data", "fetch", "digits"])


def test_what_is_completed_is_there(place: Path) -> None:
    context = typer.Context(typer.main.get_command(app))
    assert completing.sweeps_here(context, "ti") == ["tiny", "tiny.yaml"]
    assert completing.sweeps_here(context, "sweeps/q") == ["sweeps/quickstart.yaml"]
    context.params["store"] = place / "elsewhere"
    assert completing.sweeps_here(context, "ti") == ["tiny.yaml"]
    assert completing.files_here("sweeps/fu") == ["sweeps/full_grid.yaml"]
    assert completing.launchers_here("l") == ["local"]
    assert completing.profiles_here("slurm/a") == ["slurm/a100.yaml"]
    assert completing.datasets_here("m") == ["mnist"]
    assert set(completing.datasets_here("")) == {"digits", *(name for name, data in DATASETS.items() if data.fetch)}
    assert "slurm/a100.yaml" in completing.launchers_here("slurm/")
    assert sweep.causes("d") == [cause for cause in CAUSES if cause.startswith("d")]
    assert sweep.causes("x") == []


def test_the_version_is_told() -> None:
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"harness {harness.__version__}\n")


def test_a_python_without_the_packages_is_told_in_a_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "harness.sweep", "x.yaml"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "lacks the packages that harness needs; activate the environment" in done.stderr
    assert "Traceback" not in done.stderr


def test_where_workers_would_live_is_looked_at_even_where_nothing_is_to_do(place: Path) -> None:
    text = (place / "tiny.yaml").read_text()
    (place / "tiny.yaml").write_text(text.replace("seed: 0..1", "seed: 0"))
    for more, said in {
        ("--device", "tpu"): "--device tpu: choose from cpu, cuda, mps, xpu",
        ("--via", "slurm/none.yaml"): "none.yaml",
    }.items():
        done = run("sweep", "tiny.yaml", *more)
        assert done.exit_code == 2
        assert said in done.stderr


def test_a_printed_command_is_one_that_a_shell_takes_from_here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("status", "tiny", store=place / "runs") == "harness status tiny"
    assert command("status", "tiny", store=Path("runs")) == "harness status tiny"
    assert command("status", "tiny", store=place / "my runs") == "harness status tiny --store 'my runs'"
    assert shlex.split(command("data", "fetch", "--data", place / "a b")) == [
        "harness",
        "data",
        "fetch",
        "--data",
        "a b",
    ]
    monkeypatch.chdir(place / "sweeps")
    assert command("status", "tiny", store=place / "runs") == f"harness status tiny --store {place}/runs"
    (place / "sweeps" / "runs").symlink_to(place / "runs")
    assert command("status", "tiny", store=place / "runs") == "harness status tiny"


def test_commands_about_a_sweep_lead_back_to_it_from_elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "runs").rename(place / "kept here")
    monkeypatch.chdir(place / "sweeps")
    done = run("report", "tiny", "--store", "../kept here", "--quiet")
    assert done.exit_code == 0, done.output
    page = (place / "kept here" / "sweeps" / "tiny" / "report" / "report.html").read_text()
    (packed,) = re.findall(r'id="data"[^>]*>([^<]+)<', page)
    body = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert shlex.split(body["files"]["tiny"]) == [str(place / "tiny.yaml")]
    assert shlex.split(body["store"]) == ["--store", str(place / "kept here")]
    assert all("{store}" in line for line in body["commands"])
    (place / "tiny.yaml").write_text((place / "tiny.yaml").read_text() + "# edited\n")
    said = run("report", "tiny", "--store", "../kept here", "--quiet").stderr
    (line,) = re.findall("`harness (.*)` reports on it as it is", said)
    assert run(*shlex.split(line), "--quiet", "--data", "data").exit_code == 0
    done = run("report", "tiny", "--store", "../kept here", "--quiet", "--anonymous", "--out", "out")
    (packed,) = re.findall(r'id="data"[^>]*>([^<]+)<', Path("out/report.html").read_text())
    assert str(place) not in gzip.decompress(base64.b64decode(packed)).decode()


def test_looking_at_a_file_from_elsewhere_creates_nothing_and_names_its_store(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "sub").mkdir()
    monkeypatch.chdir(place / "sub")
    done = run("status", "../tiny.yaml")
    assert done.exit_code == 0, done.output
    assert "--store ../runs" in done.stderr
    assert not list(Path().iterdir())
    assert "--store ../runs" in run("report", "../tiny.yaml", "--quiet").stderr


TYPED = {"status ti": "tiny", "sweep tiny.yaml --via r": "ray", "wandb re": "report"}


@pytest.mark.parametrize(("typed", "wanted"), TYPED.items())
def test_a_shell_is_told_what_may_follow(place: Path, typed: str, wanted: str) -> None:
    words = f"harness {typed}"
    env = {**environment(), "_HARNESS_COMPLETE": "complete_bash"}
    env |= {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = (
        "import sys; sys.argv = ['harness']\nfrom harness.cli import main\n"
        "try: main()\nfinally: assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert wanted in done.stdout.split(), done.stderr
    assert "AssertionError" not in done.stderr


def table(head: str) -> dict[str, list[str]]:
    """Return a table of the page: its first column to the others."""
    lines = PAGE.partition(head)[2].splitlines()[1:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return {row[0].strip("`| "): [cell.strip("| ") for cell in row[1:]] for row in rows}


CODES = {
    name.removeprefix("harness "): [code for code, said in zip((0, 1, 2, 3, 130), row, strict=True) if said != "–"]
    for name, row in table("| command | 0 | 1 | 2 | 3 | 130 |").items()
}


def test_the_table_of_exit_codes_has_every_command_and_says_what_its_help_says() -> None:
    assert list(CODES) == list(LEAVES)
    for name in LEAVES:
        _, _, told = " ".join(run(*name.split(), "--help").stdout.split()).partition("Exit codes:")
        told = re.split("Arguments:|Options:", told)[0]
        assert set(map(int, re.findall(r"(?<!\w)(\d{1,3}) [a-z]", told))) - {130} == set(CODES[name]) - {130}, name


ENDS: list[tuple[str, int, tuple[str, ...]]] = [
    ("sweep", 0, ("tiny.yaml", "--plan")),
    ("sweep", 2, ("none.yaml",)),
    ("sweep", 2, ()),
    ("sweep", 3, ("tiny.yaml", "--plan", "--store", "loop/x")),
    ("status", 0, ("tiny",)),
    ("status", 2, ("none",)),
    ("status", 3, ("looped",)),
    ("report", 0, ("tiny", "--quiet")),
    ("report", 2, ("none",)),
    ("report", 3, ("tiny", "--quiet", "--out", "loop/x")),
    ("worker", 2, ("none",)),
    ("tick", 2, ("none",)),
    ("tick", 3, ("looped",)),
    ("debug", 2, ("tiny.yaml",)),
    ("debug", 3, ("tiny.yaml", "--cell", "mask=dense,seed=0", "--store", "loop/x")),
    ("doctor", 1, ("--store", "loop/x")),
    ("doctor", 2, ("--via", "none")),
    ("data fetch", 0, ("digits",)),
    ("data fetch", 2, ("none",)),
    ("data fetch", 3, ("cifar10", "--data", "loop/x")),
    ("data stage", 2, ("none.yaml",)),
    ("data stage", 3, ("tiny.yaml", "--store", "loop/x")),
    ("data merge", 0, ("other",)),
    ("data merge", 2, ("none",)),
    ("mask show", 0, ("a.pt",)),
    ("mask show", 2, ("none",)),
    ("mask compare", 0, ("a.pt", "b.safetensors")),
    ("mask compare", 2, ("a.pt", "none")),
    ("mask export", 0, ("a.pt", "c.safetensors")),
    ("mask export", 2, ("a.pt", "b.safetensors")),
    ("mask export", 3, ("a.pt", "loop/c.pt")),
    ("wandb sync", 2, ()),
    ("wandb status", 2, ()),
    ("wandb report", 2, ("none",)),
    ("wandb report", 3, ("looped",)),
]


@pytest.mark.parametrize(("name", "code", "argv"), ENDS, ids=lambda value: str(value))
def test_a_command_ends_with_the_code_that_the_table_says(
    name: str, code: int, argv: tuple[str, ...], place: Path
) -> None:
    (place / "loop").symlink_to("loop")
    looped = place / "runs" / "sweeps" / "looped"
    looped.mkdir()
    (looped / "plan.json").symlink_to("plan.json")
    (place / "other" / "stages").mkdir(parents=True)
    assert code in CODES[name]
    done = run(*name.split(), *argv)
    assert done.exit_code == code, done.output
    if code > 1:
        assert done.stdout == "", "a mistake is no result"
        assert done.stderr.strip()
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("room", "argv"),
    [
        (64, ("mask", "export", "a.pt", "c.safetensors")),
        (64, ("mask", "export", "a.pt", "c.pt", "--form", "weight_mask")),
        (500, ("sweep", "tiny.yaml", "--store", "new")),
        (50_000, ("sweep", "tiny.yaml", "--store", "new", "--only", "mask=dense,seed=0", "--via", "debug")),
        (500, ("report", "tiny", "--quiet")),
        (500, ("data", "stage", "tiny.yaml", "--store", "new")),
        (50_000, ("debug", "tiny.yaml", "--cell", "mask=dense,seed=0", "--steps", "1", "--store", "new")),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else str(value),
)
def test_a_disk_that_takes_no_more_ends_a_command_with_3(room: int, argv: tuple[str, ...], place: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # as a full disk does it, but for anybody
    try:
        done = run(*argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.exit_code == 3, done.output
    assert "File too large" in done.stderr
    assert not list(place.glob("c.*")), "half a file is none"


JSON: dict[str, tuple[str, ...]] = {
    "harness sweep FILE --plan --json": ("sweep", "tiny.yaml", "--plan", "--json"),
    "the same of a file with `search:": ("sweep", "sweeps/tuning.yaml", "--plan", "--json"),
    "harness status NAME --json": ("status", "tiny", "--json"),
    "harness doctor --json": ("doctor", "--json"),
    "harness mask show MASK --json": ("mask", "show", "a.pt", "--json"),
    "harness mask compare A B --json": ("mask", "compare", "a.pt", "b.safetensors", "--json"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_alone_comes_on_stdout_with_the_keys_that_the_page_names(name: str, place: Path) -> None:
    (told,) = table("| command | top-level keys |")[name]
    keys = re.findall(r"`(\w+)`", told.partition(", each")[0].partition("; with")[0])
    done = run(*JSON[name])
    assert list(json.loads(done.stdout)) == keys, done.output


def test_a_comparison_of_masks_as_json_says_what_its_table_says(place: Path) -> None:
    found = json.loads(run("mask", "compare", "a.pt", "b.safetensors", "--json").stdout)
    assert found["layers"] == [
        {"layer": "conv.weight", "kept": [1, 1], "iou": 1.0, "differing": 0.0},
        {"layer": "fc.weight", "kept": [2, 1], "iou": 0.5, "differing": 0.5},
    ]
    assert found["all"] == {"kept": [3, 2], "iou": 2 / 3, "differing": 1 / 6}
    shown = json.loads(run("mask", "show", "a.pt", "--json").stdout)
    assert shown["layers"][0] == {"layer": "conv.weight", "weights": 4, "kept": 1, "filters": 2, "dead_filters": 1}
    assert shown["all"] == {"weights": 6, "kept": 3}
    text = run("mask", "compare", "a.pt", "b.safetensors").stdout
    assert re.search(r"all\W+3\W+2\W+0\.6667\W+16\.67%", text)


def on_a_terminal(folder: Path, **more: str) -> str:
    """Run `harness status tiny` with a terminal as its stdout; return what came."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **more}
    env = {name: value for name, value in env.items() if value}
    argv = [sys.executable, "-m", "harness.cli", "status", "tiny"]
    process = subprocess.Popen(argv, cwd=folder, env=env, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 65536):
            parts.append(part)
    except OSError:  # the other end is closed: Linux says EIO
        pass
    os.close(ours)
    assert process.wait(60) == 0
    return b"".join(parts).decode()


@pytest.mark.parametrize("asked", [{"NO_COLOR": "1"}, {"TERM": "dumb", "NO_COLOR": ""}], ids=str)
def test_nothing_is_coloured_where_that_is_asked_for(asked: Mapping[str, str], place: Path) -> None:
    text = on_a_terminal(place, **asked)
    assert "0 of 10 cells done" in text
    assert not COLOUR.search(text)
    if asked.get("TERM") == "dumb":
        assert "\x1b" not in text


def test_a_terminal_without_box_characters_gets_tables_of_ascii(place: Path) -> None:
    env = {**environment(), "PYTHONIOENCODING": "ascii", "FORCE_COLOR": ""}
    for argv in (
        ["status", "tiny"],
        ["sweep", "tiny.yaml", "--plan"],
        ["mask", "show", "a.pt"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "harness.cli", *argv], cwd=place, env=env, capture_output=True, timeout=60
        )
        assert done.stdout.isascii()
        assert done.stdout
        assert b"Traceback" not in done.stderr
        assert b"\x1b" not in done.stdout, "and no colours, since it is no terminal"


def test_a_reader_that_goes_is_no_failure(place: Path) -> None:
    command = [sys.executable, "-m", "harness.sweep", "tiny.yaml", "--plan", "--json"]
    asked = subprocess.Popen(
        command, cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert asked.stdout is not None
    asked.stdout.close()
    assert asked.stderr is not None
    with asked:
        assert asked.stderr.read() == ""
    assert asked.returncode == 141
