"""The four real sections through two workers: the bytes of the serial run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import histostore as hs
from histostore.specs import EmbeddingSpec
from histostore.testing.crash import contents

SECTIONS = ("C2", "C3", "C4", "C5")


def assay(files: Path, slide: str) -> dict[str, Path]:
    """Return the counts and spots of a section."""
    return {"st_counts": files / f"{slide}.counts.tsv.gz", "st_spots": files / f"{slide}.spots.tsv"}


def test_the_real_sections_through_two_workers_are_those_of_one_process(
    real_data: Path, tmp_path: Path, client: Any
) -> None:
    files, serial = real_data / "her2st", hs.create(tmp_path / "serial")
    for slide in SECTIONS:
        hs.pp.ingest(
            serial, slide, image=files / f"{slide}.jpg", mpp=0.688, meta={"patient": "C"}, **assay(files, slide)
        )
    stores = [serial, hs.open(shutil.copytree(serial.uri, tmp_path / "workers"))]
    for store, how in zip(stores, ({}, {"client": client}), strict=True):
        hs.pp.tile(store, hs.TileSpec.at_spots(px=224, mpp="native"), pixels=hs.PixelSpec(shard_tiles=128), **how)
        hs.tl.embed(store, "testing", spec=EmbeddingSpec(shard_rows=128, chunk_rows=64), **how)
    for slide in SECTIONS:
        ours, theirs = (contents(Path(s.uri), slide) for s in stores)
        assert ours == theirs
        assert sum("/c/" in name for name in ours) > 6
