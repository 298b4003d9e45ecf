"""Ridge and MLP through `hs.tl.fit` on embeddings that are never all in memory: 2,000,000 x 1,024 float16, 3.8 GiB.

    python -m benchmarks.out_of_core                        # writes (and removes) 4 GiB in the temporary folder
    python -m benchmarks.out_of_core --rows 20000 --dim 64  # smaller; rows are of each slide

A store of eight slides of eight patients is written through the store's own API. Each head is fitted and scored in a
process of its own; its memory is what it takes beyond the interpreter and the imports. Two figures, sampled every 20 ms
by a thread: anonymous memory, and everything resident, pages of mapped files included. Exits 1 when either exceeds
2 GiB. Seconds stand beside those of the bare float64 Gram products of the same rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import histostore as hs

LIMIT_MIB = 2048
SLIDES, ROWS, DIM, GENES, LATENTS = 8, 250_000, 1024, 8, 6
BACKBONE = "synthetic"


def write_store(
    folder: Path, *, slides: int = SLIDES, rows: int = ROWS, dim: int = DIM, genes: int = GENES, shard_rows: int = 8192
) -> hs.Store:
    """Write slides with float16 embeddings and counts that both follow a few hidden factors."""
    import histostore as hs

    store = hs.create(folder)
    loading = np.random.default_rng(0).normal(size=(LATENTS, dim + genes)).astype(np.float32)
    for k in range(slides):
        _write_slide(store, f"S{k:02d}", f"P{k:02d}", rows, loading, dim, shard_rows, np.random.default_rng((1, k)))
    return store


def _write_slide(
    store: hs.Store, slide: str, patient: str, n: int, loading: np.ndarray, dim: int, shard_rows: int, rng: Any
) -> None:
    import scipy.sparse as sp

    from histostore.content.tables import write_counts, write_points
    from histostore.stages.metadata import write_meta
    from histostore.store.arrays import ArraySpec
    from histostore.store.codecs import RAW
    from histostore.tables import Counts, Points

    side = int(np.ceil(np.sqrt(n)))
    xy = np.column_stack(np.divmod(np.arange(n), side)).astype(np.float64) * 100
    ids = tuple(f"{x}x{y}" for x, y in (xy // 100).astype(int).tolist())
    latent = rng.standard_normal((n, LATENTS), dtype=np.float32)
    genes = loading.shape[1] - dim
    counts = rng.poisson(2 * np.exp(0.3 * latent @ loading[:, dim:])).astype(np.int32)
    names = tuple(f"G{i}" for i in range(genes))
    meta = write_meta(store, slide, {"patient": patient}, mpp=0.5, origin="given")
    points = write_points(store, slide, "spots", Points(ids=ids, xy=xy))
    table = Counts(ids=ids, matrix=sp.csr_array(counts), gene_ids=names, symbols=names)
    refs = [meta, points, write_counts(store, slide, "counts", table)]
    with store.begin(slide, "tiles", "spots", spec={}, inputs={"points": points.digest}) as writer:
        number = np.arange(n, dtype=np.uint64)
        writer.put_array("geometry", np.column_stack([xy, xy, np.ones(n)]), dims=("tile", "column"))
        writer.put_array("ids", np.column_stack([number, number, number]), dims=("tile", "column"))
        refs.append(writer.seal(rows=n, attrs={"points": "spots", "edge0": 100.0, "mpp": 0.5}))
    with store.begin(slide, "embeddings", f"spots/{BACKBONE}", spec={}, inputs={"tiles": refs[-1].digest}) as writer:
        layout = ArraySpec(
            shape=(n, dim), dtype="float16", chunk_rows=min(1024, shard_rows), shard_rows=shard_rows, pipeline=RAW,
            fill_value="NaN", dims=("tile", "feature"),
        )  # fmt: skip
        writer.create("embedding", layout)
        for shard in writer.pending("embedding"):
            start, stop = layout.shard_range(shard)
            values = latent[start:stop] @ loading[:, :dim] + rng.standard_normal((stop - start, dim), dtype=np.float32)
            writer.write_rows("embedding", shard, values.astype(np.float16))
        writer.put_array("status", np.zeros(n, np.uint8), dims=("tile",))
        attrs = {"tiles": "spots", "backbone_digest": "0" * 64, "dim": dim}
        refs.append(writer.seal(rows=n, attrs=attrs))
    store.commit(slide, refs)


def memory_mib() -> dict[str, float]:
    """Return this process's resident memory, anonymous and in all, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[field].split()[0]) / 1024 for name, field in (("anon", "RssAnon"), ("all", "VmRSS"))}


class Peak:
    """Most memory while it is open, beyond what there was before."""

    def __enter__(self) -> Peak:
        self.before = memory_mib()
        self.most = dict(self.before)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._begun = time.perf_counter()
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.02):
            now = memory_mib()
            self.most = {name: max(value, now[name]) for name, value in self.most.items()}

    def __exit__(self, *exc: object) -> None:
        self.seconds = time.perf_counter() - self._begun
        self._over.set()
        self._thread.join()

    def figures(self) -> dict[str, float]:
        """Return MiB beyond what there was, and seconds."""
        return {
            "before": self.before["all"],
            "anon": self.most["anon"] - self.before["anon"],
            "all": self.most["all"] - self.before["all"],
            "seconds": self.seconds,
        }


def fit_ridge(store: hs.Store, in_memory: int | None) -> dict[str, Any]:
    """Score ridge on each slide left out, 15 penalties by inner folds, and keep it."""
    return _fit(store, "ridge", {}, "leave-one-out:patient", in_memory, save_as="kept")


def fit_mlp(store: hs.Store, in_memory: int | None) -> dict[str, Any]:
    """Score an MLP of one epoch on two halves of the slides."""
    options = {"hidden": (256, 64), "max_epochs": 1, "batch": 256}
    return _fit(store, "mlp", options, "group-kfold:2:patient", in_memory)


def fit_standardised(store: hs.Store, in_memory: int | None) -> dict[str, Any]:
    """Score ridge of one penalty on features standardised slide by slide."""
    return _fit(store, "ridge", {"alphas": 100.0}, "group-kfold:2:patient", in_memory, standardise="slide")


PARTS: dict[str, Callable[[Any, int | None], dict[str, Any]]] = {
    "ridge": fit_ridge, "mlp": fit_mlp, "standardised": fit_standardised,
}  # fmt: skip


def _fit(
    store: hs.Store, head: str, options: dict[str, Any], split: str, in_memory: int | None,
    *, save_as: str | None = None, **features: Any,
) -> dict[str, Any]:  # fmt: skip
    from histostore.head_specs import FeatureSpec, HeadSpec, PanelSpec, SplitSpec
    from histostore.heads.registry import make
    from histostore.heads.rows import RowSource
    from histostore.stages.fit import fit

    make(head)  # what it imports is no part of what it takes
    spec = HeadSpec(
        head=head, options=tuple(sorted(options.items())), panel=PanelSpec.parse(f"top-mean:{GENES}"),
        split=SplitSpec.parse(split), features=(FeatureSpec(**features),),
    )  # fmt: skip
    with Peak() as peak, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one epoch is no convergence
        result = fit(store, spec, backbone=BACKBONE, in_memory=in_memory, save_as=save_as)
    streamed = isinstance(result.data.X, RowSource)
    found = {"rows": len(result.data.X), "streamed": streamed, "pearson": result.evaluation.score("image")}
    return found | peak.figures()


def gram_seconds(rows: int, dim: int) -> float:
    """Return the time of the float64 Gram products of that many rows, from the median of one block in memory."""
    block = np.random.default_rng(0).normal(size=(4096, dim))
    out, spent = np.zeros((dim, dim)), []
    for _ in range(15):
        begun = time.perf_counter()
        out += block.T @ block
        spent.append(time.perf_counter() - begun)
    return float(np.median(spent)) * rows / 4096


def in_a_process(part: str, folder: Path, in_memory: int | None) -> dict[str, Any]:
    """Fit in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.out_of_core", "--part", part, "--folder", str(folder)]
    if in_memory is not None:
        command += ["--in-memory", str(in_memory)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=root, env=os.environ)
    return dict(json.loads(done.stdout))


def main() -> int:
    """Print a line per head; return 1 when one takes more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="of each slide")
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--heads", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--in-memory", type=int, default=None, metavar="BYTES")
    parser.add_argument("--limit", type=float, default=LIMIT_MIB, metavar="MIB")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help="a store that is there already, kept")
    args = parser.parse_args()
    if args.part is not None:
        import histostore as hs

        print(json.dumps(PARTS[args.part](hs.open(args.folder), args.in_memory)))
        return 0
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.folder) if args.folder else Path(scratch) / "store"
        if not folder.exists():
            begun = time.perf_counter()
            write_store(folder, rows=args.rows, dim=args.dim)
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**30
            spent = time.perf_counter() - begun
            print(f"store of {SLIDES} slides written in {spent:.0f} s, {size:.1f} GiB", flush=True)
        for part in args.heads:
            one = in_a_process(part, folder, args.in_memory)
            gram = gram_seconds(one["rows"], args.dim)
            worst = max(worst, one["anon"], one["all"])
            print(
                f"{part:<13} {one['rows']:,} rows{'' if one['streamed'] else ' in memory'}: "
                f"peak {one['anon']:,.0f} MiB anonymous, "
                f"{one['all']:,.0f} with mapped pages (beyond {one['before']:,.0f} of imports), "
                f"{one['seconds']:.0f} s, "
                f"{one['seconds'] / gram:.1f}x the Gram products ({gram:.0f} s); r {one['pearson']:.3f}",
                flush=True,
            )
    print(f"limit {args.limit:,.0f} MiB: {'reached' if worst <= args.limit else 'missed'}")
    return int(worst > args.limit)


if __name__ == "__main__":
    sys.exit(main())
