"""``hs.tl``: embed, fit, predict, factorise, search."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from histostore.backbones.finetune_spec import AugmentSpec, FinetuneSpec
from histostore.backbones.tuned import load_for
from histostore.errors import NotFoundError, UsageError, near
from histostore.head_specs import UNITS, BagSpec, FeatureSpec, HeadSpec, LabelSpec, PanelSpec, SplitSpec
from histostore.index.spec import IndexSpec
from histostore.stages.embed import embed as _embed
from histostore.stages.factors import factors
from histostore.stages.index import IndexResult
from histostore.stages.index import index as _index
from histostore.stages.search import only_backbone
from histostore.stages.search import search as _search
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from anndata import AnnData
    from distributed import Client
    from numpy.typing import NDArray

    from histostore.backbones.engines import Engine
    from histostore.cohort.grams import Gram
    from histostore.cohort.nmf import Programs
    from histostore.cohort.pca import Components
    from histostore.index.drift import Drift
    from histostore.index.spec import Device, Kind, Metric
    from histostore.progress import Progress
    from histostore.protocols import Backbone
    from histostore.stages.finetune import FinetuneResult
    from histostore.stages.fit import FitResult
    from histostore.stages.hits import Hits
    from histostore.stages.result import StageResult
    from histostore.stages.review import Review
    from histostore.store.store import Store
    from histostore.view import View

__all__ = [
    "drift", "embed", "factors", "finetune", "fit", "gram", "index", "neighbors", "nmf", "pca", "pool", "predict",
    "review", "search",
]  # fmt: skip


def embed(
    store: Store,
    backbone: str | Backbone | Sequence[str | Backbone],
    *,
    slides: str | Sequence[str] | None = None,
    tiles: str | None = None,
    engine: Engine = "torch",
    client: Client | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[StageResult]:
    """Embed tiles with one or more backbones: a no-op where it is done, resumed where it was cut short.

    Backbones given by name run on `engine`, ``torch`` or ``openvino``; the latter's embeddings are named
    ``NAME+openvino`` and never joined with torch's. Options as in `histostore.stages.embed.embed`.
    With the `client` of a dask cluster its workers do it, shard by shard, to the same bytes (one engine); a slide that
    fails does not stop the others, and its error is raised after they are done.
    """
    wanted: list[Any] = list(backbone) if isinstance(backbone, list | tuple) else [backbone]
    if client is not None:
        from histostore.scale.run import collected, embed_slides, names_only  # brings dask.distributed

        over = [slides] if isinstance(slides, str) else list(slides or store.slides())
        calls = names_only(wanted, engine=engine)
        return collected(embed_slides(client, store, over, calls, tiles=tiles, progress=progress, **options), over)
    loaded: list[Backbone] = [load_for(store, b, engine=engine) if isinstance(b, str) else b for b in wanted]
    chosen = [slides] if isinstance(slides, str) else list(slides or store.slides())
    return [r for s in chosen for r in _embed(store, s, loaded, tiles=tiles, progress=progress, **options)]


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


def finetune(
    store: Store,
    backbone: str | Backbone,
    targets: Any,
    *,
    save: str,
    tiles: str | None = None,
    slides: Sequence[str] | None = None,
    where: str | None = None,
    device: str = "auto",
    read_threads: int = 1,
    allow_mpp: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> FinetuneResult:
    """Train the last blocks of a backbone on stored tiles: a new backbone, with a digest of its own.

    Parameters
    ----------
    backbone
        The parent: a name, or a loaded backbone.
    targets
        An obs column of classes, columns of numbers, or a Series or DataFrame by ``<slide>:<point>``.
    save
        Name of the new backbone, which `embed` then takes.
    options
        Fields of `FinetuneSpec` (``blocks``, ``by``, ``test``, ``lr``, …) and of `AugmentSpec` (``blur``, ``hue``, …).
    """
    from histostore.stages.finetune import finetune as run

    fields = {f.name for f in dataclasses.fields(AugmentSpec)}
    augment = AugmentSpec.from_json({k: options.pop(k) for k in list(options) if k in fields})
    name = backbone if isinstance(backbone, str) else backbone.spec.name
    spec = FinetuneSpec.from_json({"backbone": name, "augment": augment.to_json(), **options})
    return run(
        store, spec, targets=targets, save_as=save, tiles=tiles, slides=slides, where=where,
        backbone=None if isinstance(backbone, str) else backbone, device=device, read_threads=read_threads,
        allow_mpp=allow_mpp, replace=replace, progress=progress,
    )  # fmt: skip


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

    chosen = [slides] if isinstance(slides, str) else list(slides or store.slides())
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
    """Return one row per slide of a view, and how many tiles each is made of.

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


def index(
    store: Store,
    backbone: str | None = None,
    *,
    kind: Kind | None = None,
    metric: Metric | None = None,
    tiles: str | None = None,
    slides: Sequence[str] | None = None,
    name: str | None = None,
    rebuild: bool = False,
    compact: bool = False,
    device: Device = "auto",
    client: Client | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> IndexResult:
    """Build a search index of a backbone's embeddings, or bring it up to date: a no-op where nothing changed.

    Parameters
    ----------
    kind
        ``auto`` (default) chooses by size, memory and recall among ``exact``, ``ivf-flat``, ``ivf-sq8``, ``ivf-pq`` and
        ``hnsw``.
    metric
        ``cosine`` (default), ``l2`` or ``ip``.
    rebuild, compact
        Build everything again; or build small and hollow segments again as one.
    client
        Of a dask cluster: its workers encode the rows of IVF indexes, to the same bytes; the rest is done here.
    progress
        Told how far the workers are.
    options
        Other fields of `histostore.index.spec.IndexSpec`: ``recall``, ``nlist``, ``pq_bytes``, ``max_bytes``, …
    """
    how: dict[str, Any] = {
        "backbone": backbone or only_backbone(store, tiles), "tiles": tiles, "slides": slides, "name": name,
        "spec": IndexSpec.of(kind=kind, metric=metric, **options),
        "rebuild": rebuild, "compact": compact, "device": device,
    }  # fmt: skip
    if client is not None:
        from histostore.scale.run import index_store  # brings dask.distributed

        return index_store(client, store, progress=progress, **how)
    return _index(store, **how)


def neighbors(
    adata: AnnData,
    *,
    use_rep: str,
    n_neighbors: int = 15,
    metric: Literal["cosine", "l2"] = "cosine",
    key_added: str | None = None,
    device: Device = "auto",
) -> None:
    """Fill the slots that ``sc.tl.umap`` and ``sc.tl.leiden`` use, from exact neighbours of an embedding.

    Parameters
    ----------
    adata
        Changed in place: ``obsp["distances"]``, ``obsp["connectivities"]`` and ``uns["neighbors"]``, as
        ``sc.pp.neighbors`` would leave them.
    use_rep
        A key of obsm, like ``X_resnet50``.
    n_neighbors
        As in scanpy: the row itself is one of them.
    key_added
        As in scanpy, where the graph shall lie beside another one.
    """
    from histostore.index.neighbours import neighbours

    if use_rep not in adata.obsm:
        raise NotFoundError(f"no obsm '{use_rep}'{near(use_rep, adata.obsm)}; there are {', '.join(adata.obsm)}")
    found = neighbours(adata.obsm[use_rep], n_neighbors=n_neighbors, metric=metric, device=device)
    about, prefix = found.uns(), f"{key_added}_" if key_added else ""
    about["params"]["use_rep"] = use_rep
    for slot, matrix in (("distances", found.matrix()), ("connectivities", found.connectivities())):
        adata.obsp[f"{prefix}{slot}"] = matrix
        about[f"{slot}_key"] = f"{prefix}{slot}"
    adata.uns[key_added or "neighbors"] = about


def gram(view: View, backbone: str | None = None, **options: Any) -> Gram:
    """Return Gram matrices of embeddings and genes over all slides of a view, never all in memory, for `heads.Ridge`.

    Options as in `histostore.cohort.grams.gram`: `genes`, `unit`, `by`, `folds`, `client`, `workers`.
    """
    from histostore.cohort.grams import gram as run

    return run(view, backbone, **options)


def pca(view: View, backbone: str | None = None, *, n_comps: int = 50, **options: Any) -> Components:
    """Return the principal components of a view's embeddings, never all in memory.

    Options (`client`, `workers`) as in `histostore.cohort.pca.pca`; scores are ``found.transform(view.lazy())``.
    """
    from histostore.cohort.pca import pca as run

    return run(view, backbone, n_comps=n_comps, **options)


def nmf(view: View, k: int = 10, *, genes: Sequence[str], **options: Any) -> Programs:
    """Return non-negative programs of some genes over all slides of a view, learned minibatch by minibatch.

    Options (`unit`, `passes`, `seed`) as in `histostore.cohort.nmf.nmf`; `factors` takes ``found.decoder``.
    """
    from histostore.cohort.nmf import nmf as run

    return run(view, k, genes=genes, **options)


def drift(store: Store, a: str, b: str, *, tiles: str | None = None, k: int = 10, seed: int = 0) -> Drift:
    """Compare two backbones on the same tiles: how many nearest neighbours they share, and linear CKA.

    Parameters
    ----------
    a, b
        Backbones that the same tile set was embedded with.
    """
    from histostore.index.drift import compare

    rows = view(store, backbone=[a, b], tiles=tiles)
    first, second = rows.backbones
    return compare(rows.lazy(first), rows.lazy(second), k=k, seed=seed)


def search(store: Store, *, image: Any = None, **options: Any) -> Hits:
    """Find look-alikes of a tile (`slide` and `spot`), a `region`, an image (array or file), or a vector.

    Options as in `histostore.stages.search.search`.
    """
    if image is not None and options.get("embed_with") is None:
        options["backbone"] = options.get("backbone") or only_backbone(store, options.get("tiles"))
        options["embed_with"] = load_for(store, options["backbone"])
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
