"""Predictions drawn on the H&E: values, probabilities and called classes, at spots or as a heat map of a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.errors import NotFoundError, UsageError, near
from histostore.heads.panels import targets as in_unit
from histostore.pl import spatial, tile_map, truth_and_prediction
from histostore.stages.fit import load_head
from histostore.stages.pictures import UNITS
from histostore.stages.predict import read_prediction

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from histostore.head_specs import HeadSpec
    from histostore.stages.predict import Prediction
    from histostore.store.store import Store

SHOWN = 4
CALL = "call"


def prediction_maps(
    store: Store,
    slides: Sequence[str],
    head: str,
    folder: Path,
    *,
    tiles: str | None = None,
    names: Sequence[str] | None = None,
) -> list[Path]:
    """Draw what a head predicts on the tissue of each slide, one PNG per slide and value.

    Genes stand beside the measured ones, in the head's unit, where the slide has counts. A classifier gives a map of
    the classes it calls and one of the probability of the positive class (of several classes: of each), from 0 to 1.
    Tiles of a grid are drawn as the squares they are, spots as circles.

    Parameters
    ----------
    names
        Which of the predicted values; by default the first four, or of two classes the positive one.

    Raises
    ------
    UsageError
        The head predicts whole slides.
    """
    spec = load_head(store, head)[0].spec
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for slide in slides:
        found = read_prediction(store, slide, head, tiles=tiles)
        if found.per_slide:
            raise UsageError(f"head '{head}' predicts whole slides: there is nothing to draw on them")
        for name in names or ():
            if name not in found.names:
                raise NotFoundError(f"head '{head}' does not predict '{name}'{near(name, found.names)}")
        place = _Place.of(found, slide)
        stem = f"{slide}-{head}"
        if found.threshold is not None:
            path = folder / f"{stem}-{CALL}.png"
            place.classes(found.calls(), found.names, title=f"{head} called on {slide}", save=path)
            written.append(path)
        for name in names or _default(found):
            # a gene may be called what it likes
            path = folder / f"{stem}-{name.replace('/', '_')}.png"
            column = found.values[:, found.names.index(name)].astype(np.float64)
            if found.threshold is not None:
                label = f"probability of {name}"
                place.numbers(column, title=f"{name} on {slide}", save=path, label=label, vmin=0.0, vmax=1.0)
            elif not _beside_measured(found, spec, name, column, slide, path):
                title = f"{name} predicted on {slide}"
                place.numbers(column, title=title, label=_unit(spec), save=path)
            written.append(path)
    return written


def _default(found: Prediction) -> Sequence[str]:
    binary = found.threshold is not None and len(found.names) == 2
    return found.names[1:] if binary else found.names[:SHOWN]


def _unit(spec: HeadSpec) -> str:
    return UNITS[spec.target] if spec.task == "genes" else ""


def _beside_measured(
    found: Prediction, spec: HeadSpec, gene: str, values: np.ndarray[Any, Any], slide: str, path: Path
) -> bool:
    """Draw a gene beside its measured values, where there are any; say whether there were."""
    if spec.task != "genes" or found.view.parts[0].expression is None:
        return False
    rows = found.view.with_counts()
    genes = rows.counts()
    if gene not in genes.symbols:
        return False
    column = np.array([genes.symbols.index(gene)])
    measured = pd.Series(in_unit(genes.matrix, column, spec.target)[:, 0].astype(np.float64), index=rows.names())
    predicted = pd.Series(values, index=found.view.names()).reindex(measured.index)
    adata = rows.to_adata(counts=False)
    truth_and_prediction(
        adata, gene, slide=slide, truth=measured, prediction=predicted, label=_unit(spec), save=path
    )  # fmt: skip
    return True


class _Place:
    """Where one slide's values are drawn: tiles of a grid on the overview, anything else at its points."""

    def __init__(self, adata: AnnData | None, grid: dict[str, Any], slide: str) -> None:
        self.adata, self.grid, self.slide = adata, grid, slide

    @classmethod
    def of(cls, found: Prediction, slide: str) -> _Place:
        part = found.view.parts[0]
        if part.tiles is None or part.the_points.assay != "grid":
            return cls(found.view.to_adata(counts=False), {}, slide)
        source = part.group(part.manifest.find("source", "image"))
        tiles = part.group(part.tiles)
        overview = source.read("thumbnail")
        grid = {
            "overview": overview,
            "downsample": source.attrs["width"] / overview.shape[1],
            "xy0": tiles.read("geometry")[slice(None) if part.rows is None else part.rows, 2:4],
            "edge0": float(tiles.attrs["edge0"]),
            "mpp0": float(part.meta["mpp"]),
        }
        return cls(None, grid, slide)

    def numbers(self, values: np.ndarray[Any, Any], *, title: str, save: Path, label: str = "", **limits: Any) -> None:
        if self.adata is None:
            tile_map(values=values, title=title, label=label, save=save, **limits, **self.grid)
        else:
            spatial(self.adata, values, slide=self.slide, title=title, label=label, save=save, **limits)

    def classes(self, calls: np.ndarray[Any, Any], names: Sequence[str], *, title: str, save: Path) -> None:
        if self.adata is None:
            tile_map(values=calls, classes=names, title=title, save=save, **self.grid)
        else:
            # as a column, so that a class has its colour whether it is called here or not
            column = f"{CALL} of {title}"
            self.adata.obs[column] = pd.Categorical(calls, categories=list(names))
            spatial(self.adata, column, slide=self.slide, title=title, save=save)
