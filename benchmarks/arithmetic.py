"""Cohort arithmetic over 10,000 slides of 200 spots: dask graphs, variable genes, ridge Gram, PCA, minibatch NMF.

    python -m benchmarks.arithmetic                       # makes the store (minutes) in the temporary folder
    python -m benchmarks.arithmetic --slides 500          # smaller
    python -m benchmarks.arithmetic --store FOLDER        # one that is there

Each part runs in a process of its own. Its memory is what it takes beyond the interpreter and the imports, the open
view included; anonymous, sampled every 20 ms. Exits 1 when a part takes 2 GiB, or a graph 3 s. Beside it the bare read:
the same arrays' files, opened and read whole, nothing parsed. Files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import histostore as hs
from benchmarks._cohort_store import BACKBONE, Shape, build
from benchmarks._rounds import Gates
from benchmarks.out_of_core import Peak

if TYPE_CHECKING:
    from collections.abc import Callable

    from histostore.store.store import Store
    from histostore.view import View

LIMIT_MIB, GRAPH_S, TOP, TARGETS = 2048, 3.0, 50, 20
FEATURES = ("embeddings", "embedding"), ("expression", "X"), ("tiles", "ids")
COUNTS = FEATURES[1:]


def graph(view: View) -> None:
    """Build the graph of the embeddings."""
    view.to_dask()


def counts_graph(view: View) -> None:
    """Build the graph of the counts: genes are joined for it."""
    view.counts_dask()


def variable_genes(view: View) -> None:
    """Rank all genes."""
    hs.pp.highly_variable_genes(view, n_top=TOP)


def by_slide(view: View) -> None:
    """Rank all genes within each slide."""
    hs.pp.highly_variable_genes(view, n_top=TOP, batch_key="slide")


def ridge(view: View) -> None:
    """Sum up what ridge needs, by five folds, and fit it."""
    found = hs.tl.gram(view, genes=_genes(view)[:TARGETS])
    hs.heads.Ridge().fit_gram(found.sums)


def pca(view: View) -> None:
    """Find ten principal components."""
    hs.tl.pca(view, n_comps=10)


def nmf(view: View) -> None:
    """Learn five programs in one pass."""
    hs.tl.nmf(view, 5, genes=_genes(view)[:TOP], passes=1)


PARTS: dict[str, Callable[[View], None]] = {
    "graph": graph, "counts_graph": counts_graph, "hvg": variable_genes, "hvg_by_slide": by_slide, "ridge": ridge,
    "pca": pca, "nmf": nmf,
}  # fmt: skip
READS = {"hvg": COUNTS, "hvg_by_slide": COUNTS, "ridge": FEATURES, "pca": FEATURES[:1], "nmf": COUNTS}


def _genes(view: View) -> list[str]:
    part = view.parts[0]
    assert part.expression is not None
    return list(part.group(part.expression).read("var/gene_ids"))


def run_part(part: str, folder: Path) -> dict[str, Any]:
    """Open the view, run one part, and say what that took; then read the same files barely."""
    import histostore.cohort.grams
    import histostore.cohort.nmf
    import histostore.cohort.pca
    import histostore.cohort.variable_genes
    import histostore.lazy  # noqa: F401 (what is imported is no part of what a part takes)

    store = hs.open(folder)
    with Peak() as peak:
        view = store.view(backbone=BACKBONE)
        begun = time.perf_counter()
        PARTS[part](view)
        seconds = time.perf_counter() - begun
    found = {"rows": len(view), "slides": len(view.slides), "opened": peak.seconds - seconds}
    found |= peak.figures() | {"seconds": seconds}
    if part in READS:
        begun = time.perf_counter()
        found["bytes"] = bare_read(store, view, READS[part])
        found["bare"] = time.perf_counter() - begun
    return found


def bare_read(store: Store, view: View, arrays: tuple[tuple[str, str], ...]) -> int:
    """Find, open and read the files of some arrays of every slide; return how many bytes those are."""
    total, root = 0, Path(store.uri)
    for part in view.parts:
        for kind, name in arrays:
            ref = next(r for r in part.manifest.entries.values() if r.kind == kind)
            for path in (root / ref.prefix / "zarr" / name).rglob("[0-9]*"):
                if path.is_file():
                    total += len(path.read_bytes())
    return total


def in_a_process(part: str, folder: Path) -> dict[str, Any]:
    """Run a part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.arithmetic", "--part", part, "--store", str(folder)]
    root = Path(__file__).resolve().parents[1]
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, cwd=root).stdout))


def main() -> int:
    """Print a line per claim; return 1 when one of them is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=10_000)
    parser.add_argument("--store", type=Path, help="take the one that is there")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part is not None:
        print(json.dumps(run_part(args.part, args.store)))
        return 0
    gates = Gates()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.store or Path(scratch) / "cohort"
        if not folder.exists():
            build(folder, args.slides, Shape(tiles=200, dim=32, genes=100))
        for part in args.parts:
            one = in_a_process(part, folder)
            if not READS.get(part):
                gates.value(
                    f"{part}, {one['slides']:,} slides", one["seconds"], "s", most=GRAPH_S if part == "graph" else None
                )
                continue
            note = f"(bare read {one['bare']:.1f} s, {one['bytes'] / 2**20:,.0f} MiB)"
            gates.value(f"{part}, {one['rows']:,} rows", one["seconds"], "s", note=note)
            gates.value(f"{part}, anonymous memory", one["anon"], "MiB", most=LIMIT_MIB)
    return gates.end()


if __name__ == "__main__":
    sys.exit(main())
