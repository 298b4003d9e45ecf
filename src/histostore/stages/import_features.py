"""Features of another tool come in: their tiles as points and geometry, their values as embeddings, in one commit.

What the files do not say stays unknown: it is listed in the group and in the report, and the backbone's digest is one
of its own, ``imported:<name>:<sha256 of what is known>``, so that nothing mixes with embeddings that were made here.

A slide needs no image: it then has no ``source`` group (no overview picture, no size), its tiles are identified by its
id, and ``ingest --slide … --image …`` can add the image later. Its µm per pixel must be known: from the store, from
`ImportSpec.mpp`, the image, the file, or by convention from the file's magnification, in that order.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.content.tables import content_digest, write_points
from histostore.errors import ConflictError, DataError
from histostore.ids import check_slug
from histostore.io.sheet import Sample
from histostore.progress import Progress, Silent, Stopwatch
from histostore.protocols import TileStatus
from histostore.specs import EmbeddingSpec, canonical_json
from histostore.stages.imported_tiles import (
    ImportSpec,
    KnownSlide,
    PlacedTiles,
    known_slide,
    place_tiles,
    points_of,
    read_plan,
)
from histostore.stages.ingest import IngestSpec, ingest
from histostore.stages.metadata import check_fields, write_meta
from histostore.stages.pixels import status_counts
from histostore.stages.result import StageResult, outcome
from histostore.stages.source import source_of
from histostore.stages.tile_plan import GEOMETRY, IDS
from histostore.store.arrays import ArraySpec
from histostore.store.codecs import RAW
from histostore.tables import Report
from histostore.tiles.identity import tile_ids

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.io.feature_table import TileFeatures
    from histostore.stages.twins import Twins
    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store

PREFIX = "imported:"
"""Before the digest of every backbone whose features came from a file; no own digest has a colon."""

COORDS = "coords"
"""Array of imported tiles: the places as they stood in the file."""


def import_features(
    store: Store,
    slide: str,
    features: TileFeatures,
    spec: ImportSpec,
    *,
    image: Path | None = None,
    meta: Mapping[str, str] | None = None,
    replace: bool = False,
    twins: Twins | None = None,
    progress: Progress | None = None,
) -> StageResult:
    """Bring the features of one slide in.

    Writes ``points/<tiles>``, ``tiles/<tiles>`` and ``embeddings/<tiles>/<backbone>``; ``meta/meta`` where the slide
    is new, and all that `ingest` writes where it comes with its image. Values are kept to the bit, and coordinates also
    as they stood. Everything is checked before the first byte is written; a second call is a no-op.

    Parameters
    ----------
    slide
        An id that may be in the store or not.
    image
        The slide's image, where it is not in the store yet.
    meta
        Metadata of a slide that is new.
    twins
        As of `histostore.stages.ingest.ingest`.

    Raises
    ------
    DataError
        Rows with NaN or infinity; values that float32 cannot hold; an edge or anchor that nobody says; tiles off the
        slide.
    SlideError
        The slide's mpp is unknown, or two sources contradict each other.
    ConflictError
        The names are taken by other tiles or features.
    """
    watch = Stopwatch()
    (progress or Silent()).say(f"import {slide}")
    fields = dict(meta or {})
    check_fields(check_slug(slide, "slide id"), fields)
    there = store.manifest(slide)
    known = there if there.number and not there.deleted else None
    with watch.timed("check"):
        values, status = _values(features, spec)
        about = known_slide(store, known, features, spec, image)
        tiles = place_tiles(features, spec, about)
    if image is not None:
        mag = features.magnification if about.origin == "magnification" else None
        sample = Sample(slide=slide, image=image, mpp=about.told, mag=mag, meta={} if known else fields)
        with watch.timed("ingest"):
            ingest(store, sample, IngestSpec(force_mpp=True), twins=twins, progress=progress)
    unknown = _unknown(features, about)
    with watch.timed("write"):
        manifest = store.manifest(slide)
        refs = _meta(store, slide, manifest, fields, about)
        tiles_ref = _same_tiles(store, manifest, features, spec, about, tiles)
        if tiles_ref is None:
            refs.append(write_points(store, slide, spec.tiles, points_of(tiles)))
            tiles_ref = _write_tiles(store, manifest, features, spec, about, tiles)
            refs.append(tiles_ref)
        refs.append(_write_embeddings(store, tiles_ref, features, spec, values, status, unknown))
        done = _commit(store, manifest, refs, replace=replace)
    counts = {"tiles": len(values), **{k: n for k, n in status_counts(status).items() if k != "ok" and n}}
    if repeated := len(tiles.xy0) - len(np.unique(tiles.xy0, axis=0)):
        counts["tiles at the place of another"] = repeated
    notes = (*about.notes, f"not known: {', '.join(unknown)}")
    return StageResult(
        slide=slide, stage="import", refs=tuple(refs), done=done, rows=len(values), report=Report(counts, notes),
        seconds=watch.seconds,
    )  # fmt: skip


def _commit(store: Store, manifest: Manifest, refs: list[Ref], *, replace: bool) -> str:
    there = {} if manifest.deleted else {key: ref.digest for key, ref in manifest.entries.items()}
    if all(there.get(ref.key) == ref.digest for ref in refs):
        return "already there"
    try:
        return outcome(store.commit(manifest.owner, refs, replace=replace), resumed=False)
    except ConflictError as error:
        error.add_note("other features or tiles have that name: give another --tiles or --backbone")
        raise


def backbone_digest(name: str, features: TileFeatures) -> str:
    """Return the identity of imported features: of their name, their length and what the files say of the encoder."""
    told = {"name": name, "tool": features.tool, "dim": features.features.shape[1], "encoder": dict(features.encoder)}
    return f"{PREFIX}{name}:{hashlib.sha256(canonical_json(told).encode()).hexdigest()}"


def _values(features: TileFeatures, spec: ImportSpec) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Return the values as they are stored and the status of each row."""
    values = features.features
    if values.dtype == np.float64:
        with np.errstate(over="ignore"):
            kept = values.astype(np.float32)
        if not np.array_equal(kept.astype(np.float64), values, equal_nan=True):
            raise DataError("features are float64, and float32 cannot hold them to the bit; save them as float32")
        values = kept
    values = np.ascontiguousarray(values)
    finite = np.isfinite(values).all(axis=1)
    empty = np.isnan(values).all(axis=1)
    broken = np.flatnonzero(~finite & ~empty)
    if len(broken):
        rows = ", ".join(map(str, broken[:5]))
        raise DataError(f"{len(broken)} rows of the features have NaN or infinity in some columns (rows {rows})")
    if empty.any() and not spec.allow_nan:
        rows = ", ".join(map(str, np.flatnonzero(empty)[:5]))
        text = f"{int(empty.sum())} rows of the features are NaN (rows {rows}); extract them again"
        raise DataError(f"{text}, or pass allow_nan to keep them as unreadable tiles")
    return values, np.where(empty, TileStatus.UNREADABLE, TileStatus.OK).astype(np.uint8)


def _meta(store: Store, slide: str, manifest: Manifest, fields: Mapping[str, str], about: KnownSlide) -> list[Ref]:
    if not manifest.deleted and manifest.get("meta", "meta") is not None:
        return []
    return [write_meta(store, slide, fields, mpp=about.mpp, origin=about.origin)]


def _tiles_spec(features: TileFeatures, spec: ImportSpec, tiles: PlacedTiles) -> dict[str, Any]:
    return {
        "at": "imported",
        "unit": features.unit,
        "anchor": features.anchor or spec.anchor,
        "edge0": tiles.edge0,
        "out_px": tiles.out_px,
    }


def _same_tiles(
    store: Store, manifest: Manifest, features: TileFeatures, spec: ImportSpec, about: KnownSlide, tiles: PlacedTiles
) -> Ref | None:
    """Return the tile set of that name if it is of the same places, with or without the image it may have had."""
    ref = manifest.get("tiles", spec.tiles) if not manifest.deleted else None
    if ref is None:
        return None
    header = store.header(ref)
    inputs = {k: v for k, v in header["inputs"].items() if k != "source"}
    same = inputs == {"coords": content_digest(features.coords), "mpp": about.mpp}
    return ref if same and header["spec"] == _tiles_spec(features, spec, tiles) else None


def _write_tiles(
    store: Store, manifest: Manifest, features: TileFeatures, spec: ImportSpec, about: KnownSlide, tiles: PlacedTiles
) -> Ref:
    slide = manifest.owner
    has_image = not manifest.deleted and manifest.get("source", "image") is not None
    source = str(source_of(store, manifest)["sha256"]) if has_image else None
    mpp = about.mpp * tiles.edge0 / tiles.out_px
    inputs: dict[str, Any] = {"coords": content_digest(features.coords), "mpp": about.mpp}
    if source is not None:
        inputs["source"] = source
    asked = _tiles_spec(features, spec, tiles)
    with store.begin(slide, "tiles", spec.tiles, spec=asked, inputs=inputs) as writer:
        if writer.sealed is None:
            n = len(features)
            tissue = features.tissue if features.tissue is not None else np.full(n, np.nan)
            geometry = np.column_stack([tiles.centre, tiles.xy0, tissue.astype(np.float64)])
            names = tile_ids(source or f"no image: {slide}", tiles.centre, tiles.edge0, mpp)
            ids = np.column_stack([names, np.arange(n, dtype=np.uint64)])
            writer.put_array("geometry", geometry, dims=("tile", "measure"), attrs={"columns": GEOMETRY})
            writer.put_array("ids", ids, dims=("tile", "part"), attrs={"columns": IDS})
            writer.put_array(COORDS, np.ascontiguousarray(features.coords), dims=("tile", "axis"))
        attrs = {"points": spec.tiles, **read_plan(tiles, about), "edge0": tiles.edge0, "mpp": mpp}
        attrs |= {"left_out": {}, "notes": [f"imported from {features.tool}"], "mask_downsample": None}
        return writer.seal(rows=len(features), attrs=attrs)


def _unknown(features: TileFeatures, about: KnownSlide) -> list[str]:
    """Return what nobody says of the features, for the record."""
    unknown = ["the backbone's weights", "its transform and pooling", "which tiles were padded or blank"]
    if about.origin == "magnification":
        unknown.append(f"the slide's mpp ({about.mpp:g} by convention for {features.magnification:g}x)")
    if features.tile_px is None:
        unknown.append("the resolution the tiles were embedded at")
    if about.size_px is None:
        unknown.append("the slide's size")
    return unknown


def _write_embeddings(
    store: Store,
    tiles_ref: Ref,
    features: TileFeatures,
    spec: ImportSpec,
    values: NDArray[Any],
    status: NDArray[np.uint8],
    unknown: list[str],
) -> Ref:
    layout = EmbeddingSpec(dtype="float16" if values.dtype == np.float16 else "float32")
    digest = backbone_digest(spec.backbone, features)
    dim = values.shape[1]
    array = ArraySpec(
        shape=values.shape, dtype=layout.dtype, chunk_rows=layout.chunk_rows, shard_rows=layout.shard_rows,
        pipeline=RAW, fill_value="NaN", dims=("tile", "feature"),
    )  # fmt: skip
    attrs = {
        "tiles": spec.tiles,
        "backbone": {"name": spec.backbone, "source": f"{PREFIX}{features.tool}", "dim": dim},
        "backbone_digest": digest,
        "dim": dim,
        "status": status_counts(status),
        "imported": _record(features) | {"unknown": unknown},
    }
    with store.begin(
        tiles_ref.owner, "embeddings", f"{spec.tiles}/{spec.backbone}",
        spec={"backbone": digest, "layout": layout.to_json()},
        inputs={"tiles": tiles_ref.digest, "content": content_digest(values)},
    ) as writer:  # fmt: skip
        if writer.sealed is None:
            writer.create("embedding", array)
            for shard in writer.pending("embedding"):
                start, stop = array.shard_range(shard)
                writer.write_rows("embedding", shard, values[start:stop])
            writer.put_array("status", status, dims=("tile",))
        return writer.seal(rows=len(values), attrs=attrs)


def _record(features: TileFeatures) -> dict[str, Any]:
    """Return all that the files say beside values and places, from which they can be written again."""
    return {
        "tool": features.tool,
        "container": features.container,
        "dtype": features.features.dtype.name,
        "unit": features.unit,
        "anchor": features.anchor,
        "edge": features.edge,
        "tile_px": features.tile_px,
        "slide_mpp": features.slide_mpp,
        "magnification": features.magnification,
        "size_px": list(features.size_px) if features.size_px is not None else None,
        "tissue": features.tissue is not None,
        "leading_axis": features.leading_axis,
        "encoder": dict(features.encoder),
        "attrs": dict(features.attrs),
    }
