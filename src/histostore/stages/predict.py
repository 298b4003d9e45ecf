"""A saved head applied to slides: predictions beside their tiles, with or without counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import ConflictError, SpecMismatchError
from histostore.progress import Stopwatch
from histostore.stages.export import write_adata
from histostore.stages.fit import load_head, stale
from histostore.stages.result import StageResult, outcome
from histostore.store.arrays import ArraySpec
from histostore.store.codecs import RAW
from histostore.tables import Report
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.store.store import Store
    from histostore.view import View

CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a head says of one slide."""

    view: View
    values: NDArray[np.float32]
    """``(n, t)``; NaN where a tile was unreadable."""
    genes: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """Return the predictions as a table, one line per tile."""
        import pandas as pd

        return pd.DataFrame(self.values, index=self.view.names(), columns=list(self.genes))


def predict(store: Store, slide: str, head: str, *, tiles: str | None = None, replace: bool = False) -> StageResult:
    """Apply a saved head to the tiles of one slide and commit ``predictions/<tiles>/<head>``.

    Raises
    ------
    SpecMismatchError
        The slide's embeddings are of another backbone than the head's; both digests are named.
    """
    watch = Stopwatch()
    fitted, group = load_head(store, head)
    about = group.attrs
    cohort = view(store, backbone=about["backbone"], tiles=tiles or about["tiles"], slides=[slide])
    part = cohort.parts[0]
    ref = part.embeddings[cohort.backbones[0]]
    digest = part.group(ref).attrs["backbone_digest"]
    if digest != about["backbone_digest"]:
        raise SpecMismatchError(
            f"head '{head}' was trained on backbone {about['backbone_digest'][:8]}, the embeddings "
            f"'{ref.name}' of slide '{slide}' are of {digest[:8]}; embed with the head's backbone, or fit again"
        )
    name = f"{part.group(ref).attrs['tiles']}/{head}"
    inputs = {"head": group.ref.digest, "embeddings": ref.digest}
    with watch.timed("predict"):
        values = fitted.predict(cohort.numpy(), cohort.obs())
    with watch.timed("write"), store.begin(slide, "predictions", name, spec={}, inputs=inputs) as writer:
        if writer.sealed is None:
            rows = max(1, min(CHUNK_ROWS, len(values)))
            layout = ArraySpec(
                shape=values.shape, dtype="float32", chunk_rows=rows, shard_rows=rows, pipeline=RAW,
                fill_value="NaN", dims=("tile", "gene"),
            )  # fmt: skip
            writer.create("prediction", layout)
            for shard in writer.pending("prediction"):
                start, stop = layout.shard_range(shard)
                writer.write_rows("prediction", shard, values[start:stop])
        attrs = {"head": head, "genes": list(fitted.genes), "tiles": name.rpartition("/")[0]}
        written = writer.seal(rows=len(values), attrs=attrs)
    commit = store.commit(slide, [written], replace=replace)
    changed = stale(store, group)
    notes = (f"head '{head}' is stale: {'; '.join(changed[:3])}; fit it again",) if changed else ()
    unread = int(np.isnan(values).any(axis=1).sum())
    done = outcome(commit, resumed=False) if commit.added else "already there"
    return StageResult(
        slide=slide, stage="predict", refs=(written,), done=done, rows=len(values),
        report=Report({"unreadable": unread}, notes), seconds=watch.seconds,
    )  # fmt: skip


def write_predictions(
    store: Store, slides: Sequence[str], head: str, path: Path, *, tiles: str | None = None, overwrite: bool = False
) -> Path:
    """Write the predictions of several slides as one ``.h5ad``, ``.zarr`` (genes as variables) or ``.csv``."""
    import anndata as ad
    import pandas as pd

    found = [read_prediction(store, s, head, tiles=tiles) for s in slides]
    table = pd.concat([p.frame() for p in found])
    if path.suffix == ".csv":
        if path.exists() and not overwrite:
            raise ConflictError(f"{path} is there already; choose another name, or pass --overwrite")
        table.to_csv(path)
        return path
    parts = [p.view.to_adata(counts=False) for p in found]
    joined = ad.concat(parts, join="outer", uns_merge="unique")
    adata = ad.AnnData(X=table.to_numpy(), obs=joined.obs, obsm=dict(joined.obsm), uns=dict(joined.uns),
                       var=pd.DataFrame(index=table.columns))  # fmt: skip
    adata.uns["predicted_by"] = head
    return write_adata(adata, path, overwrite=overwrite)


def read_prediction(store: Store, slide: str, head: str, *, tiles: str | None = None) -> Prediction:
    """Return committed predictions with the rows they are for."""
    manifest = store.slide(slide)
    refs = [r for r in manifest.of_kind("predictions") if r.name.rpartition("/")[2] == head]
    name = f"{tiles}/{head}" if tiles is not None else (refs[0].name if len(refs) == 1 else None)
    group = store.group(manifest.find("predictions", name if name is not None else head))
    rows = view(store, tiles=group.attrs["tiles"], slides=[slide])
    return Prediction(rows, group.read("prediction"), tuple(group.attrs["genes"]))
