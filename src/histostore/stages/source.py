"""The image a slide came from: found again, and checked to be the same bytes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.errors import SlideError
from histostore.slides import open_slide
from histostore.slides.source import source_bytes, source_changed_ns, source_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.protocols import Slide
    from histostore.store.manifest import Manifest
    from histostore.store.store import Store


def source_of(store: Store, manifest: Manifest) -> Mapping[str, Any]:
    """Return what was recorded of a slide's image: uri, sha256, size, levels."""
    return store.group(manifest.find("source", "image")).attrs


def mpp_of(store: Store, manifest: Manifest) -> float:
    """Return microns per level-0 pixel of a slide, as recorded with its origin."""
    return float(store.group(manifest.find("meta", "meta")).attrs["mpp"])


def open_source(store: Store, manifest: Manifest, *, workers: int = 1) -> Slide:
    """Open the image that a slide was ingested from; `workers` threads read and decode it.

    Raises
    ------
    SlideError
        The file is gone, or holds other bytes than those that were ingested.
    """
    attrs = source_of(store, manifest)
    path = Path(attrs["uri"])
    if not path.exists():
        raise SlideError(
            f"the image of slide '{manifest.owner}' is gone: {path}; put it back, or use tiles that were stored"
        )
    if _digest(str(path), source_bytes(path), source_changed_ns(path)) != attrs["sha256"]:
        raise SlideError(
            f"{path} is not the file slide '{manifest.owner}' was ingested from (sha256 differs); "
            "a re-scan is a new slide: ingest it under another id"
        )
    return open_slide(path, workers=workers)


@lru_cache(maxsize=4096)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    del size, mtime_ns  # part of the key: a changed file is read again
    return source_digest(path)
