"""A saved head applied to slides: predictions beside their tiles, with or without counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.content.calls import call_classes
from histostore.content.tables import content_digest
from histostore.errors import NotFoundError, SpecMismatchError, UsageError, near
from histostore.field_of_view import FieldOfView
from histostore.part import are_calls, call_columns
from histostore.progress import Stopwatch
from histostore.staged import write_text
from histostore.stages.export import write_adata
from histostore.stages.fit import load_head, stale
from histostore.stages.label_columns import check_seen
from histostore.stages.result import StageResult, outcome
from histostore.stages.training_data import pool, slide_obs
from histostore.stages.viewer_files import write_geojson, write_loupe_csv
from histostore.store.arrays import ArraySpec
from histostore.store.codecs import RAW
from histostore.tables import Report
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from histostore.heads.fitted import FittedHead
    from histostore.part import Part
    from histostore.store.groups import Group, GroupWriter
    from histostore.store.manifest import Ref
    from histostore.store.store import Store
    from histostore.view import View

CHUNK_ROWS = 4096

FIELD = "field"
"""What a head says of the tiles it was trained on: edge in pixels, µm per pixel. The first heads do not have it."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Applying:
    """What has to be done to apply a head to one slide, step by step; it can be pickled."""

    slide: str
    head: str
    tiles: str
    """The tile set."""
    backbone: str
    inputs: Mapping[str, str]
    shape: tuple[int, int]
    """Rows (one where the head is of whole slides) and values of each."""
    attrs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the predictions."""
        return f"{self.tiles}/{self.head}"

    @property
    def layout(self) -> ArraySpec:
        """Layout of the predictions."""
        rows = max(1, min(CHUNK_ROWS, self.shape[0]))
        return ArraySpec(
            shape=self.shape, dtype="float32", chunk_rows=rows, shard_rows=rows, pipeline=RAW,
            fill_value="NaN", dims=("tile", "gene"),
        )  # fmt: skip

    def values(self, store: Store, fitted: FittedHead) -> NDArray[np.float32]:
        """Return the predictions of every row, ``(n, t)``."""
        cohort = view(store, backbone=self.backbone, tiles=self.tiles, slides=[self.slide])
        now = cohort.parts[0].embeddings[cohort.backbones[0]].digest
        if now != self.inputs["embeddings"]:
            raise SpecMismatchError(
                f"embeddings '{self.backbone}' of slide '{self.slide}' were {self.inputs['embeddings'][:8]} when "
                f"predicting began and are {now[:8]} now: they were made again meanwhile; run predict again"
            )
        bag = fitted.spec.bag
        if bag is None:
            return fitted.predict(cohort.numpy(), cohort.obs())
        return fitted.predict(pool(cohort, bag, seed=fitted.spec.seed)[0], slide_obs(cohort))

    def begin(self, store: Store) -> GroupWriter:
        """Start, or go on with, the group; its array is declared where it is not sealed."""
        writer = store.begin(self.slide, "predictions", self.name, spec={}, inputs=self.inputs)
        if writer.sealed is None:
            writer.create("prediction", self.layout)
        return writer

    def finish(self, store: Store, writer: GroupWriter, *, head: Group, replace: bool, watch: Stopwatch) -> StageResult:
        """Seal and commit; all shards are there."""
        written = writer.seal(rows=self.shape[0], attrs=self.attrs)
        commit = store.commit(self.slide, [written], replace=replace)
        done = outcome(commit, resumed=False) if commit.added else "already there"
        return self.result(store, written, head=head, done=done, watch=watch)

    def result(self, store: Store, ref: Ref, *, head: Group, done: str, watch: Stopwatch) -> StageResult:
        """Return what to say of committed predictions."""
        changed = stale(store, head)
        notes = [f"head '{self.head}' is stale: {'; '.join(changed[:3])}; fit it again"] if changed else []
        if FIELD not in head.attrs:
            notes.append(
                f"head '{self.head}' does not tell the size and resolution of the tiles it was trained on, so these "
                "were not compared with them; fit it again to have that checked"
            )
        unread = int(np.isnan(store.group(ref).read("prediction")).any(axis=1).sum())
        return StageResult(
            slide=self.slide, stage="predict", refs=(ref,), done=done, rows=self.shape[0],
            report=Report({"unreadable": unread}, tuple(notes)), seconds=watch.seconds,
        )  # fmt: skip


def predict(store: Store, slide: str, head: str, *, tiles: str | None = None, replace: bool = False) -> StageResult:
    """Apply a saved head to the tiles of one slide and commit ``predictions/<tiles>/<head>``.

    Raises
    ------
    ConflictError
        Labels of the slide have a column of the name that a classifier's calls would have, or predictions from other
        embeddings are there and `replace` is false.
    SpecMismatchError
        The slide's embeddings are of another backbone than the head's (both digests are named), of tiles of another
        size or resolution than it was trained on, or of other tiles than those there now.
    """
    watch = Stopwatch()
    fitted, group = load_head(store, head)
    applying = begin_predicting(store, slide, head, fitted, group, tiles=tiles)
    if isinstance(applying, StageResult):
        return applying
    with watch.timed("predict"):
        values = applying.values(store, fitted)
    with watch.timed("write"), applying.begin(store) as writer:
        for shard in writer.pending("prediction") if writer.sealed is None else ():
            start, stop = applying.layout.shard_range(shard)
            writer.write_rows("prediction", shard, values[start:stop])
        return applying.finish(store, writer, head=group, replace=replace, watch=watch)


def begin_predicting(
    store: Store, slide: str, head: str, fitted: FittedHead, group: Group, *, tiles: str | None
) -> StageResult | Applying:
    """Return what is to be done, or the result where it is done already. Errors as of `predict`."""
    about, bag = group.attrs, fitted.spec.bag
    cohort = view(store, backbone=about["backbone"], tiles=tiles or about["tiles"], slides=[slide])
    part = cohort.parts[0]
    ref = part.embeddings[cohort.backbones[0]]
    embedded = part.group(ref).attrs
    if embedded["backbone_digest"] != about["backbone_digest"]:
        raise SpecMismatchError(
            f"head '{head}' was trained on backbone {about['backbone_digest'][:8]}, the embeddings "
            f"'{ref.name}' of slide '{slide}' are of {embedded['backbone_digest'][:8]}; "
            "embed with the head's backbone, or fit again"
        )
    if FIELD in about:
        _check_field(part, head, FieldOfView(*about[FIELD]))
    attrs: dict[str, Any] = {"head": head, "genes": list(fitted.names), "tiles": embedded["tiles"]}
    attrs |= {"per": "slide"} if bag is not None else {}
    attrs |= {"threshold": fitted.threshold} if fitted.threshold is not None else {}
    applying = Applying(
        slide=slide, head=head, tiles=embedded["tiles"], backbone=about["backbone"],
        inputs={"head": group.ref.digest, "embeddings": ref.digest, **_groups_of(cohort, fitted)},
        shape=(1 if bag is not None else len(part), len(fitted.names)), attrs=attrs,
    )  # fmt: skip
    found = store.committed(slide, "predictions", applying.name, spec={}, inputs=applying.inputs)
    if found is None:
        if are_calls(attrs):
            check_seen(store, part.manifest, call_columns(applying.name), what=f"the calls of head '{head}'")
        return applying
    return applying.result(store, found, head=group, done="already there", watch=Stopwatch())


def _groups_of(cohort: View, fitted: FittedHead) -> dict[str, str]:
    """Return the digest of the groups that rows are of, for a head with random effects that they are all known to."""
    names = fitted.spec.groups or ()
    if not names:
        return {}
    obs = slide_obs(cohort) if fitted.spec.bag is not None else cohort.obs([n for n in names if n in cohort.columns()])
    if not all(name in obs for name in names):
        return {}
    return {"groups": content_digest(names, *([str(v) for v in obs[name]] for name in names))[:32]}


def _check_field(part: Part, head: str, trained: FieldOfView) -> None:
    if not part.field.is_like(trained):
        raise SpecMismatchError(
            f"head '{head}' was trained on tiles of {trained}, those of slide '{part.slide}' are of "
            f"{part.field}; tile and embed the slide like those, or fit a head on tiles like these"
        )


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
    say: Callable[[str], None] | None = None,
) -> Path:
    """Write predictions as a file.

    Parameters
    ----------
    path
        Its end says what it becomes: ``.h5ad`` or ``.zarr`` (AnnData, what is predicted as variables), ``.csv``,
        ``.geojson`` (objects for QuPath) or ``.loupe.csv`` (groups of spots for Loupe Browser).
    names
        Which of the predicted values are written (default: all); Loupe needs some of a head of numbers.
    say
        As of `histostore.stages.export.write_adata`.

    Raises
    ------
    NotFoundError
        The head does not predict one of `names`; near ones are suggested.
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
    for one in found:
        check_names(head, one.names, names)
    if form == "CSV":
        return write_text(path, [_with_calls(found, names).to_csv(lineterminator="\n")], overwrite=overwrite)
    return write_adata(_as_adata(found, head, names), path, overwrite=overwrite, say=say)


def check_names(head: str, predicted: Sequence[str], names: Sequence[str] | None) -> None:
    """Refuse values that a head does not predict."""
    for name in names or ():
        if name not in predicted:
            raise NotFoundError(f"head '{head}' does not predict '{name}'{near(name, predicted)}")


def _table(found: Sequence[Prediction], names: Sequence[str] | None) -> pd.DataFrame:
    """Return the predictions of all slides, of `names` alone if there are any."""
    import pandas as pd

    table = pd.concat([p.frame() for p in found])
    return table[list(dict.fromkeys(names))] if names else table


def _with_calls(found: Sequence[Prediction], names: Sequence[str] | None) -> pd.DataFrame:
    table = _table(found, names)
    if found[0].threshold is not None:
        table.insert(0, "call", np.concatenate([p.calls() for p in found]))
    return table


def _as_adata(found: Sequence[Prediction], head: str, names: Sequence[str] | None) -> AnnData:
    import anndata as ad
    import pandas as pd

    table = _table(found, names)
    adata = ad.AnnData(X=table.to_numpy(), var=pd.DataFrame(index=table.columns))
    if found[0].per_slide:
        adata.obs = pd.concat([slide_obs(p.view) for p in found])
    else:
        joined = ad.concat([p.view.to_adata(counts=False) for p in found], join="outer", uns_merge="unique")
        adata = ad.AnnData(X=adata.X, obs=joined.obs, obsm=dict(joined.obsm), uns=dict(joined.uns), var=adata.var)
    if found[0].threshold is not None:
        calls = np.concatenate([p.calls() for p in found])
        adata.obs["call"] = pd.Categorical(calls, categories=list(found[0].names))
    adata.uns["predicted_by"] = head
    return adata


def read_prediction(store: Store, slide: str, head: str, *, tiles: str | None = None) -> Prediction:
    """Return committed predictions with the rows they are for.

    Raises
    ------
    SpecMismatchError
        They were made of other embeddings or tiles than those there now.
    """
    manifest = store.slide(slide)
    refs = [r for r in manifest.of_kind("predictions") if r.name.rpartition("/")[2] == head]
    name = f"{tiles}/{head}" if tiles is not None else (refs[0].name if len(refs) == 1 else None)
    group = store.group(manifest.find("predictions", name if name is not None else head))
    rows = view(store, tiles=group.attrs["tiles"], slides=[slide])
    if (why := rows.parts[0].why_not(group.ref)) is not None:
        raise SpecMismatchError(f"slide '{slide}': {why}")
    return Prediction(
        rows, group.read("prediction"), tuple(group.attrs["genes"]), group.attrs.get("per") == "slide",
        group.attrs.get("threshold"),
    )  # fmt: skip
