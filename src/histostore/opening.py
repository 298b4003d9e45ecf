"""Which groups of each slide a view reads: its embeddings, their tile set, the points and the counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.errors import DataError, NotFoundError, UsageError, near
from histostore.part import Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from histostore.store.catalog_entries import Known
    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store

SPOTS = "spots"
"""The points that a slide's counts are of."""


def open_parts(
    store: Store,
    known: Iterable[Known],
    *,
    backbones: Sequence[str] = (),
    tiles: str | None = None,
    region_share: float | None = None,
) -> tuple[Part, ...]:
    """Return what a view takes from each slide, in their order; groups are opened where no catalog knows them.

    Parameters
    ----------
    known
        Manifests of the slides, with the headers that are known of them.
    backbones, tiles, region_share
        As of `histostore.view.view`.

    Raises
    ------
    NotFoundError
        There is no slide, or one lacks the tile set or embeddings; what there is, is listed.
    DataError
        Embeddings of one name are of different backbones.
    """
    if region_share is not None and not 0 < region_share <= 1:
        raise UsageError(f"region_share is {region_share}, outside 0-1")
    parts = tuple(_part(store, slide, backbones, tiles, region_share) for slide in known)
    if not parts:
        raise NotFoundError(f"no slides in {store.uri}; ingest one first")
    for name in parts[0].embeddings:
        _same_backbone(parts, name)
    return parts


def _part(store: Store, known: Known, wanted: Sequence[str], tiles: str | None, region_share: float | None) -> Part:
    manifest, headers = known
    embeddings: dict[str, Ref] = {}
    for name in wanted:
        ref = _embedding(manifest, name, tiles)
        tiles, _, short = ref.name.rpartition("/")
        embeddings[short] = ref
    tiles_ref = manifest.find("tiles", tiles) if tiles is not None else None
    points = SPOTS
    if tiles_ref is not None:
        about = headers.get(tiles_ref.key)
        attrs = about.attrs if about is not None and about.attrs is not None else store.group(tiles_ref).attrs
        points = str(attrs["points"])
    return Part(
        store=store,
        manifest=manifest,
        tiles=tiles_ref,
        points=manifest.find("points", points),
        embeddings=embeddings,
        # counts are of the assay's own spots: the id of a grid cell ("7x12") may be that of a spot elsewhere
        expression=manifest.get("expression", "counts") if points == SPOTS else None,
        region_share=region_share,
        headers=headers,
    )


def _embedding(manifest: Manifest, backbone: str, tiles: str | None) -> Ref:
    refs = manifest.of_kind("embeddings")
    hits = [r for r in refs if r.name == backbone or r.name.rpartition("/")[2] == backbone]
    if tiles is not None:
        hits = [r for r in hits if r.name.rpartition("/")[0] == tiles]
    if len(hits) == 1:
        return hits[0]
    names = [r.name for r in refs]
    if hits:
        sets = ", ".join(sorted(r.name.rpartition("/")[0] for r in hits))
        raise NotFoundError(
            f"slide '{manifest.owner}' has '{backbone}' on several tile sets: give tiles, one of {sets}"
        )
    have = f"it has {', '.join(names)}" if names else "it has none; run embed"
    raise NotFoundError(f"slide '{manifest.owner}' has no embeddings '{backbone}'{near(backbone, names)}; {have}")


def _same_backbone(parts: Sequence[Part], name: str) -> None:
    digests: Mapping[str, str] = {p.slide: p.attrs(p.embeddings[name])["backbone_digest"] for p in parts}
    if len(set(digests.values())) > 1:
        listed = ", ".join(f"{s} {d[:8]}" for s, d in digests.items())
        raise DataError(f"'{name}' is not the same backbone on all slides ({listed}); embed them again with one")
