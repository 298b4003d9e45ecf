"""Search for clients: the only place that calls `histostore.tl.search`."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore import tl
from histostore.backbones.names import STORE
from histostore.backbones.tuned import BACKBONES, KIND, load_for
from histostore.errors import DataError, HistostoreError, UsageError
from histostore.serve.pictures import uploaded
from histostore.stages.search import only_backbone

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.protocols import Backbone
    from histostore.serve.limits import Limits
    from histostore.serve.snapshot import Snapshot
    from histostore.specs import BackboneSpec

OWN = ("rank", "distance", "slide", "barcode", "x_um", "y_um", "tile_id")
"""Columns that every hit has a field of."""
PASSED_ON = (
    "backbone", "tiles", "k", "metric", "where", "slides", "exclude_same", "exclude_radius_um", "at_most_per",
    "at_most", "diversity", "max_distance", "expressing", "expression_weight", "index",
)  # fmt: skip
"""Fields of the body that mean what they mean to `histostore.tl.search`."""
LOADED = 2
"""Backbones that stay in memory."""


class Embedders:
    """Backbones for queries by image: loaded when first asked for, used by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: OrderedDict[tuple[str, str], Backbone] = OrderedDict()

    def of(self, store: Snapshot, name: str) -> Backbone:
        """Return the backbone of some embeddings.

        Raises
        ------
        DataError
            This machine cannot load it: its weights or its package are not here.
        """
        short = name.rpartition("/")[2]
        own = store.manifest(BACKBONES).get(KIND, short.removeprefix(STORE))
        key = (short, own.digest if own is not None else "")
        with self._lock:
            if key not in self._loaded:
                try:
                    self._loaded[key] = _InTurn(load_for(store, short))
                except HistostoreError as error:
                    raise DataError(
                        f"the server cannot load backbone '{short}': query by spot or by vector instead"
                    ) from error
                if len(self._loaded) > LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(key)
            return self._loaded[key]


class _InTurn:
    """A backbone that threads share."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._lock = threading.Lock()
        self.spec: BackboneSpec = backbone.spec

    def engine(self) -> dict[str, str | int]:
        return self._backbone.engine()

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        with self._lock:
            return self._backbone.embed(tiles)


def search(store: Snapshot, asked: dict[str, Any], *, embedders: Embedders, limits: Limits) -> dict[str, Any]:
    """Return the answer to a checked search body.

    Raises
    ------
    NotFoundError, UsageError, DataError, SpecMismatchError
        As `histostore.tl.search`.
    """
    query, columns = asked["query"], tuple(dict.fromkeys(asked["columns"]))
    given: dict[str, Any] = {name: asked.get(name) for name in PASSED_ON}
    if asked["exact"]:
        if "index" in asked:
            raise UsageError("exact uses no index: give one of exact and index")
        given["index"] = False
    if "image" in query:
        given["image"] = uploaded(query["image"], limits)
        given["backbone"] = given["backbone"] or only_backbone(store, given["tiles"])
        given["embed_with"] = embedders.of(store, given["backbone"])
    else:
        given |= _asked_for(query)
    rows = store.rows(**{name: given.pop(name) for name in ("backbone", "slides")}, tiles=given["tiles"])
    hits = tl.search(store, rows=rows, columns=tuple({*columns, "tile_id"}), **given)
    found = hits.table.reset_index(names="id").to_dict("records")
    return {
        "query": hits.query,
        "backbone": hits.view.backbones[0] if hits.view.backbones else None,
        "metric": hits.metric,
        "hits": [_hit(row, hits.query, columns) for row in found],
        "notes": [*hits.notes, *([note] if (note := hits.view.note()) is not None else [])],
    }


def _asked_for(query: dict[str, Any]) -> dict[str, Any]:
    """Return a query as `histostore.tl.search` takes it."""
    found: dict[str, Any] = {"slide": query["slide"]} if "slide" in query else {}
    if vectors := query.get("vectors", query.get("vector")):
        if "vectors" in query and len({len(v) for v in vectors}) > 1:
            raise UsageError("query.vectors differ in length: give embeddings of one backbone")
        found["vector"] = np.asarray(vectors, dtype=np.float32)
    elif "box" in query:
        found["region"] = tuple(query["box"])
    elif "polygon" in query:
        found["region"] = query["polygon"]
    else:
        found["spot"] = query.get("spots", query.get("spot"))
    return found


def _hit(row: dict[Any, Any], query: str, columns: tuple[str, ...]) -> dict[str, Any]:
    fields = {"id": row["id"], **{name: row[name] for name in OWN}}
    fields["spot"] = fields.pop("barcode")
    found = {"query": row.get("query", query), **{name: _plain(value) for name, value in fields.items()}}
    found["columns"] = {name: _plain(row[name]) for name in columns}
    return found


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: missing is null."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
