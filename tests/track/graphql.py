"""As much of GraphQL as the Weights & Biases clients send: parsing it, and answering it from a tree of dicts."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Node = dict[str, Any]

INTERFACES = ("ArtifactCollection",)
TOKEN = re.compile(r'#[^\n]*|"(?:\\.|[^"\\])*"|\.\.\.|-?\d[\d.eE+-]*|\$?\w+|[{}()\[\]:!=@]')
MISSING = object()


class Refused(Exception):
    """A request that is answered with a GraphQL error."""


class Field(NamedTuple):
    """One line of a selection: a field, or (named "...") a fragment on the type or of the name in `key`."""

    key: str
    name: str
    arguments: Callable[[Node], Node]
    kept: Callable[[Node], bool]
    fields: list[Field] | None


def plain(variables: Node) -> Node:
    """Return the arguments of a field that has none."""
    return {}


class Document:
    """A parsed GraphQL request; only what the clients send of the language."""

    def __init__(self, text: str) -> None:
        self.tokens = [token for token in TOKEN.findall(text) if token[0] != "#"][::-1]
        self.fragments: dict[str, tuple[str, list[Field]]] = {}
        self.defaults: Node = {}
        self.kind, self.name, self.fields = "query", "", []
        while self.tokens:
            kind = self.tokens.pop() if self.tokens[-1] != "{" else "query"
            name = self.tokens.pop() if self.tokens[-1] != "{" else ""
            if kind == "fragment":
                _, on = self.tokens.pop(), self.tokens.pop()
                self.fragments[name] = on, self.selection()
            else:
                self.declarations()
                self.kind, self.name, self.fields = kind, name, self.selection()

    def taken(self, token: str) -> bool:
        """Step over a token if it is the next one."""
        if found := bool(self.tokens) and self.tokens[-1] == token:
            self.tokens.pop()
        return found

    def declarations(self) -> None:
        """Read `($name: [Type!] = default, ...)`."""
        if self.taken("("):
            name = ""
            while not self.taken(")"):
                word = self.tokens.pop()
                name = word[1:] if word[0] == "$" else name
                if word == "=":
                    self.defaults[name] = self.value()({})

    def selection(self) -> list[Field]:
        """Read `{...}`."""
        fields = []
        self.tokens.pop()
        while not self.taken("}"):
            name = key = self.tokens.pop()
            if name == "...":
                inline = self.taken("on") or self.tokens[-1] in "{@"
                key = self.tokens.pop() if self.tokens[-1] not in "{@" else ""
                kept = self.directives()
                fields.append(Field(key, name, plain, kept, self.selection() if inline else None))
                continue
            if self.taken(":"):
                name = self.tokens.pop()
            arguments = self.pairs(")") if self.taken("(") else plain
            kept = self.directives()
            fields.append(Field(key, name, arguments, kept, self.selection() if self.tokens[-1] == "{" else None))
        return fields

    def directives(self) -> Callable[[Node], bool]:
        """Read `@include(if: ...)` and `@skip(if: ...)`."""
        rules = []
        while self.taken("@"):
            name = self.tokens.pop()
            self.tokens.pop()
            rules.append((name == "include", self.pairs(")")))
        return lambda variables: all(bool(given(variables)["if"]) == wanted for wanted, given in rules)

    def pairs(self, end: str) -> Callable[[Node], Node]:
        """Read `name: value, ...`; a variable that was not sent leaves its name out."""
        found = {}
        while not self.taken(end):
            name = self.tokens.pop()
            self.tokens.pop()
            found[name] = self.value()
        return lambda variables: {n: v for n, get in found.items() if (v := get(variables)) is not MISSING}

    def value(self) -> Callable[[Node], Any]:
        """Read one value, as a function of the variables."""
        word = self.tokens.pop()
        if word == "{":
            return self.pairs("}")
        if word == "[":
            items = []
            while not self.taken("]"):
                items.append(self.value())
            return lambda variables: [item(variables) for item in items]
        if word[0] == "$":
            return lambda variables: variables.get(word[1:], MISSING)
        try:
            constant = json.loads(word)
        except ValueError:
            constant = word
        return lambda variables: constant


def select(node: Any, fields: list[Field] | None, document: Document, variables: Node) -> Any:
    """Answer a selection from a tree of dicts whose callables take the field's arguments."""
    if node is None or fields is None:
        return node
    if isinstance(node, list):
        return [select(item, fields, document, variables) for item in node]
    answer: Node = {}
    kind = node["__typename"]
    for part in fields:
        if not part.kept(variables):
            continue
        if part.name == "...":
            on, inner = document.fragments[part.key] if part.fields is None else (part.key, part.fields)
            if on in ("", kind, *INTERFACES):
                answer |= select(node, inner, document, variables)
            continue
        if part.name not in node:
            raise Refused(f'Cannot query field "{part.name}" on type "{kind}".')
        value = node[part.name]
        if callable(value):
            arguments = part.arguments(variables)
            try:
                inspect.signature(value).bind(**arguments)
            except TypeError as error:
                raise Refused(f'Field "{part.name}" on type "{kind}": {error}.') from None
            value = value(**arguments)
        answer[part.key] = select(value, part.fields, document, variables)
    return answer


def connection(items: Sequence[Any], build: Callable[[Any], Node], first: int | None, after: str | None) -> Node:
    """Answer one page of a list; a cursor is the number of items up to it."""
    start = int(after or 0)
    stop = min(len(items), start + first if first else len(items))
    nodes = [build(item) for item in items[start:stop]]
    return {
        "__typename": "Connection",
        "totalCount": len(items),
        "pageInfo": {"__typename": "PageInfo", "endCursor": str(stop), "hasNextPage": stop < len(items)},
        "edges": [
            {"__typename": "Edge", "cursor": str(at), "node": node, "version": f"v{node.get('versionIndex')}"}
            for at, node in enumerate(nodes, start + 1)
        ],
    }
