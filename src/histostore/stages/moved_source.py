"""The record of a slide's image: where it lies, and that it lies elsewhere now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.store.manifest import Ref
    from histostore.store.store import Store

THUMBNAIL_PX = 2000


def write_source(store: Store, slide: str, about: Mapping[str, Any], thumbnail: np.ndarray[Any, Any]) -> Ref:
    """Seal the record of an image; the caller commits it.

    What it is (its digest) is the image's bytes, so the same bytes at another place are another attempt at the same
    group, and nothing that was made of them is stale.
    """
    there = store.manifest(slide)
    old = there.get("source", "image") if not there.deleted else None
    if old is not None and _place(store, old) == about["uri"]:
        return old
    spec, inputs = {"thumbnail_px": THUMBNAIL_PX}, {"sha256": about["sha256"]}
    # an attempt that is sealed is never changed: one of another place is told apart by its engine
    for engine in ({}, {"at": about["uri"]}):
        with store.begin(slide, "source", "image", spec=spec, inputs=inputs, engine=engine) as writer:
            if writer.sealed is None:
                writer.put_array("thumbnail", np.ascontiguousarray(thumbnail), dims=("y", "x", "c"))
            ref = writer.seal(rows=0, attrs=about)
        if _place(store, ref) == about["uri"]:
            break
    return ref


def move_source(store: Store, slide: str, ref: Ref) -> tuple[str, ...]:
    """Let a slide's image be where `ref` says, if the same bytes were elsewhere; return a line that says so."""
    old = store.slide(slide).find("source", "image")
    if _place(store, old) == _place(store, ref):
        return ()
    store.commit(slide, [ref], replace=True, expect={ref.key: ref.digest})
    return (f"the image was at {_place(store, old)}, and is at {_place(store, ref)} now",)


def _place(store: Store, ref: Ref) -> str:
    return str(store.header(ref)["attrs"]["uri"])
