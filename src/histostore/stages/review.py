"""Tiles for people to look at: those a classifier is surest or least sure of, as patches and as a table to fill in.

The table comes back by `histostore.stages.review_labels`; the labels in it train the next round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.content.calls import call_probability
from histostore.errors import ConflictError, DataError, NotFoundError, UsageError, near
from histostore.pl import patches
from histostore.report import Section, write_report
from histostore.staged import write_text
from histostore.stages.pixels import plan_of
from histostore.stages.predict import read_prediction
from histostore.stages.review_labels import REVIEW
from histostore.stages.source import open_source
from histostore.tables import Report
from histostore.tiles.read import read_tiles
from histostore.tiles.stain import StainFit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from histostore.part import Part
    from histostore.stages.predict import Prediction
    from histostore.store.store import Store

COLUMNS = ("slide", "barcode", "probability", "call", "label", "head", "tiles")
"""Of the table: `label` is empty and to be filled in, all others say what the row is."""

TABLE, PAGE = "review.csv", "review.html"


@dataclass(frozen=True, slots=True, eq=False)
class Review:
    """Tiles to be looked at, those that matter most first."""

    head: str
    table: pd.DataFrame
    """One line per tile, with `COLUMNS`."""
    report: Report
    """How many tiles there were, were left out and why."""
    _store: Store = field(repr=False)
    _places: tuple[tuple[Part, int], ...] = field(repr=False)
    """The slide and the row of each line."""

    def __len__(self) -> int:
        return len(self.table)

    def tiles(self) -> NDArray[np.uint8]:
        """Return the pixels ``(k, px, px, 3)`` uint8 RGB of the lines: as stored, else read from the slides.

        Raises
        ------
        DataError
            The tiles of the slides are not of one size.
        """
        found: list[NDArray[np.uint8]] = [np.zeros(0, np.uint8)] * len(self._places)
        for slide in dict.fromkeys(part.slide for part, _ in self._places):
            at = [k for k, (part, _) in enumerate(self._places) if part.slide == slide]
            part = self._places[at[0]][0]
            pixels = _pixels(self._store, part, np.array([self._places[k][1] for k in at], dtype=np.int64))
            for k, tile in zip(at, pixels, strict=True):
                found[k] = tile
        if len({tile.shape for tile in found}) > 1:
            raise DataError("the tiles of these slides are not of one size; review them slide by slide")
        return np.stack(found)

    def sheets(self, *, per_slide: bool = False) -> dict[str, Figure]:
        """Return contact sheets by name: one of all lines, or one per slide."""
        tiles = self.tiles()
        captions = self.table.rename(columns={"probability": "score"})
        if not per_slide:
            return {REVIEW: patches(tiles, captions, title=f"{self.head}: {len(self)} tiles")}
        slide = self.table["slide"]
        return {
            f"{REVIEW}-{s}": patches(tiles[which], captions[which], title=f"{self.head} on {s}: {which.sum()} tiles")
            for s, which in ((s, (slide == s).to_numpy()) for s in dict.fromkeys(slide))
        }

    def write(self, folder: Path, *, per_slide: bool = False, overwrite: bool = False) -> list[Path]:
        """Write the table to fill in, contact sheets as PNG, and a page with both; return their paths.

        Raises
        ------
        ConflictError
            A table is there already: labels may have been filled in.
        """
        if (folder / TABLE).exists() and not overwrite:
            msg = f"{folder / TABLE} is there already, and may hold labels; choose another folder, or pass --overwrite"
            raise ConflictError(msg)
        sheets = self.sheets(per_slide=per_slide)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, figure in sheets.items():
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi="figure")
        shown = self.table.drop(columns=["label"]).set_index(np.arange(1, len(self) + 1))
        left = [f"{n:,} {what}" for what, n in self.report.counts.items() if n]
        section = Section(
            title=f"{len(self)} tiles to look at",
            text=f"Fill in the column label of {TABLE}; leave it empty where you are not sure. Then "
            f"`histostore annotate S --review {TABLE}`.",
            figures={f"Probability, slide and id of each tile ({name})": figure for name, figure in sheets.items()},
            tables={"The same tiles": shown},
            notes=[", ".join(left)],
        )
        page = write_report(folder / PAGE, title=f"Review of {self.head}", store=self._store.name, sections=[section])
        # last: where it is, all of the round is
        csv = write_text(folder / TABLE, [self.table.to_csv(index=False, lineterminator="\n")], overwrite=overwrite)
        return [csv, page, *written]


def review(
    store: Store,
    head: str,
    *,
    k: int = 50,
    per_slide: bool = False,
    uncertain: bool = False,
    of: str | None = None,
    slides: Sequence[str] | None = None,
    tiles: str | None = None,
    again: bool = False,
    name: str = REVIEW,
) -> Review:
    """Choose the tiles of a classifier's predictions that a person should look at.

    Parameters
    ----------
    head
        A saved classifier that `predict` was run with.
    k
        How many tiles, of all slides together or of each (`per_slide`).
    uncertain
        Those nearest to the threshold (of more than two classes: with the least between the two likeliest) instead of
        those with the highest probability.
    of
        The class whose probability counts; by default the positive of two, of more the likeliest of each tile.
    slides
        Which slides; by default all that have predictions of this head.
    tiles
        Predictions for which tile set, where there are several.
    again
        Also tiles that were reviewed before (have a value in the obs column `name`).

    Returns
    -------
    Review
        Tiles in the order of interest, ties by slide and id. Unreadable tiles have no probability and are left out, and
        counted.

    Raises
    ------
    NotFoundError
        No slide has predictions of this head, or it has no such class.
    UsageError
        The head predicts numbers or whole slides.
    """
    if k < 1:
        raise UsageError(f"k is {k}: give 1 or more")
    if of is not None and uncertain:
        raise UsageError("uncertain tiles are between classes: leave out the class")
    chosen = list(slides) if slides is not None else _predicted(store, head)
    counts = {"tiles": 0, "unreadable": 0, "reviewed before": 0}
    lines: list[pd.DataFrame] = []
    parts: dict[str, Part] = {}
    for slide in chosen:
        found = read_prediction(store, slide, head, tiles=tiles)
        part, table = _lines(found, head, of, uncertain=uncertain)
        before = _reviewed(part, name) if not again else np.zeros(len(table), dtype=bool)
        known = table["probability"].notna().to_numpy()
        counts["tiles"] += len(table)
        counts["unreadable"] += int((~known).sum())
        counts["reviewed before"] += int((known & before).sum())
        lines.append(_first(table[known & ~before], k if per_slide else None))
        parts[slide] = part
    table = pd.concat(lines, ignore_index=True) if per_slide else _first(pd.concat(lines, ignore_index=True), k)
    if not len(table):
        said = ", ".join(f"{n} {what}" for what, n in counts.items())
        raise DataError(f"no tile is left to review ({said}); with --again those that were reviewed before")
    places = tuple((parts[s], int(r)) for s, r in zip(table["slide"], table["row"], strict=True))
    return Review(head, table[list(COLUMNS)].reset_index(drop=True), Report(counts), store, places)


def _predicted(store: Store, head: str) -> list[str]:
    names = {s: {r.name.rpartition("/")[2] for r in store.slide(s).of_kind("predictions")} for s in store.slides()}
    found = [s for s, heads in names.items() if head in heads]
    if not found:
        known = sorted(set().union(*names.values())) if names else []
        raise NotFoundError(f"no slide has predictions of '{head}'{near(head, known)}; run `histostore predict` first")
    return found


def _lines(found: Prediction, head: str, of: str | None, *, uncertain: bool) -> tuple[Part, pd.DataFrame]:
    """Return the slide and one line per tile: the table's columns, the row and what it is ranked by."""
    if found.threshold is None or found.per_slide:
        what = "numbers" if found.threshold is None else "whole slides"
        raise UsageError(f"head '{head}' predicts {what}: only a classifier of tiles can be reviewed")
    if of is not None and of not in found.names:
        raise NotFoundError(
            f"head '{head}' has no class '{of}'{near(of, found.names)}; it has {', '.join(found.names)}"
        )
    values = found.values.astype(np.float64)
    probability = call_probability(values) if of is None else values[:, found.names.index(of)]
    part = found.view.parts[0]
    table = pd.DataFrame(
        {
            "slide": part.slide,
            "barcode": part.column("barcode").astype(str),
            "probability": [float(f"{p:.6g}") for p in probability],
            "call": found.calls(),
            "label": "",
            "head": head,
            "tiles": part.tiles.name if part.tiles is not None else "",
            "row": np.arange(part.n_all) if part.rows is None else part.rows,
            "rank": _doubt(values, found.threshold) if uncertain else -probability,
        }
    )
    return part, table


def _doubt(values: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """Return how clear each row is ``(n,)``: 0 for one that could as well be another class."""
    if values.shape[1] == 2:
        return np.abs(values[:, 1] - threshold)
    best = np.sort(values, axis=1)
    margin: NDArray[np.float64] = best[:, -1] - best[:, -2]
    return margin


def _first(table: pd.DataFrame, k: int | None) -> pd.DataFrame:
    ordered = table.sort_values(["rank", "slide", "barcode"], kind="stable")
    return ordered if k is None else ordered.head(k)


def _reviewed(part: Part, name: str) -> NDArray[np.bool_]:
    if name not in part.columns():
        return np.zeros(len(part), dtype=bool)
    return np.array([v is not None and v != "" for v in part.column(name)], dtype=bool)


def _pixels(store: Store, part: Part, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return the pixels of some tiles of a slide, in the order asked for."""
    assert part.tiles is not None
    stored = part.manifest.get("pixels", part.tiles.name)
    if stored is not None:
        pixels: NDArray[np.uint8] = part.group(stored).array("pixels").read(rows)
        return pixels
    tiles = part.group(part.tiles)
    stain = StainFit.from_json(tiles.attrs["stain"]) if "stain" in tiles.attrs else None
    with open_source(store, part.manifest) as image:
        return read_tiles(image, plan_of(tiles.attrs), tiles.read("geometry")[rows, 2:4], stain=stain)[0]
