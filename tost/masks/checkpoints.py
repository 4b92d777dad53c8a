"""Checkpoints of other codes: tensors in nested dicts and lists, read without running anything that the file holds."""

from __future__ import annotations

import contextlib
import pickletools  # its opcodes are listed, none is run # nosec B403
import reprlib
import sys
import warnings
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.serialization import safe_globals

Level = (Mapping, list, tuple)
"""The kinds of a checkpoint's containers."""

NEVER = "which is never loaded: it could run code"

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
"""What the files that torch.save wrote before zip files begin with."""

MOST_OPCODES = 1_000_000
MOST_LEVELS = 10_000
DEEPEST = 8
LONGEST = 200
"""Characters of a name that is shown or gone into."""

MEMORY = "builtins.bytearray"
"""What torch lets a file of some bytes call with any size."""

CLASS = "<class>"
"""The entry of a record's attributes that names its class; no attribute has such a name."""

PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules whose names torch.save writes as Python 2 knew them."""

ARRAY = "numpy.ndarray"
RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
SHORT = reprlib.Repr()
SHORT.maxlevel = 2
CONTAINERS: Mapping[str, Callable[..., Any]] = {
    "collections.defaultdict": lambda *_: {},
    "collections.deque": lambda *_: [],
}
"""Containers that are read as their plain kind; functions, because the unpickler only fills exact dicts and lists."""


class ClassName(str):
    """The name of a class that a record stands for, which no file can write: only a text of this type is one."""

    __slots__ = ()


class Foreign:
    """Stands for an object of a checkpoint that is no tensor: only the name of its class is kept."""

    name = ""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load_checkpoint(path: Path, ordered: bool = False) -> Any:
    """Load a safetensors file, or what torch.save wrote: tensors and plain containers, anything else a Foreign.

    No global that the file names is imported or called: those that torch does not know as harmless are replaced by
    inert classes of the same name. `ordered`: the order of the entries will be relied on.
    Raises ValueError, naming the file, what it holds and the lines that convert it.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if head[8:] == b"{":
        if ordered:
            raise ValueError(f"{path}: safetensors keeps tensors by name, not in order; match: order needs torch.save")
        try:
            return load_file(path)
        except Exception as error:  # of its header SafetensorError, of what that says of a tensor anything
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    if head[:4] == b"PK\3\4":
        _check_unpacked(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of pickle protocols; what cannot be read raises
        named, whole = _globals(path)
        if MEMORY in named:
            kept = "{n: v for n, v in found.items() if not isinstance(v, bytearray)}"
            raise ValueError(
                f"{path}: names {MEMORY}, which is never loaded: a few bytes make it any size{_lines(path, kept)}"
            )
        if whole:
            with contextlib.suppress(Exception):  # what torch.save did not write raises anything
                return torch.load(path, map_location="cpu", weights_only=True)
        for records in (True, False) if named and whole else ():
            with contextlib.suppress(Exception), safe_globals([(_stub(name, records), name) for name in named]):
                return torch.load(path, map_location="cpu", weights_only=True)
    raise ValueError(
        f"{path}: is neither safetensors nor a file of tensors that torch.save wrote{_described(path, named)}"
    )


def levels(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield every dict and list of a checkpoint under its name, such as `trainer.state_dict`; the outermost is ''."""
    seen: set[int] = set()
    waiting: deque[tuple[str, Any, int]] = deque([("", root, 0)])
    while waiting and len(seen) < MOST_LEVELS:
        name, level, depth = waiting.popleft()
        if not isinstance(level, Level) or id(level) in seen:
            continue
        seen.add(id(level))
        yield name, level
        if depth < DEEPEST:
            below = ((text(key), value) for key, value in items(level) if isinstance(value, Level))
            waiting.extend((joined(name, key), value, depth + 1) for key, value in below if len(key) <= LONGEST)


def items(level: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what a dict holds by its keys, what a list holds by its places, and nothing of anything else."""
    if isinstance(level, Mapping):
        yield from type(level).items(level)  # a file may hold attributes of that name
    elif isinstance(level, Level):
        yield from enumerate(level)


def text(key: Any) -> str:
    """Return a key as text; one that is none is shortened, as tuples that share their parts can fill any memory."""
    return str(key) if isinstance(key, str | int) else SHORT.repr(key)


def joined(name: str, key: str) -> str:
    """Return the name of what stands under a key of a dict or list that has a name itself."""
    return f"{name}.{key}" if name else key


def in_the_way(path: Path, root: Any) -> str:
    """Return what a checkpoint holds in place of tensors, and the lines that convert it, as the end of a sentence."""
    if said := _class(root):
        return f"it is a whole pickled {said}, {NEVER}{_lines(path, 'found.state_dict()')}"
    found = [(name, level, key, _class(value)) for name, level in levels(root) for key, value in items(level)]
    for name, level, _, said in found:
        if said == ARRAY:
            each = "{n: torch.as_tensor(a) for n, a in %s.items()}"
            each = each if isinstance(level, Mapping) else "[torch.as_tensor(a) for a in %s]"
            kind = "dict" if isinstance(level, Mapping) else "list"
            what = f"its entry {name!r}" if name else "it"
            return f"{what} is a {kind} of numpy arrays, {NEVER}{_lines(path, each % _found(name))}"
    wholes = [(name, key, said) for name, _, key, said in found if said]
    wholes.sort(key=lambda whole: whole[2].partition(".")[0] in {*sys.stdlib_module_names, "numpy"})
    if wholes:
        name, said = joined(wholes[0][0], text(wholes[0][1])), wholes[0][2]
        return f"its entry {name!r} is a pickled {said}, {NEVER}{_lines(path, f'{_found(name)}.state_dict()')}"
    return "write one with torch.save(model.state_dict(), path)"


def _class(value: Any) -> str:
    """Return the name of the class that an object stands for, or nothing where it is what it seems."""
    if isinstance(value, Foreign):
        return ARRAY if value.name in RECONSTRUCT else value.name[:LONGEST]
    name = vars(value).get(CLASS) if type(value) is OrderedDict else None
    return name[:LONGEST] if isinstance(name, ClassName) else ""


def _found(name: str) -> str:
    return "found" + "".join(f"[{part!r}]" for part in name.split(".") if name)


def _lines(path: Path, value: str, loading: str = "torch.load({}, weights_only=False)", imported: str = "torch") -> str:
    """Return the lines that convert a file which is trusted, as the end of a sentence."""
    return (
        f". Where you trust it, convert it:\n    import {imported}\n    found = {loading.format(repr(str(path)))}"
        f"\n    torch.save({value}, 'masks.pt')"
    )


def _stub(name: str, records: bool) -> Callable[..., Any]:
    """Return what stands for a global: inert, whatever it is called with.

    `records`: its objects are dicts, as those of subclasses of dict must be to be filled; numpy's never are.
    """
    if name in CONTAINERS:
        return CONTAINERS[name]
    if not records or name.startswith("numpy"):
        return type(name, (Foreign,), {"name": name})

    def new(*_: object) -> OrderedDict[Any, Any]:
        record: OrderedDict[Any, Any] = OrderedDict()
        vars(record)[CLASS] = ClassName(name)
        return record

    return type(name, (), {"__new__": new})


def _globals(path: Path) -> tuple[set[str], bool]:
    """Return the globals that the pickles inside a file of torch.save name, without unpickling, and whether it is one.

    All that torch.load would unpickle is listed; what cannot be listed to its end is no such file.
    """
    found: set[str] = set()
    with contextlib.suppress(Exception), path.open("rb") as file:  # junk raises anything
        if file.read(4) == b"PK\3\4":
            with zipfile.ZipFile(file) as whole:
                (inner,) = [name for name in whole.namelist() if name.lower().endswith("/data.pkl")]
                with whole.open(inner) as pickled:
                    return _named(pickled)[1], True
        file.seek(0)
        if any(argument == MAGIC_NUMBER for _, argument, _ in islice(pickletools.genops(file), 10)):
            file.seek(0)
            for _ in range(5):  # the magic number, the version, what machine wrote it, the object, its storages
                found |= _named(file)[1]
            return found, True
    return found, False


def _named(file: Any, most: int | None = None) -> tuple[str, set[str]]:
    """Return what the next pickle in a file is outermost (list, dict or nothing), and the globals that it names."""
    outermost, found, texts = "", set(), ["", ""]
    for number, (code, argument, _) in enumerate(islice(pickletools.genops(file), most)):
        if number < 4 and not outermost:
            outermost = {"EMPTY_LIST": "list", "EMPTY_DICT": "dict", "LIST": "list", "DICT": "dict"}.get(code.name, "")
        if isinstance(argument, str) and "UNICODE" in code.name:
            texts = [texts[1], argument]
        if code.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            module, _, name = str(argument).partition(" ") if argument else (texts[0], "", texts[1])
            found.add(f"{PYTHON_2.get(module, module)}.{name}")
    return outermost, found


def _check_unpacked(path: Path) -> None:
    """Raise ValueError for a zip file that says that it holds more than its own size: torch.save packs nothing."""
    try:
        with zipfile.ZipFile(path) as file:
            whole = sum(entry.file_size for entry in file.infolist())
    except Exception:  # a broken table of contents raises anything
        raise ValueError(f"{path}: is neither safetensors nor a whole zip file; write one with torch.save") from None
    if whole > path.stat().st_size:
        raise ValueError(
            f"{path}: is a zip file that unpacks to {whole:,} bytes; torch.save writes none that is packed"
        )


def _described(path: Path, named: set[str]) -> str:
    """Return what a file is that cannot be loaded, and the lines that convert it, as the end of a sentence."""
    tensors = "{n: torch.as_tensor(a) for n, a in found.items()}"
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as whole:  # junk raises anything
        names = whole.namelist()
        if names and all(name.endswith(".npy") for name in names):
            return f"; it is numpy's .npz{_lines(path, tensors, 'numpy.load({})', 'numpy, torch')}"
        if any("/code/" in name for name in names):
            return f"; it is a TorchScript archive{_lines(path, 'found.state_dict()', 'torch.jit.load({})')}"
    if not named:
        with contextlib.suppress(Exception), path.open("rb") as file:
            outermost, named = _named(file, MOST_OPCODES)
            if not outermost and not named:
                raise ValueError(path)
            array = (
                "numpy arrays" if named & set(RECONSTRUCT) else ", ".join(name[:LONGEST] for name in sorted(named)[:3])
            )
            said = "".join((f" of a {outermost}" if outermost else "", f" with {array}" if array else ""))
            value = "[torch.as_tensor(a) for a in found]" if outermost == "list" else tensors
            lines = _lines(path, value, "pickle.loads(pathlib.Path({}).read_bytes())", "pathlib, pickle, torch")
            return f"; it is a plain pickle{said}, {NEVER}{lines}"
    foreign = [name for name in sorted(named) if not name.startswith(("torch.", "collections.", "_codecs."))]
    if foreign:
        value = "{n: t for n, t in found.items() if torch.is_tensor(t)}"
        return f"; it names {', '.join(name[:LONGEST] for name in foreign[:3])}, {NEVER}{_lines(path, value)}"
    return "; write one with torch.save(model.state_dict(), path) (a whole pickled model is never loaded)"
