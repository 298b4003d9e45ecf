"""The whole job, ingest to search, on a bucket behind a proxy that fails a tenth of all requests: as on a disk."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

import histostore as hs
from histostore.errors import SlideError
from histostore.slides import open_slide
from histostore.specs import TileSpec
from histostore.store.objects import open_objects
from histostore.store.verify import verify
from histostore.testing.faults import faulty_proxy
from histostore.testing.slides import synthetic_histology, write_pyramid_tiff

if TYPE_CHECKING:
    from histostore.testing.azure import AzureServer
    from histostore.testing.cohort import Cohort
    from histostore.testing.s3 import S3Server

TILE_PX = 96


def committed(store: Any) -> dict[str, Any]:
    """Return what every committed group is: its digest and the sha256 of its files, by owner and key.

    A snapshot of an index has a name drawn at random: only its FAISS files are compared.
    """
    found = {}
    for owner in store.owners():
        for key, ref in store.manifest(owner).entries.items():
            header = store.header(ref)
            files = {name: sha for name, (_, sha) in header["files"].items()}
            if owner == "@indexes":
                files = {end: sha for name, sha in files.items() if (end := Path(name).suffix) == ".faiss"}
            found[owner, key] = ref.digest if owner != "@indexes" else "", files
    return found


def finish(store: str | Path, out: Path, cli: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Fit, predict, index, search and export; return the hits, the embeddings and the exported table."""
    cli("index", store, "--backbone", "testing", "--kind", "hnsw")
    cli("fit", store, "--backbone", "testing", "--genes", "top-variance:5", "--save", "mine")
    cli("predict", store, "--head", "mine")
    opened = hs.open(str(store))
    view = opened.view(backbone="testing")
    spot = str(hs.get.obs(opened, slides=["A1"], tiles="spots")["barcode"].iloc[3])
    hits = cli("search", store, "--slide", "A1", "--spot", spot, "--backbone", "testing", "-k", 5, "--json").stdout
    cli("export", store, "--backbone", "testing", "-o", out)
    with h5py.File(out) as file:
        exported = file["obsm/X_testing"][:]
    embeddings = [part.group(ref).read("embedding") for part in view.parts for ref in part.embeddings.values()]
    return json.loads(hits), np.concatenate(embeddings), exported


def test_the_whole_job_through_failing_requests_gives_what_a_disk_gives(
    cohort: Cohort,
    embedded: Path,
    bucket: str,
    cloud: S3Server | AzureServer,
    tmp_path: Path,
    cli: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local = Path(shutil.copytree(embedded, tmp_path / "local"))
    expected = finish(local, tmp_path / "local.h5ad", cli)
    with faulty_proxy(cloud.port, rate=0.1, hang_s=1.2, seed=11) as proxy:
        for name, value in cloud.environment(port=proxy.port).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HISTOSTORE_OBJECT_TIMEOUT", "1")
        cli("init", bucket, "--name", "synthetic")
        cli("ingest", bucket, "--sheet", cohort.sheet)
        cli("tile", bucket, "--at", "spots", "--px", TILE_PX, "--codec", "lossless", "--shard-tiles", 8)
        cli("embed", bucket, "--backbone", "testing", "--shard-rows", 16)
        found = finish(bucket, tmp_path / "bucket.h5ad", cli)
        total, faults = sum(proxy.requests.values()), sum(proxy.faults.values())
        print(f"{total} requests, {faults} failed: {dict(proxy.faults)}")
    assert faults > 0.05 * total
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    assert committed(hs.open(bucket)) == committed(hs.open(local))
    assert found[0] == expected[0]
    assert np.array_equal(found[1], expected[1])
    assert np.array_equal(found[2], expected[2], equal_nan=True)
    cli("verify", bucket)


def test_two_stages_that_make_the_same_group_keep_one_and_both_say_so(cohort: Cohort, bucket: str) -> None:
    store = hs.create(bucket, name="race")
    hs.pp.ingest(store, sheet=cohort.sheet)
    spec = TileSpec.at_spots(px=TILE_PX)
    with ThreadPoolExecutor(2) as pool:
        (one,), (two,) = pool.map(lambda _: hs.pp.tile(hs.open(bucket), "A1", spec), range(2))
    assert sorted(r.done in ("written", "resumed") for r in (one, two)) == [False, True], (one.done, two.done)
    assert {one.done, two.done} & {"kept another writer's", "already there"}
    assert {r.key: r.digest for r in one.refs} == {r.key: r.digest for r in two.refs}
    assert verify(store).ok


def test_a_slide_in_a_bucket_is_read_in_place(bucket: str, tmp_path: Path) -> None:
    image, _ = synthetic_histology(900, 700, seed=1)
    path = write_pyramid_tiff(tmp_path / "slide.svs", image, mpp=0.5, vendor="aperio")
    open_objects(bucket).put("scans/slide.svs", path.read_bytes())
    corners = np.array([[100, 50], [640, 410], [-20, 5]])
    with open_slide(f"{bucket}/scans/slide.svs") as far, open_slide(path) as near:
        assert far.uri == f"{bucket}/scans/slide.svs"
        for mine, theirs in zip(far.read(corners, px=256), near.read(corners, px=256), strict=True):
            assert np.array_equal(mine, theirs)
    with pytest.raises(SlideError, match="no such object"):
        open_slide(f"{bucket}/scans/other.svs")
    with pytest.raises(SlideError, match="no such object"):
        open_slide(bucket)
