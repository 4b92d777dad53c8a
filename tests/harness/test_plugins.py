"""Methods of one's own: found without being run, hashed with what they import, frozen, and told what they lack."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.plugins import find_plugin, forget_frozen, freeze, load_frozen

GOOD = "import helper\n\ndef score(model, batches, power=2.0, signed=False):\n    return helper.VALUE\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(GOOD)
    (tmp_path / "helper.py").write_text("VALUE = 1\n")
    return tmp_path


def test_knobs_are_the_parameters_with_plain_defaults(folder: Path) -> None:
    plugin = find_plugin("./mine.py:score", folder)
    assert {name: knob.default for name, knob in plugin.knobs.items()} == {"power": 2.0, "signed": False}
    assert {"model", "batches"} <= plugin.parameters


def test_finding_runs_nothing(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('run')\n" + GOOD)
    assert find_plugin("./mine.py:score", folder).path == "mine.py:score"


def test_the_source_covers_imported_siblings_and_not_the_folder(folder: Path, tmp_path: Path) -> None:
    first = find_plugin("./mine.py:score", folder).source
    (folder / "unrelated.py").write_text("x = 1\n")
    assert find_plugin("./mine.py:score", folder).source == first
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("mine.py", "helper.py"):
        (copy / name).write_text((folder / name).read_text())
    assert find_plugin("./mine.py:score", copy).source == first
    (folder / "helper.py").write_text("VALUE = 2\n")
    assert find_plugin("./mine.py:score", folder).source != first


def test_what_was_planned_runs_whatever_is_edited_later(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    old = find_plugin("./mine.py:score", folder)
    freeze(old, store)
    (folder / "helper.py").write_text("VALUE = 2\n")
    new = find_plugin("./mine.py:score", folder)
    freeze(new, store)
    try:
        assert load_frozen(store, old.source, old.path)(None, None) == 1
        forget_frozen()
        assert load_frozen(store, new.source, new.path)(None, None) == 2
    finally:
        forget_frozen()
    assert "helper" not in sys.modules
    assert not any("plugins" in path for path in sys.path)


def test_a_damaged_frozen_copy_is_refused_and_made_anew(folder: Path, tmp_path: Path) -> None:
    plugin, store = find_plugin("./mine.py:score", folder), tmp_path / "store"
    freeze(plugin, store)
    copy = store / "plugins" / plugin.source / "helper.py"
    copy.write_text("VALUE = 3\n")
    with pytest.raises(UserError, match="damaged; run the sweep command again to restore it"):
        load_frozen(store, plugin.source, plugin.path)
    freeze(plugin, store)
    try:
        assert load_frozen(store, plugin.source, plugin.path)(None, None) == 1
    finally:
        forget_frozen()
    assert sorted(path.name for path in copy.parent.iterdir()) == ["helper.py", "mine.py"]


def test_dataclasses_and_late_imports_work_in_a_frozen_copy(folder: Path, tmp_path: Path) -> None:
    (folder / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Box:\n    x: int\n\n"
        "def score(model):\n    import helper\n    return Box(helper.VALUE).x\n"
    )
    plugin = find_plugin("./mine.py:score", folder)
    freeze(plugin, tmp_path / "store")
    try:
        assert load_frozen(tmp_path / "store", plugin.source, plugin.path)(None) == 1
    finally:
        forget_frozen()


@pytest.mark.parametrize(
    ("text", "reference", "said"),
    [
        (GOOD, "./mine.py", "write './file.py:function'"),
        (GOOD, "./mnie.py:score", "did you mean 'mine.py'?"),
        (GOOD, "./mine.py:scor", "did you mean 'score'?"),
        (GOOD, "no_such_package.module:score", "no module 'no_such_package.module' is installed"),
        ("def score(model:\n", "./mine.py:score", "mine.py:1: not Python"),
        ("def score(model, other): ...\n", "./mine.py:score", "has the parameter 'other'"),
        ("def score(model, k={}): ...\n", "./mine.py:score", "has the parameter 'k'"),
        ("from . import helper\ndef score(model): ...\n", "./mine.py:score", "mine.py:1: a relative import"),
        ("async def score(model): ...\n", "./mine.py:score", "no `def` or `class` score"),
    ],
)
def test_what_cannot_be_a_plugin_is_said(text: str, reference: str, said: str, folder: Path) -> None:
    (folder / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        find_plugin(reference, folder)


def test_a_name_that_a_file_only_imports_is_told_with_where_it_is(folder: Path) -> None:
    (folder / "core.py").write_text("def score(model): ...\n")
    (folder / "front.py").write_text("from core import score\n")
    with pytest.raises(ValueError, match=r"front.py only imports score, from core; name the module that defines it"):
        find_plugin("./front.py:score", folder)


def test_a_method_without_what_its_kind_is_given_is_refused(folder: Path) -> None:
    plugin = find_plugin("./mine.py:score", folder)
    plugin.check("mask")
    with pytest.raises(ValueError, match="takes the parameters channels, classes"):
        plugin.check("arch")


def test_what_is_never_given_to_a_kind_is_refused_where_it_has_no_default(folder: Path) -> None:
    (folder / "net.py").write_text("def build(classes, channels, shape, generator, width=8):\n    return None\n")
    with pytest.raises(ValueError, match="is given channels, classes, never generator, shape; take"):
        find_plugin("./net.py:build", folder).check("arch")
    (folder / "net.py").write_text("def build(classes, channels, shape=None):\n    return None\n")
    find_plugin("./net.py:build", folder).check("arch")
    for kind, text in {
        "mask": "def make(model, batches, shape, generator):",
        "dataset": "def make(folder):",
        "part": "class make:\n    def __init__(self, shape, window):",
    }.items():
        (folder / "own.py").write_text(f"{text} ...\n")
        find_plugin("./own.py:make", folder).check(kind)


def test_a_folder_beside_a_file_is_refused_unless_it_is_installed(folder: Path) -> None:
    for name in ("parts", "json"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("VALUE = 1\n")
    (folder / "mine.py").write_text("import json.decoder\n" + GOOD)
    assert find_plugin("./mine.py:score", folder).files
    (folder / "helper.py").write_text("def late():\n    from parts.inner import VALUE\n")
    with pytest.raises(ValueError, match=r"helper.py: imports the folder parts/ beside it, which is neither copied"):
        find_plugin("./mine.py:score", folder)


def test_an_installed_module_can_be_a_plugin() -> None:
    plugin = find_plugin("tost.masks.scores:magnitude", Path())
    assert plugin.path == "scores.py:magnitude"
