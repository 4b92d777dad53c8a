"""Conditions over a cell's axes, such as `arch == 'vgg16' and sparsity > 0.9`: parsed to an ast, never run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from tost.catalog import nearest

Values = Mapping[str, Any]
Condition = Callable[[Values], Any]

MOST_CHARACTERS = 1000
MOST_NODES = 200

_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
ALLOWED = "names of axes, texts, numbers, lists, == != < <= > >= in, and, or, not"


def parse_condition(text: str, names: Values) -> Condition:
    """Compile a condition over the given names.

    `names` maps each axis to a reader of literals compared with it (a callable), or to None. Only comparisons, `and`,
    `or`, `not`, names, literals and lists of literals are allowed, so that work is bounded by the text's length.
    Raises ValueError that says what is wrong.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"a condition of {len(text)} characters; at most {MOST_CHARACTERS} are allowed")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{text!r} is not a condition; allowed are {ALLOWED}") from None
    if sum(1 for _ in ast.walk(tree)) > MOST_NODES:
        raise ValueError(f"a condition of over {MOST_NODES} terms; write several")
    condition = _compile(tree, names)
    if isinstance(tree, ast.Constant | ast.List | ast.Tuple | ast.Name):
        raise ValueError(f"{text!r} compares nothing; write for example \"arch == 'resnet20'\"")
    return condition


def _compile(node: ast.expr, names: Values) -> Condition:
    match node:
        case ast.BoolOp(op=op, values=values):
            parts = [_compile(value, names) for value in values]
            if isinstance(op, ast.And):
                return lambda cell: all(part(cell) for part in parts)
            return lambda cell: any(part(cell) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _compile(operand, names)
            return lambda cell: not inner(cell)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return lambda cell: -number
        case ast.Compare():
            return _comparison(node, names)
        case ast.Name(id=name):
            if name not in names:
                raise ValueError(f"{name!r} is no axis; there are {', '.join(sorted(names))}{nearest(name, names)}")
            return lambda cell: cell[name]
        case ast.Constant(value=str() | int() | float() | bool() as value):
            return lambda cell: value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            literals = tuple(_literal(item) for item in items)
            return lambda cell: literals
    raise ValueError(f"{ast.unparse(node)[:60]!r} is not allowed in a condition; allowed are {ALLOWED}")


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool):
        return node.value
    raise ValueError(f"{ast.unparse(node)[:60]!r}: a list in a condition holds texts and numbers only")


def _comparison(node: ast.Compare, names: Values) -> Condition:
    terms = [node.left, *node.comparators]
    axes = [term.id for term in terms if isinstance(term, ast.Name) and callable(names.get(term.id))]
    read = names[axes[0]] if axes else None
    values = [_readable(term, read) if read else _compile(term, names) for term in terms]
    for term in terms:
        if isinstance(term, ast.Name):
            _compile(term, names)
    pairs = list(
        zip([_COMPARE[type(op)] if type(op) in _COMPARE else _refuse(op) for op in node.ops], values[1:], strict=True)
    )

    def compare(cell: Values) -> bool:
        left = values[0](cell)
        for test, right_of in pairs:
            right = right_of(cell)
            try:
                if not test(left, right):
                    return False
            except TypeError:
                raise ValueError(
                    f"{ast.unparse(node)!r} compares {left!r} with {right!r}, which have no order"
                ) from None
            left = right
        return True

    return compare


def _refuse(op: ast.cmpop) -> Callable[[Any, Any], bool]:
    raise ValueError(f"{type(op).__name__.lower()!r} is not allowed in a condition; allowed are {ALLOWED}")


def _readable(term: ast.expr, read: Callable[[Any], Any]) -> Condition:
    """Return a term of a comparison, its literals read the way the axis beside them reads its own values."""
    if isinstance(term, ast.Constant):
        value = read(_literal(term))
        return lambda cell: value
    if isinstance(term, ast.List | ast.Tuple):
        literals = tuple(read(_literal(item)) for item in term.elts)
        return lambda cell: literals
    if isinstance(term, ast.Name):
        name = term.id
        return lambda cell: cell[name]
    raise ValueError(f"{ast.unparse(term)[:60]!r} cannot be compared; compare an axis with a text or number")
