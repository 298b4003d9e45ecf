"""Stores of many small slides, made fast: real groups and commits, without fsync, by several processes."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

import histostore as hs
from histostore.content.tables import write_counts, write_points
from histostore.store.arrays import ArraySpec
from histostore.store.codecs import RAW
from histostore.tables import Counts, Points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from histostore.store.manifest import Ref
    from histostore.store.store import Store

COLUMNS = ("cx", "cy", "x0", "y0", "tissue"), ("tile_id_hi", "tile_id_lo", "point")
ORGANS = ("breast", "colon", "kidney", "lung", "skin")
BACKBONE = "toy"
DISTINCT_COUNTS = 16
"""So many count matrices are drawn; slides share them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What each slide holds."""

    tiles: int
    dim: int = 4
    genes: int = 0
    """Without genes the tiles are a grid; with genes they are at spots, which have counts."""

    @property
    def points(self) -> str:
        """Name of the points and of the tiles on them."""
        return "spots" if self.genes else "grid"


def slide_name(number: int) -> str:
    """Return the id of the n-th slide; they sort by number."""
    return f"S{number:05d}"


def fields_of(number: int) -> dict[str, str]:
    """Return the metadata of the n-th slide: two slides a patient, ten patients a centre in turn."""
    patient = number // 2
    return {
        "patient": f"P{patient:05d}",
        "organ": ORGANS[patient % len(ORGANS)],
        "centre": f"C{patient // 10 % 20:02d}",
    }


def build(path: Path, slides: int, shape: Shape, *, processes: int = 2) -> Store:
    """Make a store of `slides` slides at a place that is empty."""
    store = hs.create(path)
    step = max(1, -(-slides // (processes * 8)))
    spans = [(path, start, min(slides, start + step), shape) for start in range(0, slides, step)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for _ in pool.map(_add_slides, spans):
            pass
    return store


def _add_slides(span: tuple[Path, int, int, Shape]) -> None:
    path, start, stop, shape = span
    store = hs.open(path)
    with without_fsync():
        for number in range(start, stop):
            add_slide(store, number, shape)


@contextmanager
def without_fsync() -> Iterator[None]:
    """Make files fast; a benchmark's store need not survive a power cut."""
    kept = os.fsync
    os.fsync = lambda _fd: None
    try:
        yield
    finally:
        os.fsync = kept


def add_slide(store: Store, number: int, shape: Shape) -> None:
    """Commit meta, points, tiles, narrow embeddings and, where asked for, counts of one slide."""
    slide, name, n, rng = slide_name(number), shape.points, shape.tiles, np.random.default_rng(number)
    _, xy = _grid(n)
    refs = [write_meta(store, slide, fields_of(number))]
    refs.append(_write_once(store, slide, "points", shape, 0, lambda: _points(store, slide, shape)))
    geometry = np.column_stack([xy, xy - 112, rng.random(n)])
    idents = np.column_stack([rng.integers(0, 2**63, (n, 2)), np.arange(n)]).astype(np.uint64)
    made_of = {"points": refs[-1].digest, "n": number}
    with store.begin(slide, "tiles", name, spec={"px": 224}, inputs=made_of) as writer:
        writer.put_array("geometry", geometry, dims=("tile", "column"), attrs={"columns": list(COLUMNS[0])})
        writer.put_array("ids", idents, dims=("tile", "column"), attrs={"columns": list(COLUMNS[1])})
        attrs = {"points": name, "level": 0, "read_px": 224, "out_px": 224, "downsample": 1.0, "edge0": 224.0,
                 "resample": "none", "mpp": 0.5, "left_out": {}, "notes": [], "mask_downsample": 1.0}  # fmt: skip
        refs.append(writer.seal(rows=n, attrs=attrs))
    refs.append(_write_embeddings(store, number, refs[-1], shape, rng))
    if shape.genes:
        seed = number % DISTINCT_COUNTS
        refs.append(_write_once(store, slide, "expression", shape, seed, lambda: _counts(store, slide, shape, seed)))
    store.commit(slide, refs)


def write_meta(store: Store, slide: str, fields: dict[str, str]) -> Ref:
    """Seal the metadata of one slide."""
    with store.begin(slide, "meta", "meta", spec={"fields": fields}, inputs={}) as writer:
        return writer.seal(rows=1, attrs={"fields": fields, "mpp": 0.5, "mpp_origin": "given"})


def _write_embeddings(store: Store, number: int, tiles: Ref, shape: Shape, rng: np.random.Generator) -> Ref:
    n = shape.tiles
    values = rng.standard_normal((n, shape.dim), dtype=np.float32).astype(np.float16)
    spec = ArraySpec(
        shape=(n, shape.dim), dtype="float16", chunk_rows=256, shard_rows=2048, pipeline=RAW, fill_value="NaN"
    )
    full_name = f"{shape.points}/{BACKBONE}"
    made_of = {"tiles": tiles.digest, "n": number}
    with store.begin(slide_name(number), "embeddings", full_name, spec={}, inputs=made_of) as writer:
        writer.create("embedding", spec)
        for shard in range(spec.n_shards):
            writer.write_rows("embedding", shard, values[slice(*spec.shard_range(shard))])
        writer.put_array("status", np.zeros(n, np.uint8), dims=("tile",))
        attrs = {"tiles": shape.points, "backbone": {"name": BACKBONE}, "backbone_digest": "0" * 64,
                 "dim": shape.dim, "status": {}}  # fmt: skip
        return writer.seal(rows=n, attrs=attrs)


def _grid(n: int) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return ids and ``(n, 2)`` centres of a square of tiles."""
    cell = np.stack(np.divmod(np.arange(n), int(np.ceil(np.sqrt(n)))), axis=1)
    return tuple(f"{x}x{y}" for x, y in cell.tolist()), cell * 224.0 + 112


def _points(store: Store, slide: str, shape: Shape) -> Ref:
    ids, xy = _grid(shape.tiles)
    return write_points(store, slide, shape.points, Points(ids=ids, xy=xy, assay="grid"))


def _counts(store: Store, slide: str, shape: Shape, seed: int) -> Ref:
    """Seal gamma-Poisson counts, about a third of them not zero."""
    rng = np.random.default_rng([seed, 1])
    mean = np.random.default_rng(0).lognormal(-1, 1.5, shape.genes)
    matrix = sp.csr_array(rng.poisson(mean * rng.gamma(2, 0.5, (shape.tiles, shape.genes))).astype(np.int32))
    names = tuple(f"GENE{g:04d}" for g in range(shape.genes))
    ids, _ = _grid(shape.tiles)
    return write_counts(store, slide, "counts", Counts(ids=ids, matrix=matrix, gene_ids=names, symbols=names))


type _Key = tuple[str, str, Shape, int]
_WRITTEN: dict[_Key, tuple[Ref, list[tuple[str, bytes]]]] = {}


def _write_once(store: Store, slide: str, kind: str, shape: Shape, seed: int, write: Callable[[], Ref]) -> Ref:
    """Seal a group that other slides have too: made once, its bytes are then written again as they are.

    A group's digest and bytes do not name its slide, so what lies there is what `write` would have sealed.
    """
    key = (store.uri, kind, shape, seed)
    if key not in _WRITTEN:
        ref = write()
        root = Path(store.uri) / ref.prefix
        files = [p for p in root.rglob("*") if p.is_file()]
        _WRITTEN[key] = ref, [(p.relative_to(root).as_posix(), p.read_bytes()) for p in files]
        return ref
    ref = replace(_WRITTEN[key][0], owner=slide)
    for folder in sorted({f"{store.uri}/{ref.prefix}/{name}".rpartition("/")[0] for name, _ in _WRITTEN[key][1]}):
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103 - pathlib's takes twice as long
    for name, data in _WRITTEN[key][1]:
        with open(f"{store.uri}/{ref.prefix}/{name}", "xb", buffering=0) as file:  # noqa: PTH123
            file.write(data)
    return ref
