"""The image a slide came from: found again, and checked to be the same bytes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.errors import SlideError
from histostore.slides import open_slide
from histostore.slides.remote import is_remote, remote_digest, remote_state
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
    if is_remote(attrs["uri"]):
        _check_remote(attrs, manifest.owner)
        return open_slide(attrs["uri"], workers=workers)
    path = Path(attrs["uri"])
    if not path.exists():
        raise SlideError(
            f"the image of slide '{manifest.owner}' is gone: {path}; put it back, ingest the slide again with --image "
            "where it is now, or use tiles that were stored"
        )
    if _digest(str(path), source_bytes(path), source_changed_ns(path)) != attrs["sha256"]:
        raise _other_bytes(path, manifest.owner)
    return open_slide(path, workers=workers)


def _check_remote(attrs: Mapping[str, Any], slide: str) -> None:
    """Compare what lies at an address with what was ingested: by its version, or byte for byte where that differs."""
    size, version = remote_state(attrs["uri"])
    if version and (size, version) == (attrs["bytes"], attrs.get("version")):
        return
    if size != attrs["bytes"] or _remote_digest(attrs["uri"], size, version) != attrs["sha256"]:
        raise _other_bytes(attrs["uri"], slide)


def _other_bytes(where: str | Path, slide: str) -> SlideError:
    return SlideError(
        f"{where} is not the file slide '{slide}' was ingested from (its bytes differ); "
        "a re-scan is a new slide: ingest it under another id"
    )


@lru_cache(maxsize=4096)
def _remote_digest(address: str, size: int, version: str) -> str:
    del size, version  # part of the key
    return remote_digest(address)[0]


@lru_cache(maxsize=4096)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    del size, mtime_ns  # part of the key: a changed file is read again
    return source_digest(path)
