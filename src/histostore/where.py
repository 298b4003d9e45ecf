"""``where`` filters: a small, closed language over columns, parsed and never evaluated as code.

``patient != 'C' and (cluster in ['2', '3'] or not in_tissue)``: comparisons (chained too), ``in`` and ``not in`` a
list, ``and``, ``or``, ``not``, parentheses, numbers, quoted text, true/false, and column names. A name with spaces or
dots is written in backquotes.
"""

from __future__ import annotations

import ast
import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import NotFoundError, UsageError, near

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    type Column = NDArray[Any]
    type Lookup = Callable[[str], Column]

MAX_CHARS = 4_000
MAX_DEPTH = 50

_COMPARE: dict[type[ast.cmpop], Any] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_WORDS = {"true": True, "false": False, "True": True, "False": False}


@dataclass(frozen=True, slots=True)
class Where:
    """A parsed filter."""

    text: str
    tree: ast.expr
    quoted: tuple[str, ...]
    """Backquoted names, which stand in the tree as ``_quoted_<i>``."""

    @classmethod
    def parse(cls, text: str) -> Where:
        """Parse a filter.

        Raises
        ------
        UsageError
            It is not in the language; the place is said.
        """
        if len(text) > MAX_CHARS:
            raise UsageError(f"where has {len(text)} characters, at most {MAX_CHARS}")
        quoted: list[str] = []

        def name(match: re.Match[str]) -> str:
            quoted.append(match.group(1))
            return f"_quoted_{len(quoted) - 1}"

        source = re.sub(r"`([^`]*)`", name, text)
        try:
            tree = ast.parse(source.strip(), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            place = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
            raise UsageError(
                f"where {text!r} cannot be read{place}; write it like \"patient != 'C' and cluster in ['2', '3']\""
            ) from None
        _check(tree, text, 0)
        return cls(text, tree, tuple(quoted))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns it uses, in order."""
        found = [self._name(n.id) for n in ast.walk(self.tree) if isinstance(n, ast.Name) and n.id not in _WORDS]
        return tuple(dict.fromkeys(found))

    def mask(self, n_rows: int, column: Lookup) -> NDArray[np.bool_]:
        """Return the rows that pass.

        Parameters
        ----------
        n_rows
            Number of rows.
        column
            Gives the ``(n_rows,)`` values of a column; raises `NotFoundError` for a name it does not know.
        """
        value = self._value(self.tree, column)
        return np.array(np.broadcast_to(np.asarray(value, dtype=bool), (n_rows,)))

    def _name(self, name: str) -> str:
        return self.quoted[int(name[8:])] if name.startswith("_quoted_") else name

    def _value(self, node: ast.expr, column: Lookup) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return _WORDS[node.id] if node.id in _WORDS else column(self._name(node.id))
            case ast.UnaryOp(op=ast.Not()):
                return ~np.asarray(self._value(node.operand, column), dtype=bool)
            case ast.UnaryOp(op=ast.USub()):
                return -self._value(node.operand, column)
            case ast.BoolOp():
                parts = [np.asarray(self._value(v, column), dtype=bool) for v in node.values]
                join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
                return join.reduce(np.broadcast_arrays(*parts))
            case ast.List() | ast.Tuple():
                return [self._value(e, column) for e in node.elts]
            case ast.Compare():
                return self._compare(node, column)
        raise UsageError(f"where {self.text!r}: {ast.unparse(node)!r} is not part of the language")

    def _compare(self, node: ast.Compare, column: Lookup) -> Any:
        left, result = self._value(node.left, column), np.True_
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            right = self._value(right_node, column)
            if isinstance(op, ast.In | ast.NotIn):
                inside = np.logical_or.reduce([_safe(operator.eq, left, r, self.text) for r in right] or [np.False_])
                part = inside if isinstance(op, ast.In) else ~np.asarray(inside)
            else:
                part = _safe(_COMPARE[type(op)], left, right, self.text)
            result = result & np.asarray(part)  # type: ignore[assignment]
            left = right
        return result


def _safe(compare: Any, left: Any, right: Any, text: str) -> Any:
    try:
        return compare(left, right)
    except TypeError:
        kinds = [np.asarray(v).dtype.kind for v in (left, right)]
        names = ["text" if k in "OUT" else "number" for k in kinds]
        raise UsageError(f"where {text!r}: compares {names[0]} with {names[1]}") from None


def _check(node: ast.AST, text: str, depth: int) -> None:
    allowed = (
        ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, ast.Name, ast.Load, ast.Constant,
        ast.List, ast.Tuple, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn,
    )  # fmt: skip
    if not isinstance(node, allowed) or depth > MAX_DEPTH:
        what = type(node).__name__.lower() if depth <= MAX_DEPTH else "nesting this deep"
        raise UsageError(f"where {text!r}: {what} is not allowed; only comparisons of columns, in, and, or, not")
    if isinstance(node, ast.Constant) and not isinstance(node.value, str | int | float | bool):
        raise UsageError(f"where {text!r}: {node.value!r} is not a number or quoted text")
    if isinstance(node, ast.Compare):
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.In | ast.NotIn) != isinstance(right, ast.List | ast.Tuple):
                raise UsageError(f"where {text!r}: 'in' needs a list like ['a', 'b'], and a list needs 'in'")
    for child in ast.iter_child_nodes(node):
        _check(child, text, depth + 1)


def lookup_in(columns: Mapping[str, Column]) -> Lookup:
    """Return a lookup over ready columns that suggests near names."""

    def lookup(name: str) -> Column:
        if name not in columns:
            raise NotFoundError(f"where: no column '{name}'{near(name, columns)}; there are {', '.join(columns)}")
        return columns[name]

    return lookup
