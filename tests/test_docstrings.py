"""What docstrings say: a source for every method, words for every public name, every error that is raised."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tost
from harness import results
from tost.catalog import MASKS, MODELS, PARTS, resolve

ROOT = Path(tost.__file__).parents[1]
SOURCE = re.compile(r"[A-Z][\w&,. -]+[ (](19|20)\d\d\b")
"""An author and a year."""
METHODS = {path for entry in [*MASKS.values(), *PARTS.values()] for path in (entry.path, getattr(entry, "stage", ""))}
MODULES = [*sorted((ROOT / "tost").rglob("*.py")), Path(str(results.__file__)), ROOT / "harness" / "plugins.py"]


@pytest.mark.parametrize("path", sorted(METHODS - {""}))
def test_a_method_names_its_source(path: str) -> None:
    assert SOURCE.search(resolve(path).__doc__)


@pytest.mark.parametrize("path", sorted({entry.path.partition(":")[0] for entry in MODELS.values()}))
def test_a_module_of_networks_names_its_source(path: str) -> None:
    text = (ROOT / path.replace(".", "/")).with_suffix(".py").read_text()
    assert SOURCE.search(text)


def test_every_public_name_is_told_of_and_is_the_one_that_checkers_see() -> None:
    tree = ast.parse(Path(str(tost.__file__)).read_text())
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tost")
        for alias in node.names
    }
    assert set(seen) == set(tost.__all__) <= set(dir(tost))
    for name, module in seen.items():
        found = getattr(tost, name)
        assert found is getattr(importlib.import_module(module), name)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert vars(found).get("__doc__") if inspect.isclass(found) else found.__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'aply_masks'"):
        getattr(tost, "aply_masks")  # noqa: B009 - a checker would refuse it


def test_the_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "howto" / "own-loop.md").read_text()
    assert [name for name in tost.__all__ if f"`{name}`" not in page] == []


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the public functions and methods of a module, with all that their docstrings, and their classes', say."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield ast.get_docstring(node) or "", node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and (inner.name == "__init__" or not inner.name.startswith("_")):
                    yield f"{ast.get_docstring(node)} {ast.get_docstring(inner)}", inner


def raised(function: ast.FunctionDef) -> set[str]:
    """Return the names of what a function raises anew; `raise` alone, and what is raised again, is left out."""
    found = (node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call))
    return {ast.unparse(call.func) for call in found}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_function_raises_is_said(path: Path) -> None:
    for said, function in functions(ast.parse(path.read_text())):
        missing = {name for name in raised(function) if not re.search(rf"[Rr]aises?\b[^`]*\b{name}\b", said)}
        assert not missing, f"{path.name}: {function.name} does not say that it raises {missing}"
