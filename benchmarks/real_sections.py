"""The four real sections, end to end: what ridge, position and both reach, beside each other.

    HISTOSTORE_REAL_DATA=… python -m benchmarks.real_sections [folder]

Makes (or goes on with) a store in the folder, embeds the spots with EfficientNet-Lite0, and prints the README's table.
Exits 1 when a figure falls below what it must reach.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

import histostore as hs
from histostore.cli.progress import Line
from histostore.cli.use import TUNED
from histostore.stages.pictures import score_table

SLIDES = ("C2", "C3", "C4", "C5")
GATES = {"ridge": 0.35, "tuned": 0.41, "position": 0.40, "image + position": 0.46}


def build(folder: Path, data: Path, *, backbone: str = "efficientnet_lite0") -> hs.Store:
    """Return the store of the four sections with embeddings, made or gone on with."""
    path = folder / "her2st"
    store = hs.open(path) if path.exists() else hs.create(path)
    for slide in SLIDES:
        files = data / "her2st"
        hs.pp.ingest(
            store, slide, image=files / f"{slide}.jpg", mpp=0.688, st_counts=files / f"{slide}.counts.tsv.gz",
            st_spots=files / f"{slide}.spots.tsv", obs=files / f"{slide}.clusters.tsv.gz", meta={"patient": "C"},
        )  # fmt: skip
    hs.pp.tile(store, hs.TileSpec.at_spots(px=224, mpp="native"))
    hs.tl.embed(store, backbone, progress=Line())
    return store


def measure(store: hs.Store) -> tuple[pd.DataFrame, dict[str, float], str]:
    """Return the table, the gated figures and the kind of split."""
    common = {
        "genes": "top-variance:50",
        "split": hs.LeaveOneOut("slide", allow_same_patient=True),
        "min_counts": 500,
        "backbone": "efficientnet_lite0",
    }
    plain = hs.tl.fit(store, "ridge", **common).evaluation
    tuned = hs.tl.fit(store, "ridge", features=TUNED, **common).evaluation
    table = pd.concat(
        [score_table(plain), score_table(tuned).loc[["image"]].rename(index={"image": "image, features tuned"})]
    )
    figures = {
        "ridge": plain.score("image"),
        "tuned": tuned.score("image"),
        "position": plain.score("position"),
        "image + position": plain.score("image + position"),
    }
    return table, figures, plain.split_text


def main() -> int:
    """Print the table; return 1 when a gate is missed."""
    data = os.environ.get("HISTOSTORE_REAL_DATA")
    if not data:
        print("HISTOSTORE_REAL_DATA is unset: no real sections here")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        store = build(folder, Path(data))
        begun = time.perf_counter()
        table, figures, split = measure(store)
    print(f"mean Pearson r over 50 genes; split: {split}")
    print(table.to_string(float_format=lambda v: f"{v:.3f}"))
    print(f"both fits took {time.perf_counter() - begun:.1f} s")
    missed = [f"{k} {figures[k]:.3f} < {gate}" for k, gate in GATES.items() if not figures[k] >= gate]
    print("gates missed: " + ", ".join(missed) if missed else "all gates reached")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
