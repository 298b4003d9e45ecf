"""Search: ours beside the bare matrix product (the limit) and FAISS (the peer), in interleaved rounds.

::

    python -m benchmarks.search                        exact and filters, 100,000 x 512; a small IVF index
    python -m benchmarks.search --index-rows 1000000   the IVF gates at their size: minutes, 5 GB of memory, 2 of disk

Vectors are synthetic: clusters in a space of 64 dimensions, turned into 512 and blurred, sorted by cluster as slides
are. Prints ratios, median (min-max) of the rounds, and what an index takes. Exits 1 when a gate is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from histostore.index.exact import ExactIndex
from histostore.index.life import append, create, delete
from histostore.index.reader import IndexReader
from histostore.index.spec import IndexSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

K, CLUSTERS, LATENT, BLOCK = 10, 400, 64, 16_384
GATE_ROWS = 1_000_000
"""The gates of the IVF index are stated at this size; below it they are printed and not held."""


class Gates:
    """Measures beside what they must be."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def tell(self, name: str, values: list[float], *, least: float | None = None, most: float | None = None) -> None:
        """Print a measure, and whether its median keeps the bounds."""
        middle = float(np.median(values))
        good = (least is None or middle >= least) and (most is None or middle <= most)
        bound = f">= {least:g}" if least is not None else f"<= {most:g}" if most is not None else ""
        verdict = "" if not bound else f"  {bound}: {'reached' if good else 'missed'}"
        print(f"{name:<52} {middle:8.3g} ({min(values):.3g}-{max(values):.3g}){verdict}", flush=True)
        if not good:
            self.missed.append(name)


class Clusters:
    """Where the synthetic vectors come from."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.centres = self.rng.standard_normal((CLUSTERS, LATENT), dtype=np.float32)
        self.turn = self.rng.standard_normal((LATENT, dim), dtype=np.float32)

    def draw(self, n: int) -> NDArray[np.float32]:
        """Return n unit vectors, sorted by cluster."""
        which = np.sort(self.rng.integers(0, CLUSTERS, n))
        latent = self.centres[which] + 0.5 * self.rng.standard_normal((n, LATENT), dtype=np.float32)
        x = latent @ self.turn + 0.5 * self.rng.standard_normal((n, self.turn.shape[1]), dtype=np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x


def seconds(run: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def agreement(peer: tuple[NDArray[Any], ...], ours: tuple[NDArray[Any], ...]) -> float:
    """Return the share of places with the same id, or with another one at the same product within float32."""
    tie = np.abs(peer[0] + ours[1]) < 1e-6
    return float(((peer[1] == ours[0]) | tie).mean())


def exact(gates: Gates, source: Clusters, n: int, n_queries: int, rounds: int) -> None:
    """Hold exact search and its filters against the product and FAISS."""
    x, q = source.draw(n), source.draw(n_queries)
    peer = faiss.IndexFlatIP(x.shape[1])
    peer.add(x)
    ours, half = ExactIndex(x, metric="ip"), ExactIndex(x.astype(np.float16), metric="ip")
    room = np.empty((n_queries, BLOCK), dtype=np.float32)

    def product() -> None:
        for start in range(0, n - BLOCK + 1, BLOCK):
            np.matmul(q, x[start : start + BLOCK].T, out=room)
        if n % BLOCK:
            q @ x[n - n % BLOCK :].T

    same = agreement(peer.search(q, K), ours.search(q, K))
    half.search(q, K)  # both have measured their rows' lengths now
    few, many = source.rng.random(n) < 0.01, source.rng.random(n) < 0.5
    bitmap = faiss.IDSelectorBitmap(np.packbits(few, bitorder="little"))
    params = faiss.SearchParameters(sel=bitmap)
    assert agreement(peer.search(q, K, params=params), ours.search(q, K, rows=few)) == 1
    names = ["product", "ours", "half", "faiss", "few", "faiss few", "many", "one", "faiss one"]
    runs = [
        product,
        lambda: ours.search(q, K),
        lambda: half.search(q, K),
        lambda: peer.search(q, K),
        lambda: ours.search(q, K, rows=few),
        lambda: peer.search(q, K, params=params),
        lambda: ours.search(q, K, rows=many),
        lambda: ours.search(q[:1], K),
        lambda: peer.search(q[:1], K),
    ]
    took = [dict(zip(names, map(seconds, runs), strict=True)) for _ in range(rounds)]

    def ratio(of: str, to: str) -> list[float]:
        return [t[of] / t[to] for t in took]

    print(f"exact, {n} x {x.shape[1]} float32, {n_queries} queries, k = {K}")
    gates.tell("ids equal to FAISS's, ties aside (share)", [same], least=1)
    gates.tell("times FAISS Flat's speed", ratio("faiss", "ours"), least=3)
    gates.tell("times the bare product's time", ratio("ours", "product"), most=1.4)
    gates.tell("FAISS Flat: times the bare product's time", ratio("faiss", "product"))
    gates.tell("float16 rows: times the bare product's time", ratio("half", "product"))
    gates.tell("one query: times FAISS Flat's speed", ratio("faiss one", "one"))
    gates.tell("1 % kept: times FAISS's bitmap selector", ratio("faiss few", "few"), least=2)
    gates.tell("50 % kept: times the unfiltered speed", ratio("ours", "many"), least=0.5)


def approximate(gates: Gates, source: Clusters, n: int, rounds: int, folder: Path) -> None:
    """Hold an IVF-SQ8 index on disk against FAISS Flat, and time its life."""
    held = n >= GATE_ROWS
    dim = source.turn.shape[1]
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float16, (n + 10_000, dim))
    for start in [*range(0, n, 100_000), n]:  # the rows to append are a draw of their own: all clusters are in both
        stop = min(n, start + 100_000) if start < n else len(x)
        x[start:stop] = source.draw(stop - start)
    x.flush()
    x = np.load(folder / "x.npy", mmap_mode="r")
    q, some = source.draw(512), source.draw(64)
    snapshot = create(folder / "index", x[:n], IndexSpec(kind="ivf-sq8"), device="cpu")
    report = snapshot.segments[0].report
    peak = "unknown" if report.peak_bytes is None else f"{report.peak_bytes / 1e9:.2f} GB"
    print(
        f"ivf-sq8, {n} x {dim}: built in {report.seconds:.0f} s, peak {peak}, nprobe {report.effort} of {report.cells}"
    )
    opening = [seconds(lambda: IndexReader(folder / "index", snapshot, embeddings=x)) for _ in range(rounds)]
    reader = IndexReader(folder / "index", snapshot, embeddings=x)
    peer = faiss.IndexFlatIP(dim)
    for start in range(0, n, 100_000):
        peer.add(x[start : min(n, start + 100_000)].astype(np.float32))
    many = source.rng.random(n) < 0.5
    few = source.rng.random(n) < 0.01
    bitmap = faiss.SearchParametersIVF(
        nprobe=report.effort * 100, sel=faiss.IDSelectorBitmap(np.packbits(few, bitorder="little"))
    )
    inner = faiss.read_index(str(folder / "index" / snapshot.segments[0].body.name))
    speed: list[float] = []
    kept: list[float] = []
    against: list[float] = []
    for _ in range(rounds):
        flat = seconds(lambda: peer.search(some, K)) / len(some)
        mine = seconds(lambda: reader.search(q, K)) / len(q)
        speed.append(flat / mine)
        kept.append(mine * len(q) / seconds(lambda: reader.search(q, K, only=many)))
        theirs = seconds(lambda: inner.search(q, K, params=bitmap))
        against.append(theirs / seconds(lambda: reader.search(q, K, only=few)))
    found, true = reader.search(some, K)[0], peer.search(some, K)[1]
    begun = time.perf_counter()
    grown = append(folder / "index", snapshot, x[n:], ids=np.arange(n, n + 10_000), device="cpu")
    new = [time.perf_counter() - begun]
    after = IndexReader(folder / "index", grown, embeddings=x)
    assert (after.search(x[n : n + 50].astype(np.float32), 1)[0][:, 0] >= n).all()
    gone = delete(folder / "index", grown, np.arange(n, n + 50)).snapshot
    left = IndexReader(folder / "index", gone, embeddings=x).search(x[n : n + 50].astype(np.float32), K)[0]
    assert not np.isin(left, np.arange(n, n + 50)).any()
    gates.tell("recall@10, measured at build", [report.recall], least=0.95)
    hits = (found[:, :, None] == true[:, None, :]).any(axis=2).mean()
    gates.tell("recall@10 of 64 new queries", [float(hits)], least=0.95 - 0.03)
    gates.tell("times FAISS Flat's speed", speed, least=30 if held else None)
    gates.tell("times FAISS Flat's memory", [snapshot.size / (4 * dim * n)], most=0.3 if held else None)
    gates.tell("opening, checked, seconds", opening, most=0.5)
    gates.tell("appending 10,000 rows, seconds", new, most=5)
    gates.tell("50 % kept: times the unfiltered speed", kept, least=0.5 if held else None)
    gates.tell("1 % kept, exact: times FAISS's IVF and bitmap", against)


def main() -> int:
    """Measure, print, and tell whether every gate was reached."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the exact part; 0 leaves it out")
    parser.add_argument("--index-rows", type=int, default=50_000, help="rows of the IVF part; 0 leaves it out")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    gates, source = Gates(), Clusters(args.dim)
    if args.rows:
        exact(gates, source, args.rows, args.queries, args.rounds)
    if args.index_rows:
        with tempfile.TemporaryDirectory() as folder:
            approximate(gates, source, args.index_rows, args.rounds, Path(folder))
    print("missed: " + ", ".join(gates.missed) if gates.missed else "all gates reached")
    return 1 if gates.missed else 0


if __name__ == "__main__":
    sys.exit(main())
