"""Conditions over a cell's axes, such as `arch == 'vgg16' and sparsity > 0.9`: parsed to an ast, never run."""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from harness.errors import short
from tost.catalog import nearest

Values = Mapping[str, Any]
Condition = Callable[[Values], bool]
Read = Callable[[Any], Any]

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
ALLOWED = "axes, texts, numbers, lists, == != < <= > >= in, and, or, not"


def parse_condition(text: str, readers: Mapping[str, Read]) -> Condition:
    """Compile a condition over some axes.

    `readers` maps each axis to the function that reads a literal compared with it, so that a value that the axis
    cannot take is found here. Only comparisons of an axis with literals, `and`, `or` and `not` are allowed, so that
    work is bounded by the text's length. Raises ValueError that says what is wrong.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"a condition of {len(text)} characters; at most {MOST_CHARACTERS} are allowed")
    try:
        with warnings.catch_warnings(action="ignore"):  # of an odd escape: the condition is read, not the Python
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{short(text)} is not a condition; allowed are {ALLOWED}") from None
    if sum(1 for _ in ast.walk(tree)) > MOST_NODES:
        raise ValueError(f"a condition of over {MOST_NODES} terms; write several")
    return _condition(tree, readers)


def _condition(node: ast.expr, readers: Mapping[str, Read]) -> Condition:
    match node:
        case ast.BoolOp(op=op, values=values):
            parts = [_condition(value, readers) for value in values]
            if isinstance(op, ast.And):
                return lambda cell: all(part(cell) for part in parts)
            return lambda cell: any(part(cell) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _condition(operand, readers)
            return lambda cell: not inner(cell)
        case ast.Compare():
            return _comparison(node, readers)
        case ast.Name() | ast.Constant() | ast.List() | ast.Tuple():
            raise ValueError(f"{short(ast.unparse(node))} compares nothing; write for example \"arch == 'resnet20'\"")
    raise ValueError(f"{short(ast.unparse(node))} is not allowed in a condition; allowed are {ALLOWED}")


def _comparison(node: ast.Compare, readers: Mapping[str, Read]) -> Condition:
    terms = [node.left, *node.comparators]
    axes = [term.id for term in terms if isinstance(term, ast.Name)]
    for axis in axes:
        if axis not in readers:
            raise ValueError(
                f"{short(axis)} is no axis; there are {', '.join(sorted(readers))}{nearest(axis, readers)}"
            )
    if len(axes) != 1:
        raise ValueError(f"{short(ast.unparse(node))}: compare one axis with texts, numbers or a list of them")
    tests = []
    for op, right in zip(node.ops, node.comparators, strict=True):
        if type(op) not in _COMPARE:
            raise ValueError(f"{short(ast.unparse(node))} is not allowed in a condition; allowed are {ALLOWED}")
        listed = isinstance(right, ast.List | ast.Tuple) and bool(right.elts)
        if isinstance(op, ast.In | ast.NotIn) and not listed:
            raise ValueError(
                f"{short(ast.unparse(node))}: `in` wants a list with something in it, such as ['snip', 'lth']"
            )
        tests.append(_COMPARE[type(op)])
    values = [_term(term, readers[axes[0]], axes[0]) for term in terms]

    def compare(cell: Values) -> bool:
        seen = [value(cell) for value in values]
        try:
            return all(test(a, b) for test, a, b in zip(tests, seen, seen[1:], strict=False))
        except TypeError:
            raise ValueError(f"{short(ast.unparse(node))} compares values that have no order") from None

    return compare


def _term(node: ast.expr, read: Read, axis: str) -> Callable[[Values], Any]:
    if isinstance(node, ast.Name):
        return lambda cell: cell[axis]
    if isinstance(node, ast.List | ast.Tuple):
        literals = _listed(node, read)
        return lambda cell: literals
    value = read(_literal(node))
    return lambda cell: value


def _listed(node: ast.List | ast.Tuple, read: Read) -> tuple[Any, ...]:
    """Read a list: of values for the axis, or where the axis itself takes lists (milestones), one such value."""
    items = [_literal(item) for item in node.elts]
    try:
        return tuple(read(item) for item in items)
    except ValueError as error:
        try:
            return tuple(read(items))
        except (ValueError, TypeError):
            raise error from None


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | bool() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
    raise ValueError(f"{short(ast.unparse(node))} cannot be compared; compare an axis with texts or numbers")
