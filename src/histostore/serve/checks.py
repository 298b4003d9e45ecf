"""Whether a JSON value is what a schema asks for: the part of JSON Schema that our OpenAPI document uses."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

from histostore.errors import UsageError, near

if TYPE_CHECKING:
    from collections.abc import Mapping

    type Schema = Mapping[str, Any]

_JSON_NAMES = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}
_SHOWN = 60


def parse_json(data: bytes) -> Any:
    """Return a JSON document; NaN, infinities and repeated names are not JSON here.

    Raises
    ------
    UsageError
        It is none.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_not_json, object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise UsageError("the body is not UTF-8") from None
    except RecursionError:
        raise UsageError("the body is nested too deeply") from None
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"the body is not JSON: {error}") from None


def _not_json(name: str) -> NoReturn:
    raise UsageError(f"the body is not JSON: {name} is no number there")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UsageError("the body names a field twice")
    return found


def checked(schema: Schema, value: Any, name: str) -> Any:
    """Return `value`, with defaults filled in, if it fits `schema`.

    Parameters
    ----------
    name
        What the value is called in messages.

    Raises
    ------
    UsageError
        It does not fit: the first difference is told.
    """
    if "type" not in schema and "oneOf" in schema:
        schema = _of_its_type(schema["oneOf"], value, name)
    match schema.get("type"):
        case "object" if "properties" not in schema and "oneOf" not in schema:
            return _by_name(schema, value, name)
        case "object":
            return _object(schema, value, name)
        case "array":
            return _array(schema, value, name)
        case "string":
            return _string(schema, value, name)
        case "integer" | "number":
            return _number(schema, value, name)
        case "boolean":
            return value if isinstance(value, bool) else _refuse(name, value, "true or false")
    raise NotImplementedError(f"schema of {name}: {schema}")


def from_text(schema: Schema, text: str, name: str) -> Any:
    """Return the value of a part of an address, which is always text."""
    if schema["type"] != "integer":
        return checked(schema, text, name)
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 18):
        _refuse(name, text, "a whole number")
    return checked(schema, int(text), name)


def _refuse(name: str, value: Any, wanted: str) -> NoReturn:
    got = repr(value) if isinstance(value, str | int | float | None) else _JSON_NAMES.get(type(value), "something else")
    raise UsageError(f"{name} is {got if len(got) <= _SHOWN else got[: _SHOWN - 1] + '…'}, not {wanted}")


def _object(schema: Schema, value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(name, value, "an object")
    if "oneOf" in schema:
        return _object(_alternative(schema["oneOf"], value, name), value, name)
    fields: Mapping[str, Schema] = schema["properties"]
    for field in value:
        if field not in fields:
            shown = ascii(field) if len(field) <= _SHOWN else f"of {len(field)} characters"
            raise UsageError(f"{name} has no field {shown}{near(field[:_SHOWN], fields)}; it has {', '.join(fields)}")
    for field in schema.get("required", ()):
        if field not in value:
            raise UsageError(f"{name} needs {field}")
    found = {}
    for field, of in fields.items():
        if field in value:
            found[field] = checked(of, value[field], f"{name}.{field}" if name != "body" else field)
        elif "default" in of:
            found[field] = of["default"]
    return found


def _of_its_type(options: list[Schema], value: Any, name: str) -> Schema:
    """Return the one alternative, a list or an object, that a value can be."""
    kinds: Mapping[str, type] = {"array": list, "object": dict}
    fit = [option for option in options if isinstance(value, kinds[option["type"]])]
    if not fit:
        _refuse(name, value, " or ".join(_JSON_NAMES[kinds[o["type"]]] for o in options))
    return fit[0]


def _by_name(schema: Schema, value: Any, name: str) -> dict[str, Any]:
    """Check an object whose names are the client's own."""
    if not isinstance(value, dict):
        _refuse(name, value, "an object")
    least, most = schema.get("minProperties", 0), schema["maxProperties"]
    if not least <= len(value) <= most:
        raise UsageError(f"{name} has {len(value)} names, not {least}-{most}")
    for own in value:
        checked({"type": "string", **schema["propertyNames"]}, own, f"a name in {name}")
    return {own: checked(schema["additionalProperties"], v, f"{name}.{own[:_SHOWN]}") for own, v in value.items()}


def _alternative(options: list[Schema], value: dict[str, Any], name: str) -> Schema:
    """Return the one alternative whose needed fields are all given."""
    fit = [o for o in options if all(field in value for field in o["required"])]
    if len(fit) != 1:
        ways = " or ".join(" with ".join(o["required"]) for o in options)
        raise UsageError(f"{name}: give one of {ways}")
    return fit[0]


def _array(schema: Schema, value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        _refuse(name, value, "a list")
    least, most = schema.get("minItems", 0), schema["maxItems"]
    if not least <= len(value) <= most:
        raise UsageError(f"{name} has {len(value)} values, not {least}-{most}")
    return [checked(schema["items"], v, f"{name}[{i}]") for i, v in enumerate(value)]


def _string(schema: Schema, value: Any, name: str) -> str:
    if not isinstance(value, str):
        _refuse(name, value, "text")
    if "enum" in schema and value not in schema["enum"]:
        _refuse(name, value, f"one of {', '.join(schema['enum'])}")
    least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    if not least <= len(value) <= most:
        raise UsageError(f"{name} has {len(value)} characters, not {least}-{most}")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise UsageError(f"{name} holds half a character (a lone surrogate)")
    return value


def _number(schema: Schema, value: Any, name: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(name, value, "a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} is too large a number")
    if not schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf):
        _refuse(name, value, f"in {schema.get('minimum', '…')}-{schema.get('maximum', '…')}")
    if schema["type"] == "integer":
        if int(value) != value:
            _refuse(name, value, "a whole number")
        return int(value)
    return value
