"""A user's own methods: found and hashed without being run, frozen into the store, loaded from there."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from harness.errors import UserError, short, usable_path
from harness.store import write_whole
from tost.catalog import Entry, Knob, nearest

OFFERED = frozenset({"model", "batches", "shape", "generator", "classes", "channels", "folder", "window", "self"})
"""Parameter names that the harness fills; every other one with a literal default is a knob."""

RESERVED = frozenset({"at", "rewind", "control"})
"""Knobs of every mask method that are composed around the score."""

SOURCE_DIGITS = 32


@dataclass(frozen=True)
class Plugin(Entry):
    """A method in a user's file: `source` is the hash of the file and of the sibling modules it imports."""

    source: str = ""
    files: tuple[Path, ...] = ()
    parameters: frozenset[str] = frozenset()
    halvings: int = 0

    def check(self, kind: str) -> None:
        """Raise ValueError where the method cannot be one of its kind: it lacks a parameter that is always given."""
        if kind == "mask" and (taken := sorted(RESERVED & self.parameters)):
            raise ValueError(
                f"{self.path}: {', '.join(taken)}: the harness's own knob; give the parameter another name"
            )
        needed = {"mask": {"model"}, "arch": {"classes", "channels"}}.get(kind, set())
        if lacking := sorted(needed - self.parameters):
            said = "architecture" if kind == "arch" else kind
            raise ValueError(
                f"{self.path}: a method for {said} takes the parameters {', '.join(sorted(needed))}; "
                f"it lacks {', '.join(lacking)}"
            )


def find_plugin(reference: str, folder: Path) -> Plugin:
    """Read what `./file.py:name`, `package.module:name` names, the path relative to a folder. Runs none of it.

    Raises ValueError that says what is missing.
    """
    place, colon, attribute = reference.rpartition(":")
    if not colon or not attribute.isidentifier():
        raise ValueError(f"{short(reference)} is not allowed; write './file.py:function' or 'package.module:function'")
    path = usable_path(place, folder) if place.endswith(".py") else _module_file(place, attribute)
    files = _with_siblings(path)
    knobs, parameters = _signature(path, attribute)
    return Plugin(f"{path.name}:{attribute}", 1, knobs, _source(files), tuple(files), parameters)


def _source(files: Iterable[Path]) -> str:
    """Return the hash of a method's file, which comes first, and of those that it imports."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:SOURCE_DIGITS]


def _module_file(module: str, attribute: str) -> Path:
    """Return the file of an installed module, its parent packages' __init__ being the only code that runs."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # a parent package's __init__ raises whatever it likes
        spec = None
    if spec is None or not spec.origin:
        raise ValueError(f"no module {short(module)} is installed; a file is written './file.py:{attribute}'")
    if not spec.origin.endswith(".py"):
        raise ValueError(
            f"{short(module)} is built in or compiled; a method must be in a Python file that can be hashed"
        )
    return Path(spec.origin)


@cache
def installed_plugins(group: str) -> dict[str, str]:
    """Return name -> 'package.module:attribute' of the entry points in a group, such as `tost.masks`."""
    return {point.name: point.value for point in entry_points(group=group)}


def _parse(path: Path) -> ast.Module:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is no plain file")
    try:
        return ast.parse(path.read_bytes())
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.glob("*.py")]) if path.parent.is_dir() else ""
        raise ValueError(f"{path}: no such file{near}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        raise ValueError(f"{path}:{error.lineno}: not Python: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: not Python: {error or type(error).__name__}") from None


def _with_siblings(path: Path) -> list[Path]:
    """Return a file and all modules beside it that it imports, directly or through one another."""
    found, waiting = [], [path]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        tree = _parse(file)
        found.append(file)
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level > 0:
                raise ValueError(f"{file}:{node.lineno}: a relative import; write `import name` for a file beside it")
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            siblings = (path.parent / f"{name.split('.')[0]}.py" for name in names if len(name) < 200)
            waiting += [sibling for sibling in siblings if sibling.is_file()]
    return [path, *sorted(set(found) - {path})]


def _signature(path: Path, attribute: str) -> tuple[dict[str, Knob], frozenset[str]]:
    tree = _parse(path)
    nodes = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    if attribute not in nodes:
        there = ", ".join(nodes) or "none"
        raise ValueError(f"{path} has no `def` or `class` {attribute}; there are {there}{nearest(attribute, nodes)}")
    node = nodes[attribute]
    if isinstance(node, ast.ClassDef):
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if not inits:
            return {}, frozenset()
        node = inits[0]
    args = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (len(args) - len(node.args.defaults))
    pairs = list(zip(args, [*defaults, *node.args.defaults], strict=True))
    pairs += list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
    knobs = {}
    for arg, default in pairs:
        if arg.arg in OFFERED:
            continue
        try:
            value = ast.literal_eval(default) if default is not None else None
        except (ValueError, TypeError, RecursionError):
            value = None
        if not isinstance(value, int | float | str | bool) or value in (float("inf"), float("-inf")):
            raise ValueError(
                f"{path}: {attribute}() has the parameter {arg.arg!r}, which is not one the harness fills "
                f"({', '.join(sorted(OFFERED - {'self'}))}) and has no plain default that would make it a knob"
            )
        knobs[arg.arg] = Knob(value)
    return knobs, frozenset(arg.arg for arg, _ in pairs)


def freeze(plugin: Plugin, store: Path) -> None:
    """Copy a plug-in's sources into the store, so that every worker runs what was planned, whatever is edited later."""
    folder = store / "plugins" / plugin.source
    folder.mkdir(parents=True, exist_ok=True)
    for file in plugin.files:
        copy, data = folder / file.name, file.read_bytes()
        if not copy.is_file() or copy.read_bytes() != data:
            write_whole(copy, data)


def load_frozen(store: Path, source: str, path: str) -> Any:
    """Import `file.py:name` from the frozen copy of a source hash. Runs the user's code.

    Raises UserError when the copy is gone or damaged.
    """
    filename, _, attribute = path.partition(":")
    file = store / "plugins" / source / filename
    if not file.is_file():
        raise UserError(f"{file}: the frozen copy of a plug-in is gone; run the sweep command again to restore it")
    name = f"plugin_{source}_{file.stem}"
    if name in sys.modules:
        return getattr(sys.modules[name], attribute)
    if _source([file, *sorted(set(file.parent.glob("*.py")) - {file})]) != source:
        raise UserError(f"{file}: the frozen copy of a plug-in is damaged; run the sweep command again to restore it")
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # a .py file always has a loader # noqa: S101
    assert spec.loader is not None  # noqa: S101
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True  # a compiled copy would be believed without a checksum
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return getattr(module, attribute)


def forget_frozen() -> None:
    """Unload all plug-ins and their siblings: the next stage may want another file of the same name."""
    folders = {
        path for path in sys.path if Path(path).parent.name == "plugins" and len(Path(path).name) == SOURCE_DIGITS
    }
    sys.path[:] = [path for path in sys.path if path not in folders]
    sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if origin and str(Path(origin).parent) in folders:
            del sys.modules[name]
