"""Groups of spots as Loupe Browser imports them: a CSV with ``Barcode`` and one column per grouping.

Loupe takes groups, no numbers: every different text is a cluster of its own, so numbers are put into a few bins first
(`binned`). Barcodes must be those of the run that the .cloupe file is of.
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import DataError, UsageError
from histostore.io.check import first_few, repeated
from histostore.staged import write_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

BARCODE = re.compile(r"[ACGT]{8,}(-\d+)?|s_\d{3}um_\d{5}_\d{5}-\d+")
"""Of Visium, and of the bins of Visium HD."""

BINS = 5


def write_loupe(
    path: Path,
    barcodes: Sequence[str],
    groups: Mapping[str, Sequence[str | None]],
    *,
    overwrite: bool = False,
) -> Path:
    """Write ``Barcode,<name>,…``.

    Parameters
    ----------
    barcodes
        ``n``, as 10x writes them.
    groups
        Name of a grouping -> group of each barcode; None leaves its field empty, and a barcode without any group is
        left out of the file (Loupe shows such spots as unassigned).

    Raises
    ------
    DataError
        Barcodes that are not 10x's, or repeat.
    UsageError
        No grouping, or one that is not of the barcodes' length.
    """
    foreign = [b for b in barcodes if not BARCODE.fullmatch(b)]
    if foreign:
        msg = f"{len(foreign)} of {len(barcodes)} spots have no 10x barcode ({first_few(foreign)}): not for Loupe"
        raise DataError(msg)
    if twice := repeated(list(barcodes)):
        msg = f"{len(twice)} barcodes stand twice ({first_few(twice)}); write one file per slide"
        raise DataError(msg)
    lengths = {name: len(values) for name, values in groups.items()}
    if not lengths or set(lengths.values()) != {len(barcodes)}:
        msg = f"groups of {lengths} for {len(barcodes)} barcodes; give at least one, a value each"
        raise UsageError(msg)
    return write_text(path, _lines(barcodes, groups), overwrite=overwrite)


def _lines(barcodes: Sequence[str], groups: Mapping[str, Sequence[str | None]]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["Barcode", *groups])
    for barcode, *values in zip(barcodes, *groups.values(), strict=True):
        if any(v is not None for v in values):
            writer.writerow([barcode, *("" if v is None else v for v in values)])
    yield buffer.getvalue()


def binned(values: NDArray[np.floating[Any]], bins: int = BINS) -> list[str | None]:
    """Return a group for each of ``(n,)`` numbers: bins of equal count, named so that they sort by value.

    Equal numbers share a bin, so there may be fewer than `bins`; what is not finite has no group.
    """
    values = np.asarray(values, dtype=np.float64)
    there = np.isfinite(values)
    if not there.any():
        return [None] * len(values)
    edges = np.unique(np.quantile(values[there], np.linspace(0, 1, bins + 1)[1:-1]))
    which = np.searchsorted(edges, values[there], side="left")
    kinds, rank = np.unique(which, return_inverse=True)
    known = values[there]
    names = [f"{k + 1}: {known[rank == k].min():.3g} to {known[rank == k].max():.3g}" for k in range(len(kinds))]
    found: list[str | None] = [None] * len(values)
    for at, k in zip(np.flatnonzero(there).tolist(), rank.tolist(), strict=True):
        found[at] = names[k]
    return found
