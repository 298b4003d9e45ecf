"""Look-alikes on the real sections: of ten hits from other sections, how many are of the query's kind.

    HISTOSTORE_REAL_DATA=… python -m benchmarks.retrieval [folder]

Precision at 10 for spots of the cancer clusters (2, 3, 4) against the rest, hits on the query's own section left out,
beside the share of cancer among the spots that could be hit. Two backbones. All sections are of one patient.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import histostore as hs
from benchmarks.real_sections import build
from histostore.index.exact import ExactIndex

BACKBONES = ("efficientnet_lite0", "mobilenet_v2")
CANCER = ("2", "3", "4")
K = 10


def precision(store: hs.Store, backbone: str) -> pd.DataFrame:
    """Return one line per section: precision at 10 of cancer spots, and the class rate among what could be hit."""
    rows = store.view(backbone=backbone, tiles="spots")
    X, slide = rows.numpy().astype(np.float32), rows.column("slide").astype(str)
    cluster = rows.column("label")
    known = np.array([c is not None and str(c) not in ("", "nan") for c in cluster])
    cancer = np.isin(cluster.astype(str), CANCER)
    index, lines = ExactIndex(X), []
    for name in sorted(set(slide)):
        others = np.flatnonzero((slide != name) & known)
        mine = np.flatnonzero((slide == name) & known & cancer)
        hits = index.search(X[mine], K, rows=others)[0]
        lines.append({"backbone": backbone, "section": name, "queries": len(mine),
                      "precision@10": cancer[hits].mean(), "class rate": cancer[others].mean()})  # fmt: skip
    return pd.DataFrame(lines)


def main() -> int:
    """Print the table; exit 1 where look-alikes are no better than chance."""
    data = os.environ.get("HISTOSTORE_REAL_DATA")
    if not data:
        sys.stdout.write("HISTOSTORE_REAL_DATA is unset: no real sections here\n")
        return 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(made)
        store = build(folder, Path(data))
        hs.tl.embed(store, BACKBONES[1], tiles="spots")
        table = pd.concat([precision(store, b) for b in BACKBONES])
        means = table.groupby("backbone", sort=False)[["precision@10", "class rate"]].mean()
        found = hs.tl.drift(store, *BACKBONES, tiles="spots")
    text = table.to_string(index=False, float_format=lambda v: f"{v:.3f}")
    sys.stdout.write(f"{text}\n\nmean over sections\n{means.to_string(float_format=lambda v: f'{v:.3f}')}\n")
    sys.stdout.write(f"the two backbones share {found.overlap:.1%} of the 10 nearest; linear CKA {found.cka:.3f}\n")
    return int((means["precision@10"] <= means["class rate"]).any())


if __name__ == "__main__":
    raise SystemExit(main())
