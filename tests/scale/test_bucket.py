"""Workers on a store that lies in a bucket: the bytes of a serial run on a disk."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import histostore as hs
from histostore.scale.cluster import workers_here
from histostore.specs import EmbeddingSpec, PixelSpec, TileSpec
from histostore.testing.s3 import running_s3

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from histostore.testing.cohort import Cohort

SPEC, PIXELS = TileSpec.at_spots(px=96), PixelSpec(codec="lossless", shard_tiles=8)
LAYOUT = EmbeddingSpec(shard_rows=16, chunk_rows=16)


def committed(store: hs.Store, slide: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Return the digest and the sha256 of every file of a slide's groups of some kinds."""
    refs = [ref for ref in store.manifest(slide).entries.values() if ref.kind in kinds]
    return {ref.key: (ref.digest, {n: sha for n, (_, sha) in store.header(ref)["files"].items()}) for ref in refs}


def index_bytes(store: hs.Store) -> list[str]:
    """Return the sha256 of the files of an index but its snapshot, which says when it was built."""
    (ref,) = store.manifest("@indexes").entries.values()
    files = store.header(ref)["files"].items()
    return sorted(sha for name, (_, sha) in files if name.endswith((".faiss", ".npy")))


def test_workers_fill_a_store_in_a_bucket(
    cohort: Cohort, embedded: Path, copy_of: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
            hs.tl.index(store, kind="ivf-sq8", nlist=4, client=client)
        assert [r.done for r in done] == ["written"] * len(store.slides())
        local = hs.open(embedded)
        for slide in store.slides():
            kinds = ("tiles", "pixels", "embeddings")
            assert committed(store, slide, kinds) == committed(local, slide, kinds)
        local = hs.open(copy_of(embedded))
        hs.tl.index(local, kind="ivf-sq8", nlist=4)
        assert index_bytes(store) == index_bytes(local)
        assert [key for key, _, _ in store.files.walk("indexes") if key.endswith(("trained.faiss", "LOCK"))] == []
        vector = store.view(backbone="testing").numpy()[3]
        found = [hs.tl.search(s, vector=vector, k=5).table for s in (store, local)]
        assert found[0].index.tolist() == found[1].index.tolist()
        kept = list((tmp_path / "cache" / "indexes" / store.uuid).iterdir())
        assert sorted(path.suffix for path in kept) == [".faiss", ".npy"]
        assert hs.tl.index(store).done == "already there"
