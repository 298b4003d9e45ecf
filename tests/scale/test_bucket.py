"""Workers on a store that lies in a bucket: the bytes of a serial run on a disk."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import histostore as hs
from histostore.scale.cluster import workers_here
from histostore.specs import EmbeddingSpec, PixelSpec, TileSpec
from histostore.testing.s3 import running_s3

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from histostore.testing.cohort import Cohort

SPEC, PIXELS = TileSpec.at_spots(px=96), PixelSpec(codec="lossless", shard_tiles=8)
LAYOUT = EmbeddingSpec(shard_rows=16, chunk_rows=16)


def committed(store: hs.Store, slide: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Return the digest and the sha256 of every file of a slide's groups of some kinds."""
    refs = [ref for ref in store.manifest(slide).entries.values() if ref.kind in kinds]
    return {ref.key: (ref.digest, {n: sha for n, (_, sha) in store.header(ref)["files"].items()}) for ref in refs}


def test_workers_fill_a_store_in_a_bucket(
    cohort: Cohort, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_s3(tmp_path / "server") as s3:
        for name, value in s3.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HISTOSTORE_CACHE", str(tmp_path / "cache"))
        store = hs.create(f"s3://{s3.bucket}/{secrets.token_hex(3)}", name="synthetic")
        hs.pp.ingest(store, sheet=cohort.sheet)
        with workers_here(2) as client:
            hs.pp.tile(store, SPEC, pixels=PIXELS, client=client)
            done = hs.tl.embed(store, "testing", spec=LAYOUT, client=client)
        assert [r.done for r in done] == ["written"] * len(store.slides())
        local = hs.open(embedded)
        for slide in store.slides():
            kinds = ("tiles", "pixels", "embeddings")
            assert committed(store, slide, kinds) == committed(local, slide, kinds)
