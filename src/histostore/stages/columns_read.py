"""Which columns a head was trained on, where they came from, and whether they are the same now.

Labels, polygons and calls are told by the digests of their groups, metadata by the values of the fields that were read:
another field of a slide may change without making a head stale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.part import CALL, PROBABILITY, REGION, label_columns
from histostore.where import Where

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from histostore.head_specs import HeadSpec
    from histostore.part import Part
    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store

COLUMNS, FIELDS, META = "columns", "fields", "meta"
"""Of one slide: digests of groups, values of metadata fields, and the metadata group that these were read from."""


def names_read(spec: HeadSpec, where: str | None) -> tuple[str, ...]:
    """Return the names that a head takes columns by: of what it predicts, of groups, of the split and of the filter."""
    names = [*(spec.columns or ()), *(spec.groups or ()), spec.split.by, "patient"]
    if spec.labels is not None:
        names.append(spec.labels.column)
    if where is not None:
        names += Where.parse(where).names
    return tuple(dict.fromkeys(names))


def columns_read(part: Part, names: tuple[str, ...]) -> dict[str, Any]:
    """Return what the columns of one slide are now. What embeddings, counts and points tell is not in here."""
    fields = part.meta["fields"]
    return {
        COLUMNS: {ref.key: ref.digest for name in names for ref in _groups_with(part, name)},
        FIELDS: {name: fields[name] for name in names if name in fields},
        META: part.manifest.find("meta", "meta").digest,
    }


def _groups_with(part: Part, name: str) -> Iterator[Ref]:
    for ref in part.manifest.of_kind("labels"):
        attrs = part.attrs(ref)
        if attrs["points"] == part.points.name and name in label_columns(attrs):
            yield ref
    found = part.manifest.get("regions", name.removeprefix(REGION)) if name.startswith(REGION) else None
    for before in (CALL, PROBABILITY):
        if name.startswith(before) and part.tiles is not None:
            found = part.manifest.get("predictions", f"{part.tiles.name}/{name.removeprefix(before)}") or found
    if found is not None:
        yield found


def other_columns(store: Store, manifest: Manifest, then: Mapping[str, Any]) -> list[str]:
    """Return what of a slide's columns is not as it was; nothing where that was not recorded, as of the first heads."""
    changed = []
    for key, digest in then.get(COLUMNS, {}).items():
        now = manifest.entries.get(key)
        if now is None or now.digest != digest:
            changed.append(key)
    meta = manifest.find("meta", "meta")
    if FIELDS in then and meta.digest != then[META]:
        fields = store.header(meta)["attrs"]["fields"]
        changed += [f"metadata '{name}'" for name, value in then[FIELDS].items() if fields.get(name) != value]
    return changed


def same_columns(then: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the columns of all slides were the same; so they are taken to be where they were not recorded."""
    return all(
        COLUMNS not in then.get(slide, {}) or all(then[slide][of] == one[of] for of in (COLUMNS, FIELDS))
        for slide, one in now.items()
    )
