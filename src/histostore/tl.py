"""``hs.tl``: embed, fit, predict, search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.backbones import load_backbone
from histostore.errors import UsageError
from histostore.specs import FeatureSpec, HeadSpec, PanelSpec, SplitSpec
from histostore.stages.embed import embed as _embed
from histostore.stages.fit import FitResult
from histostore.stages.fit import fit as _fit
from histostore.stages.predict import predict as _predict
from histostore.stages.search import Hits, only_backbone
from histostore.stages.search import search as _search

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from histostore.progress import Progress
    from histostore.protocols import Backbone
    from histostore.stages.result import StageResult
    from histostore.store.store import Store

__all__ = ["embed", "fit", "predict", "search"]


def embed(
    store: Store,
    backbone: str | Backbone | Sequence[str | Backbone],
    *,
    slides: str | Sequence[str] | None = None,
    tiles: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[StageResult]:
    """Embed tiles with one or more backbones: a no-op where it is done, resumed where it was cut short.

    Options as in `histostore.stages.embed.embed`.
    """
    wanted: list[Any] = list(backbone) if isinstance(backbone, list | tuple) else [backbone]
    loaded: list[Backbone] = [load_backbone(b) if isinstance(b, str) else b for b in wanted]
    chosen = [slides] if isinstance(slides, str) else list(slides or store.slides())
    return [r for s in chosen for r in _embed(store, s, loaded, tiles=tiles, progress=progress, **options)]


def fit(
    store: Store,
    head: Any = "ridge",
    *,
    genes: str | Sequence[str] = "top-variance:50",
    split: str | SplitSpec = "leave-one-out:patient",
    backbone: str | None = None,
    tiles: str | None = None,
    slides: Sequence[str] | None = None,
    where: str | None = None,
    features: FeatureSpec | Sequence[FeatureSpec] = (),
    target: str = "log1p-cp10k",
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
    split
        ``leave-one-out:COLUMN``, ``group-kfold:N:COLUMN``, or a `SplitSpec`.
    features
        Spatial context and standardisation; several are chosen from by inner folds.
    save
        Also train on all rows and keep the head under this name.
    """
    from histostore.heads.registry import name_of

    name, options = (head, {}) if isinstance(head, str) else (name_of(head), head.get_params())
    wanted = (features,) if isinstance(features, FeatureSpec) else tuple(features) or (FeatureSpec(),)
    cut = split if isinstance(split, SplitSpec) else SplitSpec.parse(split, seed=seed)
    if allow_same_patient and not cut.allow_same_patient:
        cut = SplitSpec.from_json(cut.to_json() | {"allow_same_patient": True})
    if target not in ("log1p-cp10k", "log1p"):
        raise UsageError(f"target is '{target}', not log1p-cp10k or log1p")
    panel = PanelSpec.parse(genes if isinstance(genes, str) else tuple(genes))
    spec = HeadSpec(
        head=name, options=tuple(sorted(options.items())), panel=panel, target=target,  # type: ignore[arg-type]
        split=cut, features=wanted, min_counts=min_counts, seed=seed,
    )  # fmt: skip
    return _fit(
        store, spec, backbone=backbone or only_backbone(store, tiles), tiles=tiles, slides=slides, where=where,
        save_as=save, replace=replace, progress=progress,
    )  # fmt: skip


def predict(
    store: Store,
    head: str,
    *,
    slides: str | Sequence[str] | None = None,
    tiles: str | None = None,
    replace: bool = False,
) -> list[StageResult]:
    """Apply a saved head to slides, with or without counts."""
    chosen = [slides] if isinstance(slides, str) else list(slides or store.slides())
    return [_predict(store, s, head, tiles=tiles, replace=replace) for s in chosen]


def search(store: Store, *, image: Any = None, **options: Any) -> Hits:
    """Find look-alikes of a tile (`slide` and `spot`), of an image (array or file), or of a vector.

    Options as in `histostore.stages.search.search`.
    """
    if image is not None and options.get("embed_with") is None:
        options["backbone"] = options.get("backbone") or only_backbone(store, options.get("tiles"))
        options["embed_with"] = load_backbone(options["backbone"])
    return _search(store, image=read_image(image) if image is not None else None, **options)


def read_image(image: str | Path | Any) -> Any:
    """Return the pixels ``(h, w, 3)`` uint8 RGB of an image file; an array is returned as it is."""
    from pathlib import Path

    import numpy as np

    if not isinstance(image, str | Path):
        return np.asarray(image)
    from histostore.slides import open_slide

    with open_slide(image) as slide:
        return slide.thumbnail(max(slide.size_px))
