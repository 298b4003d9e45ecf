"""A saved head applied to slides: predictions beside their tiles, with or without counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.content.calls import call_classes
from histostore.errors import SpecMismatchError, UsageError
from histostore.io.staged import write_text
from histostore.progress import Stopwatch
from histostore.stages.export import write_adata
from histostore.stages.fit import load_head, stale
from histostore.stages.result import StageResult, outcome
from histostore.stages.training_data import pool, slide_obs
from histostore.stages.viewer_files import write_geojson, write_loupe_csv
from histostore.store.arrays import ArraySpec
from histostore.store.codecs import RAW
from histostore.tables import Report
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from histostore.store.store import Store
    from histostore.view import View

CHUNK_ROWS = 4096

FORMATS = {".h5ad": "AnnData", ".zarr": "AnnData", ".loupe.csv": "Loupe", ".csv": "CSV", ".geojson": "QuPath"}
"""End of a file's name -> what it becomes."""

OF_ONE_IMAGE = ("QuPath", "Loupe")
NAME_THEM = "put {slide} into the name"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a head says of one slide."""

    view: View
    """The tiles of the slide."""
    values: NDArray[np.float32]
    """``(n, t)``; NaN where a tile was unreadable. One row where the head is of whole slides."""
    names: tuple[str, ...]
    """Genes, columns of a table, or the classes whose probabilities these are."""
    per_slide: bool = False
    threshold: float | None = None
    """Of a classifier: the probability from which the positive (last) of two classes is called."""

    def frame(self) -> pd.DataFrame:
        """Return the predictions as a table, one line per tile (or one for the slide)."""
        import pandas as pd

        index = list(self.view.slides) if self.per_slide else self.view.names()
        return pd.DataFrame(self.values, index=index, columns=list(self.names))

    def calls(self) -> NDArray[Any]:
        """Return the class called for each row; None where a tile was unreadable."""
        if self.threshold is None:
            raise UsageError("this head predicts numbers: there are no classes to call")
        return call_classes(self.values, self.names, self.threshold)


def predict(store: Store, slide: str, head: str, *, tiles: str | None = None, replace: bool = False) -> StageResult:
    """Apply a saved head to the tiles of one slide and commit ``predictions/<tiles>/<head>``.

    Raises
    ------
    SpecMismatchError
        The slide's embeddings are of another backbone than the head's; both digests are named.
    """
    watch = Stopwatch()
    fitted, group = load_head(store, head)
    about, bag = group.attrs, fitted.spec.bag
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
        if bag is None:
            values = fitted.predict(cohort.numpy(), cohort.obs())
        else:
            values = fitted.predict(pool(cohort, bag, seed=fitted.spec.seed)[0], slide_obs(cohort))
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
        attrs: dict[str, Any] = {"head": head, "genes": list(fitted.names), "tiles": name.rpartition("/")[0]}
        attrs |= {"per": "slide"} if bag is not None else {}
        attrs |= {"threshold": fitted.threshold} if fitted.threshold is not None else {}
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


def file_format(path: Path) -> str:
    """Return what a file of predictions will be, by the end of its name.

    Raises
    ------
    UsageError
        Its name ends in nothing known.
    """
    for end, form in FORMATS.items():
        if path.name.endswith(end):
            return form
    raise UsageError(f"{path}: the name must end in {', '.join(FORMATS)}")


def write_predictions(
    store: Store,
    slides: Sequence[str],
    head: str,
    path: Path,
    *,
    tiles: str | None = None,
    names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write predictions as a file.

    Parameters
    ----------
    path
        Its end says what it becomes: ``.h5ad`` or ``.zarr`` (AnnData, what is predicted as variables), ``.csv``,
        ``.geojson`` (objects for QuPath) or ``.loupe.csv`` (groups of spots for Loupe Browser).
    names
        Which of the predicted values go to QuPath (default: all) and Loupe (a head of numbers needs one).

    Raises
    ------
    UsageError
        Several slides in a file that belongs to one image.
    """
    form = file_format(path)
    if form in OF_ONE_IMAGE:
        if len(slides) != 1:
            raise UsageError(f"{path}: {form} files are of one image and {len(slides)} slides are asked; {NAME_THEM}")
        write = write_geojson if form == "QuPath" else write_loupe_csv
        return write(read_prediction(store, slides[0], head, tiles=tiles), head, path, names=names, overwrite=overwrite)
    found = [read_prediction(store, s, head, tiles=tiles) for s in slides]
    if form == "CSV":
        return write_text(path, [_with_calls(found).to_csv(lineterminator="\n")], overwrite=overwrite)
    return write_adata(_as_adata(found, head), path, overwrite=overwrite)


def _with_calls(found: Sequence[Prediction]) -> pd.DataFrame:
    import pandas as pd

    table = pd.concat([p.frame() for p in found])
    if found[0].threshold is not None:
        table.insert(0, "call", np.concatenate([p.calls() for p in found]))
    return table


def _as_adata(found: Sequence[Prediction], head: str) -> AnnData:
    import anndata as ad
    import pandas as pd

    table = pd.concat([p.frame() for p in found])
    adata = ad.AnnData(X=table.to_numpy(), var=pd.DataFrame(index=table.columns))
    if found[0].per_slide:
        adata.obs = pd.concat([slide_obs(p.view) for p in found])
    else:
        joined = ad.concat([p.view.to_adata(counts=False) for p in found], join="outer", uns_merge="unique")
        adata = ad.AnnData(X=adata.X, obs=joined.obs, obsm=dict(joined.obsm), uns=dict(joined.uns), var=adata.var)
    if found[0].threshold is not None:
        calls = np.concatenate([p.calls() for p in found])
        adata.obs["call"] = pd.Categorical(calls, categories=list(table.columns))
    adata.uns["predicted_by"] = head
    return adata


def read_prediction(store: Store, slide: str, head: str, *, tiles: str | None = None) -> Prediction:
    """Return committed predictions with the rows they are for."""
    manifest = store.slide(slide)
    refs = [r for r in manifest.of_kind("predictions") if r.name.rpartition("/")[2] == head]
    name = f"{tiles}/{head}" if tiles is not None else (refs[0].name if len(refs) == 1 else None)
    group = store.group(manifest.find("predictions", name if name is not None else head))
    rows = view(store, tiles=group.attrs["tiles"], slides=[slide])
    return Prediction(
        rows, group.read("prediction"), tuple(group.attrs["genes"]), group.attrs.get("per") == "slide",
        group.attrs.get("threshold"),
    )  # fmt: skip
