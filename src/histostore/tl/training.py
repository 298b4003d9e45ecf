"""From embeddings to genes, numbers and classes: train heads, apply them, review what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from histostore.errors import UsageError
from histostore.head_specs import UNITS, BagSpec, FeatureSpec, HeadSpec, LabelSpec, PanelSpec, SplitSpec
from histostore.inventory import chosen_slides
from histostore.stages.search import only_backbone

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from distributed import Client
    from numpy.typing import NDArray

    from histostore.progress import Progress
    from histostore.stages.fit import FitResult
    from histostore.stages.result import StageResult
    from histostore.stages.review import Review
    from histostore.store.store import Store
    from histostore.view import View


def fit(
    store: Store,
    head: Any = "ridge",
    *,
    genes: str | Sequence[str] = "top-variance:50",
    target: str | Sequence[str] = "log1p-cp10k",
    labels: str | LabelSpec | None = None,
    groups: str | Sequence[str] | None = None,
    split: str | SplitSpec = "leave-one-out:patient",
    backbone: str | None = None,
    tiles: str | None = None,
    slides: Sequence[str] | None = None,
    where: str | None = None,
    features: FeatureSpec | Sequence[FeatureSpec] = (),
    per: Literal["tile", "slide"] | None = None,
    tiles_per_slide: int | None = None,
    pool: Literal["mean", "tiles"] = "mean",
    region_share: float | None = None,
    min_counts: int = 0,
    allow_same_patient: bool = False,
    seed: int = 0,
    save: str | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> FitResult:
    """Train a head from the cache and score it on held-out rows, with its baselines beside it.

    Parameters
    ----------
    head
        ``"ridge"``, or an estimator like ``hs.heads.Ridge(alphas=(1e3, 1e4))``.
    genes
        A panel (``top-variance:50``, ``hvg:50``, ``all:0.05``) or a list; chosen on the training rows of each fold.
    target
        The unit of the genes (``log1p-cp10k``, ``log1p``, ``log-share``, ``counts``); or one or more numeric columns
        of obs or metadata to predict instead of genes, like ``"MKI67"``.
    labels
        Predict classes: an obs column (``cluster``, ``region_kidney``, ``organ``), or a `LabelSpec` that says which of
        its values are positive, negative and ignored.
    groups
        Obs columns of the random effects, for `RENN`.
    split
        ``leave-one-out:COLUMN``, ``group-kfold:N:COLUMN``, ``stratified-kfold:N:COLUMN``,
        ``spatial-block:N:UM[:BUFFER]``, or a `SplitSpec`.
    features
        Spatial context and standardisation; several are chosen from by inner folds.
    per
        One row per tile, or one per slide, made of its tiles; by default per slide where `target` is metadata.
    tiles_per_slide, pool
        Of rows per slide: how many tiles are drawn (by `seed`), and whether their mean is taken.
    region_share
        Of labels from polygons: the share of a tile that one must cover; by default it must hold the centre.
    save
        Also train on all rows and keep the head under this name.
    """
    # heads bring scikit-learn and scipy.stats, which searching and embedding do without
    from histostore.heads.registry import name_of
    from histostore.stages.fit import fit as run
    from histostore.stages.training_data import is_metadata

    name, options = (head, {}) if isinstance(head, str) else (name_of(head), head.get_params())
    wanted = (features,) if isinstance(features, FeatureSpec) else tuple(features) or (FeatureSpec(),)
    cut = split if isinstance(split, SplitSpec) else SplitSpec.parse(split, seed=seed)
    if allow_same_patient and not cut.allow_same_patient:
        cut = SplitSpec.from_json(cut.to_json() | {"allow_same_patient": True})
    asked = _what(genes, target, labels)
    if name == "attention" and "tiles" not in dict(options):
        # it is told how many tiles lie side by side in a row
        pool, tiles_per_slide = "tiles", tiles_per_slide or 32
        options = {**options, "tiles": tiles_per_slide}
    if per is None and "columns" in asked:
        per = "slide" if any(is_metadata(store, c, slides) for c in asked["columns"]) else "tile"
    if per != "slide" and (tiles_per_slide is not None or pool != "mean"):
        raise UsageError("tiles_per_slide and pool are of rows per slide: give per='slide'")
    spec = HeadSpec(
        head=name, options=tuple(sorted(options.items())), split=cut, features=wanted, min_counts=min_counts, seed=seed,
        bag=BagSpec(tiles=tiles_per_slide, pool=pool) if per == "slide" else None, groups=_names(groups), **asked,
    )  # fmt: skip
    return run(
        store, spec, backbone=backbone or only_backbone(store, tiles), tiles=tiles, slides=slides, where=where,
        region_share=region_share, save_as=save, replace=replace, progress=progress,
    )  # fmt: skip


def _what(genes: str | Sequence[str], target: str | Sequence[str], labels: str | LabelSpec | None) -> dict[str, Any]:
    """Return the fields of a `HeadSpec` that say what is predicted."""
    if labels is not None:
        return {"labels": LabelSpec(column=labels) if isinstance(labels, str) else labels}
    if isinstance(target, str) and target in UNITS:
        panel = PanelSpec.parse(genes if isinstance(genes, str) else tuple(genes))
        return {"panel": panel, "target": target}
    return {"columns": _names(target)}


def _names(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    found = tuple(n.strip() for n in given.split(",")) if isinstance(given, str) else tuple(given)
    if not all(found):
        raise UsageError(f"{given!r} names a column without a name")
    return found


def predict(
    store: Store,
    head: str,
    *,
    slides: str | Sequence[str] | None = None,
    tiles: str | None = None,
    replace: bool = False,
    client: Client | None = None,
) -> list[StageResult]:
    """Apply a saved head to slides, with or without counts; on the workers of a dask cluster with its `client`."""
    from histostore.stages.predict import predict as run

    chosen = chosen_slides(store, slides)
    if client is not None:
        from histostore.scale.run import collected, predict_slides  # brings dask.distributed

        return collected(predict_slides(client, store, chosen, head, tiles=tiles, replace=replace), chosen)
    return [run(store, s, head, tiles=tiles, replace=replace) for s in chosen]


def review(
    store: Store,
    head: str,
    *,
    k: int = 50,
    folder: str | Path | None = None,
    slides: str | Sequence[str] | None = None,
    per_slide: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> Review:
    """Choose tiles of a classifier's predictions for people to look at.

    With `folder` the round is written there: ``review.csv`` to fill in the labels (``hs.pp.annotate(store,
    review=…)`` brings them back), contact sheets and a page. Other options (`uncertain`, `of`, `tiles`, `again`) as in
    `histostore.stages.review.review`.
    """
    from pathlib import Path

    from histostore.stages.review import review as run

    chosen = [slides] if isinstance(slides, str) else slides
    found = run(store, head, k=k, slides=chosen, per_slide=per_slide, **options)
    if folder is not None:
        found.write(Path(folder), per_slide=per_slide, overwrite=overwrite)
    return found


def pool(
    rows: View, *, tiles: int | None = None, seed: int = 0, how: Literal["mean", "tiles"] = "mean"
) -> tuple[NDArray[np.float32], list[int]]:
    """Return one row per slide that a view has rows of, in its order, and how many tiles each is made of.

    Parameters
    ----------
    tiles
        Drawn per slide, by seed, slide and tile id; all of them by default. Unreadable ones are not drawn.
    how
        Their ``mean`` ``(slides, d)``, or the ``tiles`` side by side ``(slides, tiles * d)``, NaN where a slide has
        fewer.
    """
    from histostore.stages.training_data import pool as run

    return run(rows, BagSpec(tiles=tiles, pool=how), seed=seed)
