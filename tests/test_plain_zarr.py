"""What the README says of plain zarr, xarray and anndata holds for every kind of group of a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata
import imagecodecs.zarr
import numpy as np
import pytest
import xarray
import zarr

import histostore as hs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.face import Store

KINDS = {"embeddings", "expression", "labels", "meta", "pixels", "points", "predictions", "source", "tiles"}


@pytest.fixture
def store(embedded: Path, copy_of: Callable[[Path], Path], cli: Callable[..., object]) -> Store:
    folder = copy_of(embedded)
    cli("fit", folder, "--genes", "top-variance:3", "--save", "mine", "--split", "leave-one-out:patient")
    cli("predict", folder, "--head", "mine", "--slides", "A1")
    cli("tile", folder, "--grid", "--px", 128, "--slides", "A1")  # as JPEG
    return hs.open(folder)


def test_every_group_of_a_slide_opens_by_path_as_the_readme_says(store: Store) -> None:
    imagecodecs.zarr.register_codecs(verbose=False)
    seen = set()
    for ref in store.slide("A1").entries.values():
        path = store.group(store.slide("A1").find(ref.kind, ref.name)).path
        opened, table = zarr.open(path, mode="r"), xarray.open_zarr(path, consolidated=False).load()
        assert isinstance(opened, zarr.Group)
        for name, values in opened.arrays():
            np.testing.assert_array_equal(values[:], table[name].to_numpy())
        seen.add(ref.kind)
    assert seen >= KINDS
    counts = store.slide("A1").find("expression")
    assert anndata.read_zarr(store.group(counts).path).shape[1] == store.group(counts).attrs["n_genes"]
