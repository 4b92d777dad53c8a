"""Methods of installed packages: found unrun, kept whole, in the key with their version, never in a catalog's place."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from torch import nn

from harness.check import load_sweep
from harness.errors import FileError
from harness.offered import GROUPS, offers
from harness.plan import Plan, Stage
from harness.planfile import save_plan
from harness.planner import make_plan
from harness.plugins import forget_frozen, load_frozen
from harness.store import Store
from tests.conftest import THIN

SCORES = """
from . import helper
from .deep.more import BIAS

def score(model, power=2.0):
    from pack.deep import late
    return helper.VALUE + BIAS + late.ADDED

def other(model): ...
"""
FILES = {
    "pack/__init__.py": "",
    "pack/scores.py": SCORES,
    "pack/helper.py": "VALUE = 1\n",
    "pack/deep/__init__.py": "",
    "pack/deep/more.py": "BIAS = 10\n",
    "pack/deep/late.py": "ADDED = 100\n",
}
SWEEP = """
name: offered
protocol: {preset: quick, epochs: 2}
grid: {dataset: digits, arch: resnet20, mask: [MASK], sparsity: 50%, recipe: [RECIPE]}
tables: [any-mask]
"""

Install = Callable[..., None]
Planned = Callable[..., Plan]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    offers.cache_clear()
    yield folder
    forget_frozen()
    offers.cache_clear()
    assert not any(name.partition(".")[0] == "pack" for name in sys.modules)


@pytest.fixture
def install(site: Path) -> Install:
    """Install a package as pip leaves it: its files, and beside them its metadata with its entry points."""

    def run(name: str, version: str, files: dict[str, str], **points: str) -> None:
        for old in site.glob(f"{name}-*.dist-info"):
            shutil.rmtree(old)
        for file, text in files.items():
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).write_text(text)
        told = site / f"{name}-{version}.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (told / "entry_points.txt").write_text(
            "".join(
                f"[{GROUPS[kind]}]\n" + "".join(f"{line.strip()}\n" for line in said.split(";"))
                for kind, said in points.items()
            )
        )
        offers.cache_clear()

    return run


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    def run(mask: str = "mine", recipe: str = "default", more: str = "") -> Plan:
        text = SWEEP.replace("MASK", mask).replace("RECIPE", recipe) + more
        (tmp_path / "offered.yaml").write_text(text)
        sweep, store = load_sweep(tmp_path / "offered.yaml"), Store(tmp_path / "runs")
        plan = make_plan(sweep, store, tmp_path)
        save_plan(plan, store, sweep, whole=True)
        return plan

    return run


def mask_of(plan: Plan) -> Stage:
    (stage,) = [stage for stage in plan.stages.values() if stage.kind == "mask"]
    return stage


def test_what_was_planned_runs_whatever_becomes_of_the_package(
    install: Install, planned: Planned, site: Path, tmp_path: Path
) -> None:
    install("pack", "1.2", FILES, mask="mine = pack.scores:score")
    method = mask_of(planned("{mine: {power: 3}}")).spec["method"]
    assert (method["package"], method["path"], method["args"]) == ("pack 1.2", "pack/scores.py:score", {"power": 3.0})
    assert not any(name.partition(".")[0] == "pack" for name in sys.modules), "planning imports nothing of it"
    (site / "pack" / "helper.py").write_text("VALUE = 2\n")
    import pack.helper  # type: ignore[import-not-found]

    assert pack.helper.VALUE == 2
    shutil.rmtree(site / "pack")
    assert load_frozen(tmp_path / "runs", method["source"], method["path"])(None) == 111
    (tmp_path / "runs" / "plugins" / method["source"] / "pack" / "helper.py").write_text("VALUE = 3\n")
    forget_frozen()
    with pytest.raises(Exception, match="damaged; run the sweep command again"):
        load_frozen(tmp_path / "runs", method["source"], method["path"])


def test_planning_runs_nothing_of_a_package(install: Install, planned: Planned) -> None:
    harmful = {name: f"raise SystemExit('run')\n{text}" for name, text in FILES.items()}
    install("pack", "1.2", harmful, mask="mine = pack.scores:score")
    assert mask_of(planned()).spec["method"]["path"] == "pack/scores.py:score"


def test_version_and_every_file_are_in_the_key(install: Install, planned: Planned, site: Path) -> None:
    point = {"mask": "mine = pack.scores:score"}
    install("pack", "1.2", FILES, **point)
    first = mask_of(planned()).key
    (site / "elsewhere.py").write_text("X = 1\n")
    (site / "pack" / "notes.txt").write_text("no code")
    assert mask_of(planned()).key == first
    install("pack", "1.3", FILES, **point)
    assert mask_of(planned()).key != first
    for name in FILES:
        install("pack", "1.2", FILES | {name: f"{FILES[name]}\n# changed"}, **point)
        assert mask_of(planned()).key != first, name
    install("pack", "1.2", FILES, **point)
    assert mask_of(planned()).key == first


def test_a_catalog_s_name_is_never_taken(install: Install, planned: Planned) -> None:
    before = {**planned("snip, dense, small_dense", "tost, default, ls").stages}
    evil = {"evil.py": "def f(model): ...\nclass P:\n    def __init__(self): ...\n"}
    masks = "snip = evil:f; dense = evil:f; small_dense = evil:f; file = evil:f"
    install(
        "evil",
        "6.6",
        evil,
        mask=masks,
        arch="resnet20 = evil:f",
        dataset="digits = evil:f",
        part="ls=evil:P; tost=evil:P; default=evil:P",
    )
    assert {**planned("snip, dense, small_dense", "tost, default, ls").stages} == before


def test_use_says_what_a_name_means(install: Install, planned: Planned, tmp_path: Path) -> None:
    install("pack", "1.2", FILES, mask="mine = pack.scores:score")
    (tmp_path / "own.py").write_text("def score(model): ...\n")
    assert mask_of(planned(more='use: {mine: "./own.py:score"}\n')).spec["method"]["path"] == "own.py:score"


def test_networks_data_sets_and_parts_can_be_offered(install: Install, planned: Planned, tmp_path: Path) -> None:
    part = "class Soft:\n    def __init__(self, strength=1.0): ...\n"
    files = {"pack/__init__.py": "", "pack/all.py": f"{THIN}\ndef load(count=3): ...\n{part}"}
    install(
        "pack", "1", files, arch="thin = pack.all:build", dataset="made = pack.all:load", part="soft = pack.all:Soft"
    )
    stages = planned(
        "random", "soft, default, ls+soft", "also: [{arch: thin}, {dataset: made}, {soft.strength: [2, 3]}]\n"
    )
    said = str([stage.spec for stage in stages.stages.values()])
    for name in ("build", "load", "Soft"):
        assert f"pack/all.py:{name}" in said
    assert "'strength': 3.0" in said
    source = next(plugin.source for plugin in stages.plugins)
    assert {plugin.source for plugin in stages.plugins} == {source}, "one copy of a package serves all that it offers"
    build = load_frozen(tmp_path / "runs", source, "pack/all.py:build")
    assert isinstance(build(10, 1), nn.Module)


@pytest.mark.parametrize(
    ("files", "point", "mask", "said"),
    [
        ({}, "mine = pack.scores:score", "mien", "(did you mean 'mine'?)"),
        ({}, "mine = pack.scores:score", "{mine: {powr: 2}}", "(did you mean 'power'?)"),
        (
            {},
            "mine = pack.nowhere:score",
            "mine",
            "mine, which pack 1.2 offers as pack.nowhere:score: there is no module",
        ),
        ({}, "mine = nopack.scores:score", "mine", "there is no module nopack.scores where packages are installed"),
        ({}, "mine = pack.scores:scor", "mine", "(did you mean 'score'?)"),
        ({}, "mine = pack.scores", "mine", "an entry point is written NAME = package.module:function"),
        ({"pack/scores.py": "def score(net): ...\n"}, "mine = pack.scores:score", "mine", "has the parameter 'net'"),
        ({"pack/scores.py": "def score(:\n"}, "mine = pack.scores:score", "mine", "not Python"),
        (
            {f"pack/fast{EXTENSION_SUFFIXES[0]}": ""},
            "mine = pack.scores:score",
            "mine",
            "is compiled; only packages of",
        ),
        ({}, "my-mask = pack.scores:score", "my-mask", "'my-mask' is no mask method"),
    ],
)
def test_mistakes_are_said_in_words(
    files: dict[str, str], point: str, mask: str, said: str, install: Install, planned: Planned
) -> None:
    install("pack", "1.2", FILES | files, mask=point)
    with pytest.raises(FileError, match=re.escape(said)):
        planned(mask)


def test_a_name_that_two_packages_offer_is_refused(install: Install, planned: Planned) -> None:
    install("pack", "1.2", FILES, mask="mine = pack.scores:score")
    install("rival", "2.0", {"rival.py": "def f(model): ...\n"}, mask="mine = rival:f")
    with pytest.raises(FileError, match=r"mine is offered by pack 1\.2 and by rival 2\.0; uninstall one of them"):
        planned()
