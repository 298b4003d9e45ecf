"""What a head sees of the embeddings: spatial context and per-slide scale, as pure functions of rows.

No labels are used, so these may be computed over training and test rows together: every step stays within one slide.
"""

from __future__ import annotations

import shutil
import tempfile
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from histostore.errors import DataError, UsageError
from histostore.heads.estimator import as_rows, as_table, finite_rows
from histostore.heads.rows import Mapped, RowSource, blocks
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from histostore.head_specs import FeatureSpec
    from histostore.heads.rows import Table

REACH = 4.0
"""Neighbours farther than this many sigmas weigh nothing (e⁻⁸ of the centre)."""


@overload
def build(
    spec: FeatureSpec, X: NDArray[Any], slide: NDArray[Any], xy_um: NDArray[Any] | None = None
) -> tuple[NDArray[np.float32], Report]: ...
@overload
def build(
    spec: FeatureSpec, X: Table, slide: NDArray[Any], xy_um: NDArray[Any] | None = None
) -> tuple[Table, Report]: ...
def build(spec: FeatureSpec, X: Table, slide: NDArray[Any], xy_um: NDArray[Any] | None = None) -> tuple[Table, Report]:
    """Return the features of a spec.

    Parameters
    ----------
    spec
        Context is joined first, then everything is standardised.
    X
        ``(n, d)`` embeddings; a row with NaN (an unreadable tile) stays NaN and is no one's neighbour.
    slide
        ``(n,)`` slide of each row. Give all rows of a slide: both steps look at all of them.
    xy_um
        ``(n, 2)`` centres in µm on that slide; needed for context.

    Returns
    -------
    features
        ``(n, d * (1 + len(context_um)))`` float32. Of a row source, a row source: standardised as its rows are read,
        while context is made slide by slide and written to a temporary file of that size, which goes with it.
    report
        Counts of unreadable rows (but of a source without context: that would be one more pass) and of rows without a
        neighbour.
    """
    X = as_table(X, "X")
    if spec.context_um and xy_um is None:
        msg = "spatial context needs positions in µm and there are none"
        raise UsageError(msg)
    if not isinstance(X, RowSource):
        return _build(spec, X, slide, xy_um)
    if spec.context_um:
        return _spilled(spec, X, slide, xy_um)
    return (Standardised(X, slide) if spec.standardise == "slide" else X), Report()


def _build(
    spec: FeatureSpec, X: NDArray[Any], slide: NDArray[Any], xy_um: NDArray[Any] | None
) -> tuple[NDArray[np.float32], Report]:
    counts = {"unreadable": int((~finite_rows(X)).sum())}
    out = X.astype(np.float32, copy=False)
    if xy_um is not None and spec.context_um:
        parts = [out]
        for sigma in spec.context_um:
            part, alone = spatial_context(X, slide, xy_um, sigma)
            parts.append(part)
            counts[f"no neighbour within {REACH * sigma:g} µm"] = alone
        out = np.concatenate(parts, axis=1)
    if spec.standardise == "slide":
        out = standardise(out, slide)
    return out, Report({k: v for k, v in counts.items() if v})


def _spilled(
    spec: FeatureSpec, X: RowSource, slide: NDArray[Any], xy_um: NDArray[Any] | None
) -> tuple[RowSource, Report]:
    """Return features made one slide at a time, in a file that vanishes when nobody reads it any more."""
    shape = (len(X), X.shape[1] * (1 + len(spec.context_um)))
    size, free = 4 * shape[0] * shape[1], shutil.disk_usage(tempfile.gettempdir()).free
    if size > free:
        msg = f"features of {shape[0]} x {shape[1]} take {size / 2**30:.1f} GiB in {tempfile.gettempdir()}, which has "
        raise UsageError(msg + f"{free / 2**30:.1f} GiB free: set TMPDIR to a larger disk, or leave out the context")
    with tempfile.TemporaryFile() as file:  # the mapping outlives it
        out = np.memmap(file, np.float32, "w+", shape=shape)
    report = Report()
    for rows in _by_slide(slide, np.ones(len(X), bool)):
        there = None if xy_um is None else np.asarray(xy_um)[rows]
        out[rows], said = _build(spec, X[rows], np.asarray(slide)[rows], there)
        report = report.merged(said)
    return Mapped(out), report


class Standardised(RowSource):
    """Rows with zero mean and unit variance over their slide, as of `standardise`; two passes find the moments."""

    def __init__(self, source: RowSource, slide: NDArray[Any]) -> None:
        self.source = source
        names, self.slide = np.unique(np.asarray(slide).astype(str), return_inverse=True)
        size = (len(names), source.shape[1])
        n, total, squares, largest = np.zeros((len(names), 1)), np.zeros(size), np.zeros(size), np.zeros(size)
        for at, part in self._parts():
            n[at] += len(part)
            total[at] += part.sum(0)
            np.maximum(largest[at], np.abs(part).max(0), out=largest[at])
        self.mean = total / np.maximum(n, 1)
        for at, part in self._parts():
            squares[at] += ((part - self.mean[at]) ** 2).sum(0)
        spread = np.sqrt(squares / np.maximum(n, 1))
        constant = spread <= 1e-7 * largest
        self.divisor = np.where(constant, np.inf, spread)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(np.float32)

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[Any]:
        out = self.source[rows].astype(np.float32)
        of = self.slide[rows]
        for at in np.unique(of):
            here = of == at
            # a constant feature is divided by infinity: zero
            out[here] = (out[here] - self.mean[at]) / self.divisor[at]
        out[~finite_rows(out)] = np.nan
        return out

    def _parts(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Yield (slide, its readable rows) block by block, in float64."""
        for rows, block in blocks(self.source):
            of = np.where(finite_rows(block), self.slide[rows], -1)
            for at in np.unique(of[of >= 0]):
                yield int(at), block[of == at].astype(np.float64)


def spatial_context(
    X: NDArray[Any], slide: NDArray[Any], xy_um: NDArray[Any], sigma: float
) -> tuple[NDArray[np.float32], int]:
    """Return the Gaussian-weighted mean of the neighbours' embeddings.

    The row itself is left out (it stands beside its context); neighbours are the other rows of the same slide within
    `REACH` sigmas that have an embedding, weighed by exp(-d²/2σ²). A row without any gets its own embedding.

    Returns
    -------
    context
        ``(n, d)`` float32; NaN where the row itself is NaN.
    alone
        Rows that got their own embedding.
    """
    if not (np.isfinite(sigma) and sigma > 0):
        msg = f"context sigma is {sigma}: give a positive number of µm"
        raise UsageError(msg)
    X, xy = as_rows(X, "X").astype(np.float32, copy=False), check_positions(xy_um, len(X))
    good = finite_rows(X)
    out = np.full(X.shape, np.nan, np.float32)
    alone = 0
    for rows in _by_slide(slide, good):
        tree = cKDTree(xy[rows])
        near = tree.sparse_distance_matrix(tree, REACH * sigma, output_type="coo_matrix")
        other = near.row != near.col
        weights = np.exp(-0.5 * (near.data[other] / sigma) ** 2)
        table = sp.csr_array((weights, (near.row[other], near.col[other])), shape=(len(rows), len(rows)))
        total = np.asarray(table.sum(axis=1)).ravel()
        mean = (table @ X[rows]) / np.where(total > 0, total, 1.0)[:, None]
        mean[total == 0] = X[rows][total == 0]
        alone += int((total == 0).sum())
        out[rows] = mean
    return out, alone


def standardise(X: NDArray[Any], slide: NDArray[Any]) -> NDArray[np.float32]:
    """Return every feature with zero mean and unit variance over its slide's rows that have an embedding.

    ``(n, d)`` float32. A feature that is constant on a slide, and so every feature of a slide of one row, is zero.
    """
    X = as_rows(X, "X")
    out = np.full(X.shape, np.nan, np.float32)
    for rows in _by_slide(slide, finite_rows(X)):
        part = X[rows].astype(np.float64)
        part -= part.mean(0)
        spread = part.std(0)
        constant = spread <= 1e-7 * np.abs(X[rows]).max(0).astype(np.float64)
        out[rows] = np.where(constant, 0.0, part / np.where(constant, 1.0, spread))
    return out


def section_positions(xy_um: NDArray[Any], slide: NDArray[Any]) -> NDArray[np.float64]:
    """Return ``(n, 2)`` positions about the centroid of their slide's rows, in µm.

    Replicate sections lie anywhere on their images; centring brings them roughly on top of each other, which is all
    that the position baseline knows of them.
    """
    xy = check_positions(xy_um, len(slide))
    out = np.empty_like(xy)
    for rows in _by_slide(slide, np.ones(len(xy), bool)):
        out[rows] = xy[rows] - xy[rows].mean(0)
    return out


def check_positions(xy_um: NDArray[Any], n: int) -> NDArray[np.float64]:
    """Return ``(n, 2)`` finite float64 positions, or raise."""
    xy = np.asarray(xy_um, dtype=np.float64)
    if xy.shape != (n, 2):
        msg = f"positions have shape {xy.shape} for {n} rows: give (n, 2)"
        raise UsageError(msg)
    bad = int((~np.isfinite(xy)).any(axis=1).sum())
    if bad:
        msg = f"{bad} of {n} rows have no finite position"
        raise DataError(msg)
    return xy


def _by_slide(slide: NDArray[Any], keep: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    slide = np.asarray(slide).astype(str)
    if slide.shape != keep.shape:
        msg = f"slide has shape {slide.shape} for {len(keep)} rows"
        raise UsageError(msg)
    for name in np.unique(slide[keep]):
        yield np.flatnonzero(keep & (slide == name))
