"""Tiles by likeness: index, search, neighbour graphs, and how far two backbones agree on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from histostore.backbones.tuned import load_for
from histostore.errors import NotFoundError, UsageError, near
from histostore.index.spec import IndexSpec
from histostore.stages.index import IndexResult
from histostore.stages.index import index as _index
from histostore.stages.search import only_backbone
from histostore.stages.search import search as _search
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from distributed import Client

    from histostore.index.drift import Drift
    from histostore.index.spec import Device, Kind, Metric
    from histostore.progress import Progress
    from histostore.stages.hits import Hits
    from histostore.store.store import Store


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


def drift(store: Store, a: str, b: str, *, tiles: str | None = None, k: int = 10, seed: int = 0) -> Drift:
    """Compare two backbones on the same tiles: how many nearest neighbours they share, and linear CKA.

    Parameters
    ----------
    a, b
        Backbones that the same tile set was embedded with.

    Raises
    ------
    UsageError
        They are one.
    """
    from histostore.index.drift import compare

    rows = view(store, backbone=[a, b], tiles=tiles)
    if len(rows.backbones) == 1:
        raise UsageError(f"'{a}' and '{b}' are the same embeddings: name two backbones")
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
