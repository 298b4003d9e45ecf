"""``where`` filters: a small, closed language over columns, parsed and never evaluated as code.

``patient != 'C' and (cluster in ['2', '3'] or not in_tissue)``: comparisons (chained too), ``in`` and ``not in`` a
list, ``and``, ``or``, ``not``, parentheses, numbers, quoted text, true/false, and column names. A name with spaces or
dots is written in backquotes. A missing value is neither equal to anything, nor smaller, nor larger, nor true. Text and
numbers are never compared: ``cluster == 2`` where clusters are text is an error, not an empty answer. Metadata of
slides are kept as text: beside a number they are numbers (``age > 55``), if every slide's text is one.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from histostore.errors import NotFoundError, UsageError, near

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    type Column = NDArray[Any] | FieldColumn
    type Lookup = Callable[[str], Column]

MAX_CHARS = 4_000
MAX_DEPTH = 50

_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`([^`]*)`""")
"""Quoted text, in which a backquote means itself, or a name in backquotes."""
_STANDIN = "_quoted_"

_COMPARE: dict[type[ast.cmpop], Any] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ORDERS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_WORDS = {"true": True, "false": False, "True": True, "False": False}


@dataclass(frozen=True, eq=False)
class Field:
    """A metadata field of slides, which is text; of a number, its digits."""

    name: str
    texts: Sequence[str | None]
    """Of every slide that is asked: whether the field holds numbers is one answer for all of them."""

    def column(self, values: NDArray[Any]) -> FieldColumn:
        """Return some of its values as a column of rows or slides."""
        return FieldColumn(self, values)

    @cached_property
    def numbers(self) -> dict[str | None, float | None]:
        """The number of each text; NaN where it is empty, None where it is no finite number."""
        return {None: math.nan} | {text: _number(text) for text in self.texts if text is not None}

    @property
    def wrong(self) -> list[str]:
        """The texts that are no numbers, one per slide."""
        return [t for t in self.texts if t is not None and self.numbers[t] is None]

    @property
    def holds_numbers(self) -> bool:
        """Whether there is a number, and nothing but numbers."""
        return not self.wrong and any(not math.isnan(v) for v in self.numbers.values() if v is not None)


@dataclass(frozen=True, slots=True, eq=False)
class FieldColumn:
    """Values of a metadata field, for rows or for slides."""

    field: Field
    values: NDArray[Any]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype=dtype, copy=copy)

    def numbers(self) -> NDArray[np.float64]:
        """Return them as numbers, NaN where missing; all of the field's texts are numbers."""
        known = self.field.numbers
        return np.array([known[v] for v in self.values.flat], dtype=np.float64).reshape(self.values.shape)


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
            return f"{_STANDIN}{len(quoted) - 1}"

        source = _QUOTED.sub(lambda m: m[0] if m[1] is None else name(m), text)
        source = re.sub(r"[\r\n]", " ", source)
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
        return np.array(np.broadcast_to(self._truth(self.tree, column), (n_rows,)))

    def _name(self, name: str) -> str:
        number = name.removeprefix(_STANDIN)
        stands_in = number != name and number.isdecimal() and int(number) < len(self.quoted)
        return self.quoted[int(number)] if stands_in else name

    def _truth(self, node: ast.expr, column: Lookup) -> NDArray[np.bool_]:
        """Return a part of the filter that is true or false."""
        value = np.asarray(self._value(node, column))
        if value.dtype == object and all(v is None or isinstance(v, bool | np.bool_) for v in value.flat):
            return np.array([v is not None and bool(v) for v in value.flat], dtype=bool).reshape(value.shape)
        if value.dtype != np.bool_:
            raise self._refused(node, "is not true or false: compare it with something")
        return value

    def _refused(self, node: ast.expr, why: str) -> UsageError:
        return UsageError(f"where {self.text!r}: {ast.unparse(node)!r} {why}")

    def _value(self, node: ast.expr, column: Lookup) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return _WORDS[node.id] if node.id in _WORDS else column(self._name(node.id))
            case ast.UnaryOp(op=ast.Not()):
                return ~self._truth(node.operand, column)
            case ast.UnaryOp(op=ast.USub()):
                value = self._value(node.operand, column)
                if _kind(value) != "number" or np.asarray(value).dtype == np.bool_:
                    raise self._refused(node, "is no number")
                return -value if isinstance(value, int | float) else -np.asarray(value, dtype=np.float64)
            case ast.BoolOp():
                parts = [self._truth(v, column) for v in node.values]
                join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
                return join.reduce(np.broadcast_arrays(*parts))
            case ast.Compare():
                return self._compare(node, column)
        raise self._refused(node, "is not part of the language")

    def _compare(self, node: ast.Compare, column: Lookup) -> NDArray[np.bool_]:
        left, result = self._value(node.left, column), np.array(True)
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(right_node, ast.List | ast.Tuple):
                one_of = [self._pair(ast.Eq, left, self._value(e, column)) for e in right_node.elts]
                inside = np.logical_or.reduce([np.zeros(np.shape(left), dtype=bool), *one_of])
                part = ~inside if isinstance(op, ast.NotIn) else inside
            else:
                right = self._value(right_node, column)
                part, left = self._pair(type(op), left, right), right
            result = result & part
        return result

    def _fields(self, op: type[ast.cmpop], left: Any, right: Any) -> tuple[Any, Any]:
        """Return two sides with metadata as numbers where the other side is a number."""
        fields = [v.field for v in (left, right) if isinstance(v, FieldColumn)]
        if len(fields) == 2:
            both = op in _ORDERS and all(f.holds_numbers for f in fields)
            return (left.numbers(), right.numbers()) if both else (left, right)
        if not fields:
            return left, right
        (field,), other = fields, right if isinstance(left, FieldColumn) else left
        if _kind(other) == "number" and np.asarray(other).dtype != np.bool_:
            if wrong := field.wrong:
                there = sum(bool(t and t.strip()) for t in field.texts)
                raise UsageError(
                    f"where {self.text!r}: compares text with numbers: of {there:,} values of {_written(field.name)} "
                    f"{len(wrong):,} {'is no number' if len(wrong) == 1 else 'are no numbers'}, like {wrong[0]!r}; "
                    "text is written in quotes"
                )
            return (left.numbers(), right) if other is right else (left, right.numbers())
        if op in _ORDERS and isinstance(other, str) and field.holds_numbers:
            number, name = other.strip() if _number(other) is not None else "0", _written(field.name)
            sides = (name, number) if other is right else (number, name)
            raise UsageError(f"where {self.text!r}: {name} holds numbers: write {f' {_ORDERS[op]} '.join(sides)}")
        return left, right

    def _pair(self, op: type[ast.cmpop], left: Any, right: Any) -> NDArray[np.bool_]:
        """Compare two sides of one kind; a missing value is neither equal nor in any order."""
        left, right = self._fields(op, left, right)
        kinds = {_kind(left), _kind(right)} - {"missing"}
        if len(kinds) > 1:
            words = " with ".join("text" if _kind(v) == "text" else "numbers" for v in (left, right))
            raise UsageError(f"where {self.text!r}: compares {words}; text is written in quotes, like '2'")
        one, other = np.broadcast_arrays(np.asarray(left), np.asarray(right))
        there = _present(one) & _present(other)
        found = np.full(one.shape, op is ast.NotEq)
        if kinds == {"text"}:  # as Python compares it, whatever the width of the arrays
            one, other = one.astype(object), other.astype(object)
        try:
            found[there] = _COMPARE[op](one[there], other[there])
        except TypeError:
            raise UsageError(f"where {self.text!r}: compares a column that holds text beside numbers") from None
        return found


def _number(text: str) -> float | None:
    """Return the finite number that a text is, NaN where it is empty, None where it is anything else."""
    if not text.strip():
        return math.nan
    if "_" in text:  # 12_3 is a name, though Python reads it as a number
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def as_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Return texts as numbers (float64, NaN where missing) if each is one; else the values as they are."""
    if values.dtype != object:
        return values
    found = [math.nan if v is None else _number(v) if isinstance(v, str) else None for v in values.tolist()]
    return values if None in found else np.array(found, dtype=np.float64)


def _written(name: str) -> str:
    return name if name.isidentifier() else f"`{name}`"


def _present(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype != object:
        return np.ones(values.shape, dtype=bool)
    return np.array([v is not None for v in values.flat], dtype=bool).reshape(values.shape)


def _kind(value: Any) -> Literal["number", "text", "missing"]:
    values = np.asarray(value)
    if values.dtype != object:
        return "number" if values.dtype.kind in "biuf" else "text"
    first = next((v for v in values.flat if v is not None), None)
    return "missing" if first is None else "text" if isinstance(first, str) else "number"


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
