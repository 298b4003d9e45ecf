"""Make ``stores/golden/v1``: a tiny store of format 1.0 with every kind of group.

    python stores/golden/make_v1.py FOLDER

Every later version must read the store that was committed; the folder is never made again once a version of the format
is released. Values follow from the formulas below; ids of attempts and manifests, and dates, differ from run to run.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import safetensors.numpy

from histostore.protocols import TileStatus
from histostore.store.arrays import ArraySpec
from histostore.store.codecs import RAW, ZSTD, ZSTD_U8, jpeg
from histostore.store.store import Store, create_store

N, PX, DIM, GENES = 7, 16, 5, 4
IDS = ["AAAC-1", "AAAG-1", "25x13", "spot with space", "Zürich µ", 'quote"d', "../not/a/path"]
GEOMETRY_COLUMNS = ["cx", "cy", "x0", "y0", "tissue"]
IDS_COLUMNS = ["tile_id_hi", "tile_id_lo", "point"]
READABLE = np.arange(N) != 4


def main(folder: str) -> None:
    store = create_store(folder, name="golden")
    source = put(
        store,
        "source",
        "image",
        spec={},
        arrays={"thumbnail": (thumbnail(), ("y", "x", "c"))},
        rows=0,
        attrs={
            "uri": "golden/G1.png",
            "filename": "G1.png",
            "sha256": "0" * 64,
            "bytes": 1234,
            "reader": "flat 1",
            "width": 700,
            "height": 400,
            "file_mpp": None,
            "downsamples": [1.0],
            "properties": {},
        },
    )
    meta = put(
        store,
        "meta",
        "meta",
        spec={"fields": {"patient": "A"}, "mpp": 0.5},
        rows=0,
        attrs={"fields": {"patient": "A"}, "mpp": 0.5, "mpp_origin": "given"},
    )
    points = put(
        store,
        "points",
        "spots",
        spec={},
        rows=N,
        attrs={"assay": "visium", "pitch_um": 100.0, "spot_um": 55.0},
        arrays={
            "ids": (IDS, ("point",)),
            "xy": (np.column_stack([100.5 * np.arange(N), 50.25 + np.arange(N)]), ("point", "axis")),
            "in_tissue": (READABLE, ("point",)),
            "array_row": (np.arange(N, dtype=np.int32), ("point",)),
            "array_col": (2 * np.arange(N, dtype=np.int32), ("point",)),
        },
    )
    store.commit("G1", [source, meta, points, expression(store), labels(store, points), regions(store)])
    tiles = put(
        store,
        "tiles",
        "spots",
        spec={"at": "spots", "px": PX},
        inputs={"points": points.digest},
        rows=N,
        arrays={
            "geometry": (
                np.column_stack([np.arange(N) + k / 4 for k in range(5)]),
                ("tile", "column"),
                GEOMETRY_COLUMNS,
            ),
            "ids": (
                np.column_stack([np.full(N, 2**63 + 1), np.arange(N), np.arange(N)]).astype(np.uint64),
                ("tile", "column"),
                IDS_COLUMNS,
            ),
            "mask": (np.indices((4, 6)).sum(axis=0) % 2 == 0, ("y", "x")),
        },
        attrs={
            "level": 0,
            "read_px": PX,
            "out_px": PX,
            "downsample": 1.0,
            "edge0": float(PX),
            "resample": False,
            "mpp": 0.5,
            "points": "spots",
            "left_out": {},
            "notes": [],
            "mask_downsample": [100.0, 100.0],
        },
    )
    stored = [pixels(store, tiles, "spots", jpeg(95)), pixels(store, tiles, "lossless", ZSTD_U8)]
    vectors = [embedding(store, tiles, "float16"), embedding(store, tiles, "float32")]
    store.commit("G1", [tiles, *stored, *vectors, predictions(store)])
    edited = put(
        store,
        "meta",
        "meta",
        spec={"fields": {"patient": "B"}, "mpp": 0.5},
        rows=0,
        attrs={"fields": {"patient": "B"}, "mpp": 0.5, "mpp_origin": "given"},
    )
    store.commit("G1", [edited], replace=True, expect={"meta/meta": meta.digest})
    store.commit("@heads", [head(store, vectors[0])])


def put(store, kind, name, *, spec, rows, attrs, arrays=None, inputs=None):
    with store.begin("G1", kind, name, spec=spec, inputs=inputs or {}) as writer:
        for array, (values, dims, *columns) in (arrays or {}).items():
            writer.put_array(array, values, dims=dims, attrs={"columns": columns[0]} if columns else None)
        return writer.seal(rows=rows, attrs=attrs)


def thumbnail() -> np.ndarray:
    y, x, c = np.indices((4, 7, 3))
    return (10 * y + 20 * x + 30 * c).astype(np.uint8)


def expression(store: Store):
    array = {"encoding-type": "array", "encoding-version": "0.2.0"}
    strings = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
    frame = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index", "column-order": []}
    data = np.arange(1, N + 1, dtype=np.int32)  # row i holds i + 1 in column i % GENES
    with store.begin("G1", "expression", "counts", spec={}, inputs={}) as writer:
        writer.put_node("", {"encoding-type": "anndata", "encoding-version": "0.1.0"})
        writer.put_node("X", {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [N, GENES]})
        parts = {"data": data, "indices": ((data - 1) % GENES).astype(np.int32), "indptr": np.arange(N + 1)}
        for name, values in parts.items():
            spec = ArraySpec(
                shape=values.shape,
                dtype=values.dtype.name,
                chunk_rows=3,
                shard_rows=9,
                pipeline=ZSTD,
                attrs=tuple(array.items()),
            )
            writer.create(f"X/{name}", spec)
            writer.write_rows(f"X/{name}", 0, values)
        writer.put_node("obs", frame)
        writer.put_array("obs/_index", IDS, attrs=strings)
        writer.put_node("var", {**frame, "column-order": ["gene_ids", "symbols"]})
        genes = [f"ENSG{g}" for g in range(GENES)]
        writer.put_array("var/_index", genes, attrs=strings)
        writer.put_array("var/gene_ids", genes, attrs=strings)
        writer.put_array("var/symbols", ["ERBB2", "KRT8", "KRT8", "CD74"], attrs=strings)
        return writer.seal(
            rows=N, attrs={"n_obs": N, "n_genes": GENES, "whole_transcriptome": True, "normalised": False}
        )


def labels(store: Store, points):
    numeric = np.column_stack([np.where(READABLE, np.arange(N) / 2, np.nan)])
    return put(
        store,
        "labels",
        "clusters",
        spec={"columns": ["score", "cluster"]},
        inputs={"points": points.digest},
        rows=N,
        arrays={
            "numeric": (numeric, ("point", "column")),
            "codes": (np.where(READABLE, np.arange(N) % 2, -1)[:, None].astype(np.int32), ("point", "column")),
        },
        attrs={
            "points": "spots",
            "numeric_columns": ["score"],
            "code_columns": ["cluster"],
            "categories": {"cluster": ["a", "b"]},
        },
    )


def regions(store: Store):
    ring = [[0, 0], [100, 0], [100, 50], [0, 0]]
    feature = {
        "type": "Feature",
        "properties": {"name": "tumour"},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    document = json.dumps({"type": "FeatureCollection", "features": [feature]}).encode()
    with store.begin("G1", "regions", "regions", spec={}, inputs={}) as writer:
        writer.put_file("regions.geojson", document)
        return writer.seal(rows=1, attrs={"classes": {"tumour": 1}})


def tile_pixels() -> np.ndarray:
    i, y, x, c = np.indices((N, PX, PX, 3))
    values = (8 * i + 4 * y + 4 * x + 20 * c).astype(np.uint8)
    values[~READABLE] = 0
    return values


def status() -> np.ndarray:
    values = np.full(N, TileStatus.OK, np.uint8)
    values[1], values[~READABLE] = TileStatus.PADDED, TileStatus.UNREADABLE
    return values


def pixels(store: Store, tiles, name, pipeline):
    spec = ArraySpec(
        shape=(N, PX, PX, 3), dtype="uint8", chunk_rows=1, shard_rows=4, pipeline=pipeline, dims=("tile", "y", "x", "c")
    )
    with store.begin(
        "G1", "pixels", name, spec={"codec": name}, inputs={"tiles": tiles.digest}, engine={"reader": "flat 1"}
    ) as writer:
        writer.create("pixels", spec)
        for shard in writer.pending("pixels"):
            start, stop = spec.shard_range(shard)
            writer.write_rows(
                "pixels", shard, tile_pixels()[start:stop], note={"status": status()[start:stop].tolist()}
            )
        writer.put_array("status", status(), dims=("tile",))
        return writer.seal(
            rows=N,
            attrs={
                "tiles": "spots",
                "codec": name,
                "quality": None,
                "px": PX,
                "status": {"ok": 5, "padded": 1, "unreadable": 1},
            },
        )


def embedding(store: Store, tiles, dtype):
    values = (np.arange(N)[:, None] + np.arange(DIM) / 8).astype(dtype)
    values[~READABLE] = np.nan
    spec = ArraySpec(
        shape=(N, DIM),
        dtype=dtype,
        chunk_rows=2,
        shard_rows=4,
        pipeline=RAW,
        fill_value="NaN",
        dims=("tile", "feature"),
    )
    with store.begin(
        "G1",
        "embeddings",
        f"spots/toy-{dtype}",
        spec={"backbone": "toy", "dtype": dtype},
        inputs={"tiles": tiles.digest},
        engine={"device": "cpu", "batch": 4},
    ) as writer:
        writer.create("embedding", spec)
        for shard in writer.pending("embedding"):
            start, stop = spec.shard_range(shard)
            writer.write_rows("embedding", shard, values[start:stop])
        writer.put_array("status", status(), dims=("tile",))
        return writer.seal(
            rows=N,
            attrs={
                "tiles": "spots",
                "backbone": {"name": "toy", "dim": DIM},
                "backbone_digest": "0" * 32,
                "dim": DIM,
                "status": {"ok": 5, "padded": 1, "unreadable": 1},
            },
        )


def predictions(store: Store):
    values = (np.arange(N)[:, None] * 10 + np.arange(2)).astype(np.float32)
    return put(
        store,
        "predictions",
        "spots/toy",
        spec={},
        rows=N,
        attrs={"genes": ["ERBB2", "CD74"], "head": "toy", "tiles": "spots"},
        arrays={"prediction": (values, ("tile", "gene"))},
    )


def head(store: Store, vectors):
    with store.begin("@heads", "heads", "toy", spec={"head": "ridge"}, inputs={"embeddings": vectors.digest}) as writer:
        writer.put_file(
            "state.safetensors", safetensors.numpy.save({"coef": np.arange(6, dtype=np.float32).reshape(3, 2)})
        )
        writer.put_file("head.json", json.dumps({"head": "ridge", "genes": ["ERBB2", "CD74"]}).encode())
        return writer.seal(rows=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
