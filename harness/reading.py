"""Read YAML by the 1.2 core rules, with the place of every value, duplicate keys refused and expansion bounded."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from harness.errors import Fault, FileError, Mark, UserError, short

Path_ = tuple[str | int, ...]

MOST_BYTES = 256 * 1024
MOST_VALUES = 100_000
MOST_DEPTH = 40

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass
class Document:
    """A file's plain values, and the mark of each path in it."""

    file: str
    values: dict[str, Any]
    marks: dict[Path_, Mark] = field(default_factory=dict)

    def mark(self, path: Path_) -> Mark | None:
        """Return the mark of a path, or of the nearest thing around it that has one."""
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path)


def read_document(path: Path) -> Document:
    """Read one YAML file whose top level is a mapping.

    Raises FileError with file and line for anything wrong with its form, UserError where it cannot be read at all.
    """
    text = _text(path)
    yaml = YAML(typ="safe", pure=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an anchor used twice: the nearer one counts, as YAML has it
            node = yaml.compose(text)
    except MarkedYAMLError as error:
        where = error.problem_mark or error.context_mark
        hint = " (indent with spaces, YAML allows no tabs)" if "\\t" in str(error.problem) else ""
        mark = Mark(str(path), where.line + 1 if where else 1)
        raise FileError([Fault(mark, f"not valid YAML: {error.problem or error.context}{hint}")]) from None
    except Exception as error:  # ruamel lets some of its own through, such as OverflowError for "\\UFFFFFFFF"
        reason = (
            "nested too deeply" if isinstance(error, RecursionError) else (str(error).splitlines() or ["unknown"])[0]
        )
        raise FileError([Fault(Mark(str(path), 1), f"not valid YAML: {reason}")]) from None
    if not isinstance(node, MappingNode):
        raise FileError(
            [Fault(Mark(str(path), 1), "a sweep file is a mapping of keys to values, such as `name: mine`")]
        )
    builder = _Builder(str(path), text)
    values = builder.build(node, (), 0)
    if builder.faults:
        raise FileError(builder.faults)
    return Document(str(path), values, builder.marks)


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: is no plain file; name a sweep file")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.y*ml"))[:10] if path.parent.is_dir() else []
        there = f"; {path.parent} holds {', '.join(near)}" if near else "; name a sweep file"
        raise UserError(f"{path}: no such file{there}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name a sweep file in it") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{short(str(path))}: cannot be read: {getattr(error, 'strerror', None) or error}; name another"
        ) from None
    if len(data) > MOST_BYTES:
        raise UserError(
            f"{path}: over {MOST_BYTES // 1024} KiB; a sweep file is some lines of text; write ranges (0..9)"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise FileError([Fault(Mark(str(path), line), "not UTF-8 text; save the file as UTF-8")]) from None
    for number, line_text in enumerate(text.split("\n"), 1):
        if any(ord(c) < 32 and c not in "\t\r" for c in line_text):
            raise FileError([Fault(Mark(str(path), number), "holds a control character; a sweep file is plain text")])
    return text


class _Builder:
    """Turns composed nodes into plain values; every alias counts again, so a bomb is met by the limit.

    ruamel.yaml's nodes have the places. Its constructors end at the first duplicate key and keep no places; its
    round-trip loader keeps them, but reads an alias of itself as an empty text (0.19) and takes twice the time.
    """

    def __init__(self, file: str, text: str) -> None:
        self.file, self.text, self.count = file, text, 0
        self.marks: dict[Path_, Mark] = {}
        self.faults: list[Fault] = []

    def build(self, node: Node, path: Path_, depth: int) -> Any:
        mark = Mark(self.file, node.start_mark.line + 1)
        self.marks.setdefault(path, mark)
        self.count += 1
        if self.count > MOST_VALUES:
            raise FileError([Fault(mark, f"expands to over {MOST_VALUES} values through its aliases")])
        if depth > MOST_DEPTH:
            raise FileError([Fault(mark, f"nested over {MOST_DEPTH} levels deep")])
        if isinstance(node, ScalarNode):
            return self.scalar(node, mark)
        self.tag(node, mark)
        if isinstance(node, SequenceNode):
            return [self.build(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        return self.mapping(node, path, depth)

    def mapping(self, node: Node, path: Path_, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            mark = Mark(self.file, key_node.start_mark.line + 1)
            self.tag(key_node, mark)
            if not isinstance(key_node, ScalarNode):
                self.faults.append(Fault(mark, "a key must be a plain word"))
                continue
            key = str(key_node.value)
            if key in values:
                self.faults.append(Fault(mark, f"key {short(key)} stands twice; the second would silently win"))
                continue
            self.marks[(*path, key)] = mark
            values[key] = self.build(value_node, (*path, key), depth + 1)
        return values

    def tag(self, node: Node, mark: Mark) -> str:
        """Return the tag written before a node, if any; only YAML's own plain ones are allowed."""
        written = re.match(r"(?:&\S+\s+)?(!\S*)", self.text[node.start_mark.index : node.start_mark.index + 200])
        tag = written[1] if written else ""
        if tag and tag not in ("!!map", "!!seq", "!!str"):
            self.faults.append(Fault(mark, f"tag {short(tag)} is not allowed; write plain values"))
        return tag

    def scalar(self, node: ScalarNode, mark: Mark) -> Any:
        text = str(node.value)
        if self.tag(node, mark) or node.style is not None:  # !!str, quoted or block text
            return text
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _INT.fullmatch(text):
            return int(text) if len(text) < 40 else text
        if _FLOAT.fullmatch(text):
            return float(text)
        return text


def merge(base: Document, top: Document) -> Document:
    """Lay a document over its base: mappings are joined key by key, everything else is replaced."""
    replaced: set[Path_] = set()
    values = _merge(base.values, top.values, (), replaced)
    kept = {p: m for p, m in base.marks.items() if not any(p[:n] in replaced for n in range(1, len(p) + 1))}
    return Document(top.file, values, kept | top.marks)


def _merge(under: dict[str, Any], over: dict[str, Any], path: Path_, replaced: set[Path_]) -> dict[str, Any]:
    joined = dict(under)
    for key, value in over.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            joined[key] = _merge(under[key], value, here, replaced)
        else:
            replaced.add(here)
            joined[key] = value
    return joined
