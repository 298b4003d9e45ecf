"""The table of what the server answers: requests are checked by it, and the OpenAPI document is made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from histostore.ids import MAX_POINT_ID
from histostore.index.spec import METRICS
from histostore.where import MAX_CHARS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.serve.checks import Schema
    from histostore.serve.limits import Limits

SMALLEST_PX = 16
LARGEST_NUMBER = 1e15
"""In a query vector: its square is still far from what float32 ends at."""
FORMATS = {"png": "image/png", "jpeg": "image/jpeg"}
NAME_CHARS = 160
"""A tile set and a backbone, joined by a slash."""
SLIDE_CHARS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing a client may ask for."""

    name: str
    path: str
    about: str
    answer: str
    """Name of the answer's schema, or ``picture``."""
    method: Literal["GET", "POST"] = "GET"
    path_fields: Mapping[str, Schema] = field(default_factory=dict)
    query_fields: Mapping[str, Schema] = field(default_factory=dict)
    body: Schema | None = None
    lane: Literal["reads", "searches"] = "reads"


def _text(most: int, about: str, **more: Any) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": most, "description": about, **more}


def _whole(least: int, most: int, default: int, about: str) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most, "default": default, "description": about}


def _object(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": fields, "additionalProperties": False}


SLIDE = _text(SLIDE_CHARS, "a slide's id, as /v1/slides lists them")
SPOT = _text(MAX_POINT_ID, "a spot's barcode, or a grid cell like 25x13")
TILE = _text(MAX_POINT_ID, "a tile's spot, or its tile_id (32 of 0-9a-f)")
TILES = _text(SLIDE_CHARS, "a tile set's name")
FORMAT: Schema = {
    "type": "string",
    "enum": list(FORMATS),
    "default": "png",
    "description": "png keeps pixels as they are",
}


def search_body(limits: Limits) -> Schema:
    """Return what a search may ask for."""
    number = {"type": "number", "minimum": -LARGEST_NUMBER, "maximum": LARGEST_NUMBER}
    image = _text(limits.max_image_bytes * 4 // 3 + 4, "a PNG or JPEG tile in base64", contentEncoding="base64")
    spots = {"type": "array", "items": SPOT, "minItems": 1, "maxItems": limits.max_queries}
    vector = {"type": "array", "items": number, "minItems": 1, "maxItems": limits.max_dim}
    corner = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    query: Schema = {
        "type": "object",
        "description": "tiles of the store, or embeddings, or an image at the tiles' resolution",
        "oneOf": [
            _object(("slide", "spot"), slide=SLIDE, spot=SPOT),
            _object(("slide", "spots"), slide=SLIDE, spots={**spots, "description": "each answered by itself"}),
            _object(
                ("slide", "box"), slide=SLIDE,
                box={
                    "type": "array", "items": number, "minItems": 4, "maxItems": 4,
                    "description": "x0, y0, x1, y1 in level-0 pixels: all tiles with their centre in it, together",
                },
            ),
            _object(
                ("slide", "polygon"), slide=SLIDE,
                polygon={
                    "type": "array", "items": corner, "minItems": 3, "maxItems": limits.max_corners,
                    "description": "its corners (x, y) in level-0 pixels; as `box`",
                },
            ),
            _object(("vector",), vector=vector),
            _object(
                ("vectors",),
                vectors={"type": "array", "items": vector, "minItems": 1, "maxItems": limits.max_queries},
            ),
            _object(("image",), image=image),
        ],
    }  # fmt: skip
    column = _text(200, "an obs column, or a gene")
    share = {"type": "number", "minimum": 0, "maximum": 1}
    far = {"type": "number", "minimum": 0, "maximum": LARGEST_NUMBER}
    return _object(
        ("query",),
        query=query,
        backbone=_text(NAME_CHARS, "which embeddings; may be left out where there is one"),
        tiles=_text(SLIDE_CHARS, "which tile set; may be left out where there is one"),
        k=_whole(1, limits.max_k, 10, "hits wanted for each query; fewer come where there are fewer tiles"),
        metric={"type": "string", "enum": list(METRICS), "description": "default: that of the index, else cosine"},
        where=_text(MAX_CHARS, "only tiles that pass this filter, like \"patient != 'C' and EPCAM > 2\""),
        slides={"type": "array", "items": SLIDE, "minItems": 1, "maxItems": limits.max_slides},
        exclude_same=_text(200, "leave out tiles with the query's value in this column, like slide or patient"),
        exclude_radius_um={**far, "description": "leave out tiles of the query's slide this near to its own"},
        at_most_per=_text(200, "a column of which at most `at_most` hits may share a value"),
        at_most=_whole(1, limits.max_k, 1, "see at_most_per"),
        diversity={**share, "default": 0, "description": "towards 1 hits differ more from each other"},
        max_distance={**number, "description": "only hits at most that far"},
        expressing={
            "description": "rank the nearest tiles by the counts of these genes too",
            "oneOf": [
                {"type": "array", "items": _text(200, "a gene"), "minItems": 1, "maxItems": limits.max_columns},
                {
                    "type": "object", "propertyNames": _text(200, "a gene"), "additionalProperties": number,
                    "minProperties": 1, "maxProperties": limits.max_columns,
                    "description": 'how much each counts, like {"EPCAM": 2, "VIM": -1}; below 0 less is better',
                },
            ],
        },
        expression_weight={**share, "default": 0.5, "description": "share of the expression in that rank"},
        index=_text(NAME_CHARS, "an index by name; default: the one there is"),
        exact={"type": "boolean", "default": False, "description": "use no index"},
        columns={"type": "array", "items": column, "maxItems": limits.max_columns, "default": []},
    )  # fmt: skip


def operations(limits: Limits) -> tuple[Operation, ...]:
    """Return everything the server answers, beside its own description."""
    of_slide = {"slide": SLIDE}
    return (
        Operation(name="health", path="/v1/health", about="Whether the store can be read", answer="Health"),
        Operation(
            name="slides", path="/v1/slides", about="The slides, by id", answer="SlideList",
            query_fields={
                "limit": _whole(1, limits.max_slides, min(100, limits.max_slides), "slides in the answer"),
                "offset": _whole(0, 1 << 31, 0, "slides to pass over"),
            },
        ),
        Operation(
            name="slide", path="/v1/slides/{slide}", about="One slide: its metadata, tile sets and embeddings",
            answer="Slide", path_fields=of_slide,
        ),
        Operation(
            name="thumbnail", path="/v1/slides/{slide}/thumbnail", about="A slide, small; never enlarged",
            answer="picture", path_fields=of_slide,
            query_fields={
                "max_px": _whole(SMALLEST_PX, limits.max_thumbnail_px, 1024, "its longest edge at most"),
                "format": FORMAT,
            },
        ),
        Operation(
            name="tile", path="/v1/slides/{slide}/tiles/{tiles}/{id}/image", about="A tile's pixels as they are stored",
            answer="picture", query_fields={"format": FORMAT},
            path_fields={**of_slide, "tiles": TILES, "id": TILE},
        ),
        Operation(
            name="search", path="/v1/search", about="The tiles that look most like a query, nearest first",
            answer="Hits", method="POST", body=search_body(limits), lane="searches",
        ),
    )  # fmt: skip


_S: Schema = {"type": "string"}
_N: Schema = {"type": "number"}
_I: Schema = {"type": "integer"}


def _all(**fields: Schema) -> Schema:
    return {"type": "object", "required": list(fields), "properties": fields}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


ANSWERS: Mapping[str, Schema] = {
    "Health": _all(status={"const": "ok"}, version=_S, store=_S, slides=_I),
    "SlideList": _all(slides=_list(_all(slide=_S, fields={"type": "object"}, mpp=_N)), total=_I, offset=_I),
    "Slide": _all(
        slide=_S,
        fields={"type": "object", "description": "metadata, as given at ingest"},
        mpp={**_N, "description": "µm per level-0 pixel"},
        width={**_I, "description": "level-0 pixels"},
        height={**_I, "description": "level-0 pixels"},
        thumbnail=_all(width=_I, height=_I),
        tiles=_list(
            _all(
                name=_S,
                tiles=_I,
                px={**_I, "description": "edge of a stored tile"},
                mpp={**_N, "description": "µm per pixel of a stored tile"},
                edge0={**_N, "description": "edge in level-0 pixels"},
                pixels={"type": "boolean", "description": "whether its pixels are stored"},
                embeddings=_list(_all(backbone=_S, dim=_I)),
            )
        ),
    ),
    "Hits": _all(
        query=_S,
        backbone={"type": ["string", "null"]},
        metric={"enum": list(METRICS)},
        notes={**_list(_S), "description": "what to know of the answer, like an index that is behind"},
        hits=_list(
            _all(
                query={**_S, "description": "which of several queries it answers"},
                rank=_I,
                id={**_S, "description": "<slide>:<spot>"},
                slide=_S,
                spot=_S,
                tile_id={**_S, "description": "for the tile's image"},
                x_um={**_N, "description": "centre, µm from the slide's left edge"},
                y_um={**_N, "description": "centre, µm from the slide's top edge"},
                distance={**_N, "description": "1 - cosine, squared Euclidean, or minus the inner product"},
                columns={"type": "object", "description": "the columns asked for; null where missing"},
            )
        ),
    ),
    "Error": _all(error=_all(kind=_S, message={**_S, "description": "one line"})),
}
"""The answers, by name."""
