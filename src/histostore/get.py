"""``hs.get``: tables out of a store, embeddings as files of other tools, and which backbones there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from histostore.inventory import backbones_known, backbones_used, chosen_slides
from histostore.stages.fit import load_head, stale
from histostore.stages.predict import read_prediction
from histostore.store.catalog import look, worth_it
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from histostore.stages.result import StageResult
    from histostore.store.store import Store

__all__ = ["export_features", "head", "models", "obs", "prediction", "slides"]

_COLUMNS = {"dim": "Int64", "input_px": "Int64", "mpp": "float64", "gated": "boolean"}
"""Types that can say that nothing is known."""


def obs(store: Store, *, slides: Sequence[str] | None = None, tiles: str | None = None) -> pd.DataFrame:
    """Return the obs table of a cohort: spots, or the tiles of a tile set."""
    return view(store, slides=slides, tiles=tiles).obs()


def slides(store: Store) -> pd.DataFrame:
    """Return the metadata of all slides, one line each, by slide: of those without spots or tiles too."""
    catalog = look(store, keep=worth_it(store))
    there = catalog.slides()
    lines = [{"slide": slide, **of} for slide, of in zip(there, catalog.fields(there), strict=True)]
    return pd.DataFrame(lines, index=pd.Index(there, dtype=object))


def prediction(store: Store, slide: str, head: str, *, tiles: str | None = None) -> pd.DataFrame:
    """Return the predictions of a head for one slide, one line per tile and one column per gene."""
    return read_prediction(store, slide, head, tiles=tiles).frame()


def head(store: Store, name: str) -> dict[str, Any]:
    """Return what is known of a saved head: panel, split, scores, what it was trained on, and whether it is stale."""
    fitted, group = load_head(store, name)
    return {**group.attrs, "spec": fitted.spec.to_json(), "chosen": fitted.chosen, "stale": stale(store, group)}


def models(store: Store | None = None) -> pd.DataFrame:
    """Return the catalogue of backbones, one line each, by name.

    Any ``timm/NAME``, ``torchvision/NAME.WEIGHTS``, ``file:PATH#ARCHITECTURE`` and ``module.path:callable`` can be
    used too.

    Parameters
    ----------
    store
        Also say on how many of its slides each is used, tuned and imported ones included.

    Returns
    -------
    DataFrame
        ``source``, ``dim``, ``input_px``, ``mpp`` (µm per pixel they were trained at, NaN where nobody says it),
        ``licence``, ``gated``, ``available`` (``here``, ``needs download``, …) and, of a store, ``slides``. A backbone
        of the store that no catalogue knows has its name and ``slides`` alone.
    """
    used = backbones_used(store) if store is not None else {}
    table = pd.DataFrame(backbones_known(used)).set_index("name").astype(_COLUMNS)
    if store is None:
        return table.drop(columns="slides")
    return table.reindex([*table.index, *sorted(set(used) - set(table.index))]).assign(
        slides=lambda t: [used.get(name, 0) for name in t.index]
    )


def export_features(
    store: Store,
    folder: str | Path,
    *,
    backbone: str,
    format: str,
    tiles: str | None = None,
    slides: str | Sequence[str] | None = None,
    overwrite: bool = False,
) -> list[StageResult]:
    """Write embeddings as files of another tool, one per slide, like ``<folder>/<slide>.h5``.

    The first slide that fails ends it; files that were written until then stay.

    Parameters
    ----------
    folder
        Made where there is none.
    backbone, tiles
        Which embeddings; `tiles` may be left out where there is one set of them.
    format
        ``trident``, ``clam``, ``slide2vec``, ``stamp`` or ``parquet``. What was imported from that tool is written as
        it came, to the bit; for any other, places are converted (see `histostore.stages.export_features`).
    slides
        Only these; all by default.
    overwrite
        Replace files that are there.

    Returns
    -------
    list of StageResult
        One per slide, in order; its report counts unreadable tiles (rows of NaN) and coordinates that had to be
        rounded, its notes name the files.

    Raises
    ------
    UsageError
        There is no such format, or the store has no slides.
    NotFoundError
        A slide, or its embeddings of that name, are not there.
    ConflictError
        A file is there and `overwrite` is false.
    """
    from histostore.exchange import exports, finished  # brings h5py

    chosen = chosen_slides(store, slides)
    return finished(exports(store, chosen, folder, backbone=backbone, format=format, tiles=tiles, overwrite=overwrite))
