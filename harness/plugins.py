"""A user's own methods: found and hashed without being run, frozen into the store, loaded from there."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from harness.errors import UserError, short, usable_path
from harness.store import write_whole
from tost.catalog import Entry, Knob, nearest

OFFERED = frozenset({"model", "batches", "shape", "generator", "classes", "channels", "folder", "window", "self"})
"""Parameter names that the harness fills; every other one with a literal default is a knob."""

FILLED = {
    "mask": {"model", "batches", "shape", "generator"},
    "arch": {"classes", "channels"},
    "dataset": {"folder"},
    "part": {"shape", "window"},
}
"""Which of them a method of a kind is given."""
RESERVED = frozenset({"at", "rewind", "control"})
"""Knobs of every mask method that are composed around the score."""

SOURCE_DIGITS = 32


@dataclass(frozen=True)
class Plugin(Entry):
    """A method in a user's file: `source` is the hash of the file and of the sibling modules it imports.

    Of a method that an installed package offers, it is the hash of all of the package's Python files.
    """

    source: str = ""
    root: Path = Path()
    """What `path`, and the files' names in a frozen copy, are relative to."""
    files: tuple[Path, ...] = ()
    parameters: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    """Those without a default."""
    halvings: int = 0
    package: str = ""
    """Name and version of the installed package that offers it."""

    def check(self, kind: str) -> None:
        """Raise ValueError where a method cannot be one of its kind: it lacks what is given, or wants what never is."""
        if kind == "mask" and (taken := sorted(RESERVED & self.parameters)):
            raise ValueError(
                f"{self.path}: {', '.join(taken)}: the harness's own knob; give the parameter another name"
            )
        said = "architecture" if kind == "arch" else kind
        needed = {"mask": {"model"}, "arch": {"classes", "channels"}}.get(kind, set())
        if lacking := sorted(needed - self.parameters):
            raise ValueError(
                f"{self.path}: a method for {said} takes the parameters {', '.join(sorted(needed))}; "
                f"it lacks {', '.join(lacking)}"
            )
        if never := sorted(self.required - FILLED[kind] - {"self"}):
            raise ValueError(
                f"{self.path}: a method for {said} is given {', '.join(sorted(FILLED[kind]))}, "
                f"never {', '.join(never)}; take it out, or give it a plain default"
            )


def find_plugin(reference: str, folder: Path) -> Plugin:
    """Read what `./file.py:name`, `package.module:name` names, the path relative to a folder. Runs none of it.

    Raises ValueError that says what is missing.
    """
    place, colon, attribute = reference.rpartition(":")
    if not colon or not attribute.isidentifier():
        raise ValueError(f"{short(reference)} is not allowed; write './file.py:function' or 'package.module:function'")
    path = usable_path(place, folder) if place.endswith(".py") else _module_file(place, attribute)
    return make_plugin(attribute, with_siblings(path), path.parent)


def make_plugin(attribute: str, files: Sequence[Path], root: Path, package: str = "") -> Plugin:
    """Return the method of a name in the first of some files. Raises ValueError where it is none, or not there."""
    knobs, parameters, required = _signature(files[0], attribute)
    path = f"{files[0].relative_to(root).as_posix()}:{attribute}"
    return Plugin(path, 1, knobs, _source(files, root), root, tuple(files), parameters, required, package=package)


def _source(files: Iterable[Path], root: Path) -> str:
    """Return the hash of a method's file, which comes first, and of those that go with it."""
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix()
        digest.update(f"{name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:SOURCE_DIGITS]


def find_module(module: str) -> ModuleSpec | None:
    """Find an installed module without running any of it, nor of the packages that it is in."""
    name, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # no name at all, or one of a module that was put together by hand
        return None
    for part in rest:
        name = f"{name}.{part}"
        places = spec.submodule_search_locations if spec else None
        spec = PathFinder.find_spec(name, places) if places else None
    return spec


def _module_file(module: str, attribute: str) -> Path:
    spec = find_module(module)
    if spec is None or not spec.origin:
        raise ValueError(f"no module {short(module)} is installed; a file is written './file.py:{attribute}'")
    if not spec.origin.endswith(".py"):
        raise ValueError(
            f"{short(module)} is built in or compiled; a method must be in a Python file that can be hashed"
        )
    return Path(spec.origin)


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


def with_siblings(path: Path) -> list[Path]:
    """Return a file and all modules beside it that it imports, directly or through one another.

    Raises ValueError for a relative import, for one of a folder beside it that is nowhere else, and for a file that is
    not Python.
    """
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
            for module in {name.split(".")[0] for name in names if len(name) < 200}:
                if (sibling := path.parent / f"{module}.py").is_file():
                    waiting.append(sibling)
                elif any((path.parent / module).glob("*.py")) and not _installed(module):
                    raise ValueError(
                        f"{file}: imports the folder {module}/ beside it, which is neither copied nor part of the key; "
                        "put what it needs into modules beside the file, or install it as a package"
                    )
    return [path, *sorted(set(found) - {path})]


def _installed(module: str) -> bool:
    """Return whether a module comes with Python or an installed package, wherever the command was started."""
    others = [finder for finder in sys.meta_path if finder is not PathFinder]
    found = PathFinder.find_spec(module, sys.path[1:])  # the first is where it was started
    return found is not None or any(finder.find_spec(module, None) for finder in others)


def _signature(path: Path, attribute: str) -> tuple[dict[str, Knob], frozenset[str], frozenset[str]]:
    """Return a method's knobs, all its parameters, and those of them without a default."""
    tree = _parse(path)
    nodes = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    if attribute not in nodes:
        if origin := _imported_from(tree, attribute):
            raise ValueError(f"{path} only imports {attribute}, from {origin}; name the module that defines it")
        there = ", ".join(nodes) or "none"
        raise ValueError(f"{path} has no `def` or `class` {attribute}; there are {there}{nearest(attribute, nodes)}")
    node = nodes[attribute]
    if isinstance(node, ast.ClassDef):
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if not inits:
            return {}, frozenset(), frozenset()
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
    required = frozenset(arg.arg for arg, default in pairs if default is None)
    return knobs, frozenset(arg.arg for arg, _ in pairs), required


def _imported_from(tree: ast.Module, attribute: str) -> str:
    """Return the module that a file takes a name from, as it is written there; empty where it takes it from none."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any((name.asname or name.name) == attribute for name in node.names):
            return f"{'.' * node.level}{node.module or ''}"
    return ""


def freeze(plugin: Plugin, store: Path) -> None:
    """Copy a plug-in's sources into the store, so that every worker runs what was planned, whatever is edited later."""
    folder = store / "plugins" / plugin.source
    for file in plugin.files:
        copy, data = folder / file.relative_to(plugin.root), file.read_bytes()
        if not copy.is_file() or copy.read_bytes() != data:
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_whole(copy, data)


def load_frozen(store: Path, source: str, path: str) -> Any:
    """Import `file.py:name` from the frozen copy of a source hash. Runs the user's code.

    Raises UserError when the copy is gone or damaged.
    """
    filename, _, attribute = path.partition(":")
    root = store / "plugins" / source
    file = root / filename
    if not file.is_file():
        raise UserError(f"{file}: the frozen copy of a plug-in is gone; run the sweep command again to restore it")
    parts = Path(filename).with_suffix("").parts
    package = parts[0] if len(parts) > 1 else ""
    name = ".".join(parts).removesuffix(".__init__") if package else f"plugin_{source}_{file.stem}"
    if Path(getattr(sys.modules.get(name), "__file__", None) or "") == file:
        return getattr(sys.modules[name], attribute)
    if _source([file, *sorted(set(root.rglob("*.py")) - {file})], root) != source:
        raise UserError(f"{file}: the frozen copy of a plug-in is damaged; run the sweep command again to restore it")
    sys.path.insert(0, str(root))
    sys.dont_write_bytecode = True  # a compiled copy would be believed without a checksum
    if package:
        _forget_package(package)
        importlib.invalidate_caches()
        return getattr(importlib.import_module(name), attribute)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # a .py file always has a loader # noqa: S101
    assert spec.loader is not None  # noqa: S101
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return getattr(module, attribute)


def _forget_package(package: str) -> None:
    """Unload a package that is not the frozen one: as it is installed, or as it was frozen earlier."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


def forget_frozen() -> None:
    """Unload all plug-ins and their siblings: the next stage may want another file of the same name."""
    folders = {
        path for path in sys.path if Path(path).parent.name == "plugins" and len(Path(path).name) == SOURCE_DIGITS
    }
    sys.path[:] = [path for path in sys.path if path not in folders]
    sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if origin and folders & set(map(str, Path(origin).parents)):
            del sys.modules[name]
