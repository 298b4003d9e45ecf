"""A small section with a known image and known spots, shaped as scanpy users have it."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

SCALE = 0.5
"""Image pixels per full-resolution pixel."""


def section(slide: str, *, mpp: float | None = 0.5, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    xy = np.array([(x, y) for y in (100, 200, 300) for x in (100, 200, 300, 500)], dtype=float)
    counts = rng.integers(0, 20, (len(xy), 3)).astype(np.int32)
    obs = pd.DataFrame(
        {
            "slide": slide,
            "patient": "P1",
            "region": pd.Categorical(["tumour", "stroma", "immune"] * 4),
            "depth": np.arange(len(xy), dtype=float),
        },
        index=[f"{slide}:{int(x)}x{int(y)}" for x, y in xy],
    )
    adata = ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=["A", "B", "depth2"]))
    adata.obsm["spatial"] = xy
    adata.layers["log"] = np.log1p(counts).astype(np.float32)
    about = {
        "images": {"hires": np.full((200, 300, 3), 255, np.uint8)},
        "scalefactors": {"tissue_hires_scalef": SCALE, "spot_diameter_fullres": 60.0},
        "metadata": {} if mpp is None else {"mpp": mpp},
    }
    adata.uns["spatial"] = {slide: about}
    return adata


@pytest.fixture
def adata() -> ad.AnnData:
    return section("S1")


@pytest.fixture
def two_slides() -> ad.AnnData:
    one, two = section("S1"), section("S2", seed=1)
    both = ad.concat([one, two])
    both.uns["spatial"] = {**one.uns["spatial"], **two.uns["spatial"]}
    return both
