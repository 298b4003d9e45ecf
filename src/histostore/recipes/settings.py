"""Settings of a recipe: a frozen dataclass with typed defaults, filled from text or values, one line per mistake."""

from __future__ import annotations

import dataclasses
import math
import types
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from histostore.errors import HistostoreError, UsageError, near

if TYPE_CHECKING:
    from collections.abc import Mapping

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_SIMPLE = (bool, int, float, str)


def check_settings(cls: type, recipe: str) -> None:
    """Refuse a settings class that could not be filled: not a frozen dataclass, a field with no default or no type.

    Raises
    ------
    UsageError
        Naming the field.
    """
    # asked for by hand: no type checker looks at a pipeline
    if not dataclasses.is_dataclass(cls) or not getattr(cls, "__dataclass_params__").frozen:  # noqa: B009
        got = getattr(cls, "__name__", cls)
        raise UsageError(f"recipe '{recipe}': settings must be a frozen dataclass, got {got!r}")
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UsageError(f"recipe '{recipe}': setting '{field.name}' has no default; give it one")
    for name, kind in kinds(cls).items():
        if not _known(kind):
            raise UsageError(
                f"recipe '{recipe}': setting '{name}' is {_name(kind)}; use bool, int, float, str, Literal, "
                "tuple[…, ...] or one of these or None"
            )


def kinds(cls: type) -> dict[str, Any]:
    """Return the type of every setting, in order."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def resolve(cls: type, given: Mapping[str, Any]) -> Any:
    """Return the settings with `given` in the place of the defaults.

    Parameters
    ----------
    cls
        The dataclass.
    given
        Values, or their text: ``3``, ``true``, ``none``, ``A,B`` for a tuple.

    Raises
    ------
    UsageError
        An unknown name (near ones are suggested), a value that is not of the setting's type, or one that the
        dataclass itself refuses.
    """
    known = kinds(cls)
    values = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"no setting '{name}'{near(name, known) or '; there are ' + ', '.join(known)}")
        values[name] = _read(value, known[name], name)
    try:
        return cls(**values)
    except HistostoreError:
        raise
    except (ValueError, TypeError) as error:
        raise UsageError(f"settings: {' '.join(str(error).split())}") from error


def alternatives(cls: type, name: str, text: str) -> tuple[Any, ...]:
    """Return the values of one line of a sweep: ``2,4,8``; split at ``;`` where there is one (tuples: ``64;256,64``).

    Raises
    ------
    UsageError
        An unknown setting, a bad value, none, or one given twice.
    """
    known = kinds(cls)
    if name not in known:
        raise UsageError(f"no setting '{name}'{near(name, known) or '; there are ' + ', '.join(known)}")
    parts = [p.strip() for p in text.split(";" if ";" in text or _is_tuple(known[name]) else ",")]
    if not all(parts):
        raise UsageError(f"sweep over '{name}': {text!r} has an empty value; write it as {name}=A,B")
    values = tuple(_read(p, known[name], name) for p in parts)
    if len(set(values)) < len(values):
        raise UsageError(f"sweep over '{name}': {text!r} names a value twice")
    return values


def to_json(settings: Any) -> dict[str, Any]:
    """Return settings as plain JSON values."""
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def describe(cls: type) -> list[tuple[str, str, Any]]:
    """Return name, type and default of every setting."""
    defaults = to_json(cls())
    return [(name, _name(kind), defaults[name]) for name, kind in kinds(cls).items()]


def _known(kind: Any) -> bool:
    if kind in _SIMPLE or get_origin(kind) is Literal:
        return True
    if _is_union(kind):
        return all(_known(k) for k in get_args(kind) if k is not type(None))
    return _is_tuple(kind) and get_args(kind)[0] in _SIMPLE


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _is_tuple(kind: Any) -> bool:
    if _is_union(kind):
        return any(_is_tuple(k) for k in get_args(kind))
    return get_origin(kind) is tuple and len(get_args(kind)) == 2 and get_args(kind)[1] is Ellipsis


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(v) for v in get_args(kind))
    if _is_union(kind):
        return " or ".join("none" if k is type(None) else _name(k) for k in get_args(kind))
    if _is_tuple(kind):
        return f"{_name(get_args(kind)[0])}, …"
    return getattr(kind, "__name__", str(kind))


def _read(value: Any, kind: Any, name: str) -> Any:
    if _is_union(kind):
        return _read_union(value, kind, name)
    if get_origin(kind) is Literal:
        choices = {str(c): c for c in get_args(kind)}
        if str(value) in choices:
            return choices[str(value)]
        raise UsageError(f"setting '{name}' is {value!r}, not {_name(kind)}{near(str(value), choices)}")
    if _is_tuple(kind):
        parts = [p.strip() for p in value.split(",") if p.strip()] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise _bad(value, kind, name)
        return tuple(_read(p, get_args(kind)[0], name) for p in parts)
    read = _from_text if isinstance(value, str) and kind is not str else _from_value
    found = read(value, kind)
    if found is None:
        raise _bad(value, kind, name)
    return found


def _read_union(value: Any, kind: Any, name: str) -> Any:
    if value is None or (isinstance(value, str) and value.lower() == "none" and type(None) in get_args(kind)):
        return None
    for one in get_args(kind):
        if one is type(None):
            continue
        try:
            return _read(value, one, name)
        except UsageError:
            continue
    raise _bad(value, kind, name)


def _bad(value: Any, kind: Any, name: str) -> UsageError:
    return UsageError(f"setting '{name}' is {value!r}; it takes {_name(kind)}")


def _from_text(text: str, kind: Any) -> Any:
    lowered = text.strip().lower()
    if kind is bool:
        return True if lowered in _TRUE else False if lowered in _FALSE else None
    try:
        value: int | float = kind(lowered)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _from_value(value: Any, kind: Any) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        return None
    return value
