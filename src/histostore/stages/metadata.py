"""A slide's metadata: texts under names that no other column of the slide has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from histostore.content.tables import OWN_COLUMNS
from histostore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.store.manifest import Ref
    from histostore.store.store import Store


def write_meta(
    store: Store, slide: str, fields: Mapping[str, Any], *, mpp: float, origin: str, mag: float | None = None
) -> Ref:
    """Seal a version of a slide's metadata; the caller commits it. Fields as `check_fields` allows them."""
    check_fields(slide, fields)
    attrs = {"fields": as_texts(fields)[0], "mpp": mpp, "mpp_origin": origin}
    if mag is not None:
        attrs["given_as_mag"] = mag
    with store.begin(slide, "meta", "meta", spec=attrs, inputs={}) as writer:
        return writer.seal(rows=0, attrs=attrs)


def as_texts(fields: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Return metadata as the texts that are stored, and the names of those without a value.

    None, NaN and pandas' NA and NaT are no value: they say nothing, as an empty cell of a table does.
    """
    unset = [name for name, value in fields.items() if is_missing(value)]
    return {name: str(value) for name, value in fields.items() if name not in unset}, unset


def is_missing(value: Any) -> bool:
    """Say whether a value is None, NaN, NA or NaT."""
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def check_fields(slide: str, fields: Mapping[str, Any]) -> None:
    """Refuse metadata whose name is taken by a column that every slide has.

    Raises
    ------
    UsageError
        Naming the field.
    """
    for name in fields:
        if name in OWN_COLUMNS or not name.strip():
            raise UsageError(f"slide '{slide}': metadata column '{name}' is one of histostore's own; rename it")
