"""A cohort with what makes cohorts hard: other genes on each slide, spots without counts, unreadable tiles, shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.sparse as sp

import histostore as hs
from histostore.content.tables import write_counts, write_points
from histostore.stages.metadata import write_meta
from histostore.store.arrays import ArraySpec
from histostore.store.codecs import RAW
from histostore.tables import Counts, Points

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GENES, DIM, PROGRAMS = 120, 12, 4
BACKBONE = "made"


def add_slide(
    store: hs.Store, slide: str, patient: str, n: int, *, seed: int, drop: int = 0, panel: bool = False,
    uncounted: int = 0, unreadable: int = 0, normalised: bool = False, by_symbol: bool = False, twins: bool = False,
) -> None:  # fmt: skip
    """Write counts that follow a few programs and embeddings that see those; `drop` genes are not listed.

    With `twins` two genes have the symbol ``G0``.
    """
    rng, shared = np.random.default_rng([7, seed]), np.random.default_rng(7)
    loadings = shared.gamma(0.3, 1.0, (PROGRAMS, GENES)) + 0.02
    sight = shared.normal(size=(PROGRAMS, DIM))
    factors = rng.gamma(1.0, 1.0, (n, PROGRAMS))
    matrix = rng.poisson(2 * factors @ loadings).astype(np.int32)
    genes = np.sort(rng.permutation(GENES)[drop:]) if drop else np.arange(GENES)
    genes = np.roll(genes, seed)  # each slide in an order of its own
    ids = tuple(f"{i}x{seed}" for i in range(n))
    points = write_points(store, slide, "spots", Points(ids=ids, xy=rng.uniform(0, 9e3, (n, 2)), assay="visium"))
    refs = [write_meta(store, slide, {"patient": patient}, mpp=0.5, origin="given"), points]
    kept = rng.permutation(n)[uncounted:] if uncounted else np.arange(n)
    values = sp.csr_array(matrix[kept][:, genes])
    table = Counts(
        ids=tuple(ids[i] for i in kept), matrix=values.astype(np.float32) if normalised else values,
        gene_ids=tuple(f"G{g}" if by_symbol else f"ENSG{g:05d}" for g in genes),
        symbols=tuple(f"G{0 if twins and g == 1 else g}" for g in genes),
        whole_transcriptome=not panel, normalised=normalised,
    )  # fmt: skip
    refs.append(write_counts(store, slide, "counts", table))
    with store.begin(slide, "tiles", "spots", spec={}, inputs={"points": points.digest}) as writer:
        number = np.arange(n, dtype=np.uint64)
        xy = np.column_stack([number, number]).astype(float)
        writer.put_array("geometry", np.column_stack([xy, xy, np.ones(n)]), dims=("tile", "column"))
        writer.put_array("ids", np.column_stack([number, number, number]), dims=("tile", "column"))
        refs.append(writer.seal(rows=n, attrs={"points": "spots", "edge0": 100.0, "mpp": 0.5}))
    embedded = (np.log1p(factors) @ sight + 5 + 0.3 * rng.normal(size=(n, DIM))).astype(np.float16)
    embedded[rng.permutation(n)[:unreadable]] = np.nan
    layout = ArraySpec(
        shape=(n, DIM), dtype="float16", chunk_rows=32, shard_rows=64, pipeline=RAW, fill_value="NaN",
        dims=("tile", "feature"),
    )  # fmt: skip
    with store.begin(slide, "embeddings", f"spots/{BACKBONE}", spec={}, inputs={"tiles": refs[-1].digest}) as writer:
        writer.create("embedding", layout)
        for shard in writer.pending("embedding"):
            writer.write_rows("embedding", shard, embedded[slice(*layout.shard_range(shard))])
        writer.put_array("status", np.zeros(n, np.uint8), dims=("tile",))
        refs.append(writer.seal(rows=n, attrs={"tiles": "spots", "backbone_digest": "0" * 64, "dim": DIM}))
    store.commit(slide, refs)


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """Six slides of three patients, 1,665 spots, whole-transcriptome counts of genes that not all slides list."""
    store = hs.create(tmp_path_factory.mktemp("many") / "store")
    sizes = (400, 130, 64, 700, 1, 370)
    for i, n in enumerate(sizes):
        more: dict[str, Any] = {"uncounted": 5, "unreadable": 3} if i in (1, 3) else {}
        add_slide(store, f"S{i}", f"P{i // 2}", n, seed=i, drop=8 * (i % 3), **more)
    return store


@pytest.fixture(scope="session")
def with_panel(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """Two whole-transcriptome slides and one of a targeted panel that lacks 100 genes."""
    store = hs.create(tmp_path_factory.mktemp("panel") / "store")
    add_slide(store, "A", "P0", 90, seed=0)
    add_slide(store, "B", "P1", 80, seed=1, drop=100, panel=True)
    add_slide(store, "C", "P2", 70, seed=2, drop=10)
    return store


@pytest.fixture(scope="session")
def named_otherwise(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """Two slides that list Ensembl ids, and two of the same genes by symbol."""
    store = hs.create(tmp_path_factory.mktemp("named") / "store")
    for seed, slide in enumerate("ABCD"):
        add_slide(store, slide, f"P{seed % 2}", 40, seed=seed, by_symbol=slide in "CD")
    return store


@pytest.fixture
def one_more(tmp_path: Path) -> Callable[..., hs.Store]:
    """Make a store of one slide."""

    def make(**options: Any) -> hs.Store:
        store = hs.create(tmp_path / "one")
        add_slide(store, "N", "P", 50, seed=3, **options)
        return store

    return make
