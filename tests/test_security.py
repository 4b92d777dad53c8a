"""What the project keeps away from: code in data, shells, paths in names."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.check import load_sweep
from harness.errors import UserError
from harness.planfile import SavedPlan, find_plan, read_plan, save_plan
from harness.planner import make_plan
from harness.report.assemble import make_report, write_report
from harness.store import Store
from harness.tracking.settings import Project

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for package in ("harness", "tost")
    for path in sorted((ROOT / package).rglob("*.py"))
}

BUILTINS = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "yaml", "telnetlib"}
ATTRIBUTES = {
    "popen",
    "getoutput",
    "getstatusoutput",
    "mktemp",
    "extractall",
    "read_pickle",
    "to_pickle",
    "exec_module",
    "load_module",
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
}
"""Calls that run what they are given, or unpickle it."""
ALLOWED = {
    ("harness/plugins.py", "exec_module"): "a user's own method is code, and runs where the user asked for it",
    ("harness/train/group.py", "broadcast_object_list"): "the ranks of one training run each other's code anyway",
}
PICKLING = {
    "submitit": {"harness/launch/slurm_request.py"},
    "ray": {"harness/ray_group.py", "harness/ray_run.py"},
}
"""Libraries that pickle by nature, and who may use them: what they are given is an argv, or plain values."""


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str, bool]]:
    """Yield every call with the name that is called, and whether that is an attribute of something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node, node.func.id, False
            elif isinstance(node.func, ast.Attribute):
                yield node, node.func.attr, True


def imported(tree: ast.AST) -> set[str]:
    """Return the top-level packages that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the lines of what is not to be used, with its name."""
    for name in sorted(imported(tree) & MODULES):
        yield 1, name
    for call, name, attribute in calls(tree):
        given = {word.arg: word.value for word in call.keywords}
        plain = {word: value.value for word, value in given.items() if isinstance(value, ast.Constant)}
        of = (
            call.func.value.id if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) else ""
        )
        bad = name in (ATTRIBUTES if attribute else BUILTINS)
        bad |= "shell" in given and plain.get("shell") is not False
        bad |= "allow_pickle" in given and plain.get("allow_pickle") is not False
        bad |= (of, name) == ("os", "system")
        bad |= of == "torch" and name == "load" and plain.get("weights_only") is not True
        bad |= name == "YAML" and plain.get("typ", "rt") not in ("rt", "safe")
        bad |= attribute and name == "recv" and not call.args  # a multiprocessing.Connection's, which unpickles
        if bad:
            yield call.lineno, name


def test_nothing_runs_or_unpickles_what_it_reads() -> None:
    met = set()
    for place, tree in SOURCES.items():
        for line, name in unsafe(tree):
            assert (place, name) in ALLOWED, f"{place}:{line}: {name}"
            met.add((place, name))
    assert met == set(ALLOWED), "an exception that nothing needs any more"


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "exec(text)",
        "import pickle",
        "from yaml import load",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=how)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "YAML(typ='unsafe')",
        "pipe.recv()",
        "tar.extractall(folder)",
    ],
)
def test_the_search_for_it_finds(line: str) -> None:
    assert list(unsafe(ast.parse(line)))


def test_what_pickles_by_nature_is_used_in_few_places_and_given_plain_values() -> None:
    for library, places in PICKLING.items():
        assert {place for place, tree in SOURCES.items() if library in imported(tree)} == places
    (slurm,) = PICKLING["submitit"]
    (handed,) = [call for call, name, _ in calls(SOURCES[slurm]) if name == "map_array"]
    assert ast.unparse(handed) == "executor.map_array(os.execvp, [become[0]] * tasks, [become] * tasks)"


SWEEP = """
name: {name}
protocol: {{preset: quick, epochs: 1}}
use: {{{use}: "./thin.py:build"}}
grid: {{dataset: digits, arch: {use}, mask: random, sparsity: 50%, recipe: default, seed: 0}}
figures: []
tables: [{{name: {table}, rows: [mask], columns: [sparsity]}}]
claims: [{{name: {claim}, compare: {{recipe: [ls, default]}}, margin: 1, seeds: 1}}]
wandb: {{project: {project}, entity: {entity}, mode: offline}}
"""
PLACES = {"name": "a", "use": "thin", "table": "t", "claim": "c", "project": "p", "entity": "e"}
HOSTILE = [
    "../evil",
    "/evil",
    "..",
    ".",
    "a/b",
    "~",
    "a\\b",
    "a\nb",
    "a\0b",
    "CON:x",
    "-rf",
    "$(id)",
    "`id`",
    "x" * 300,
]


def outside(project: Path) -> set[Path]:
    """Return all that lies beside a project's store."""
    return {path for path in project.parent.rglob("*") if "runs" not in path.parts}


def planned(project: Path, store: Store) -> SavedPlan:
    """Plan a sweep as the command does."""
    sweep = load_sweep(project / "x.yaml")
    plan = make_plan(sweep, store, project)
    save_plan(plan, store, sweep, whole=True)
    return read_plan(find_plan(store, plan.name))


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", PLACES)
def test_no_name_of_a_sweep_file_leads_out_of_the_store(place: str, text: str, project: Path) -> None:
    before = outside(project)
    (project / "x.yaml").write_text(SWEEP.format(**{**PLACES, place: json.dumps(text)}))
    store = Store(project / "runs")
    try:
        saved = planned(project, store)
    except UserError as error:
        said = str(error)
    else:
        said = ""
        files = write_report(make_report(store, [saved]), store.sweep(saved.plan.name) / "report")
        assert all(path.resolve().is_relative_to(store.root.resolve()) for path in files)
        entity, name = saved.wandb["entity"], saved.wandb["project"]
        folder = Project("http://127.0.0.1:1", entity, name).folder(store)
        assert folder.resolve().parent == (store.root / "wandb").resolve()
    assert not said or "x.yaml:" in said
    assert outside(project) - before == {project / "x.yaml"}
