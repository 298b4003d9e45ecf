"""``hs.get``: tables out of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.stages.fit import load_head, stale
from histostore.stages.predict import read_prediction
from histostore.stages.training_data import slide_obs
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from histostore.store.store import Store

__all__ = ["head", "obs", "prediction", "slides"]


def obs(store: Store, *, slides: Sequence[str] | None = None, tiles: str | None = None) -> pd.DataFrame:
    """Return the obs table of a cohort: spots, or the tiles of a tile set."""
    return view(store, slides=slides, tiles=tiles).obs()


def slides(store: Store) -> pd.DataFrame:
    """Return the metadata of all slides, one line each, by slide."""
    return slide_obs(view(store))


def prediction(store: Store, slide: str, head: str, *, tiles: str | None = None) -> pd.DataFrame:
    """Return the predictions of a head for one slide, one line per tile and one column per gene."""
    return read_prediction(store, slide, head, tiles=tiles).frame()


def head(store: Store, name: str) -> dict[str, Any]:
    """Return what is known of a saved head: panel, split, scores, what it was trained on, and whether it is stale."""
    fitted, group = load_head(store, name)
    return {**group.attrs, "spec": fitted.spec.to_json(), "chosen": fitted.chosen, "stale": stale(store, group)}
