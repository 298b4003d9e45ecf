"""What points and counts must satisfy before anything is done with them: one clear line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from histostore.errors import DataError
from histostore.ids import bad_point_id
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from histostore.tables import Counts

INT32_MAX = 2**31 - 1


def first_few(values: Iterable[object], n: int = 3) -> str:
    """Return the first `n` values as text: ``'a', 'b', 'c', …``."""
    shown: list[str] = []
    for value in values:
        if len(shown) == n:
            return ", ".join(shown) + ", …"
        shown.append(repr(str(value)) if len(str(value)) <= 60 else f"{str(value)[:57]!r}…")
    return ", ".join(shown)


def repeated(values: Sequence[str]) -> list[str]:
    """Return the values that occur more than once, in order of their second occurrence."""
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for value in values:
        if value in seen:
            twice[value] = None
        seen.add(value)
    return list(twice)


def check_not_empty(rows: Collection[object], what: str, where: object) -> None:
    """Refuse a file that holds none of `what`.

    An assay file without spots or genes is taken for a wrong or cut file; a slide without an assay is ingested
    without one.
    """
    if not len(rows):
        msg = f"{where} holds 0 {what}; give the right file, or ingest the slide without it"
        raise DataError(msg)


def check_point_ids(ids: Sequence[str], where: object) -> None:
    """Refuse repeated or unprintable point ids (barcodes)."""
    for row, point_id in enumerate(ids):
        reason = bad_point_id(point_id)
        if reason:
            msg = f"{where}: id of row {row + 1} is invalid ({reason}): {first_few([point_id])}"
            raise DataError(msg)
    twice = repeated(ids)
    if twice:
        msg = f"{where}: {len(twice)} duplicate barcodes: {first_few(twice)}; each spot may occur once"
        raise DataError(msg)


def check_gene_ids(ids: Sequence[str], where: object) -> None:
    """Refuse repeated or empty gene ids (symbols beside an id may repeat)."""
    if "" in ids:
        msg = f"{where}: gene {list(ids).index('') + 1} has no name"
        raise DataError(msg)
    twice = repeated(ids)
    if twice:
        msg = f"{where}: {len(twice)} duplicate gene ids: {first_few(twice)}; merge or rename them first"
        raise DataError(msg)


def check_xy(xy: NDArray[np.float64], ids: Sequence[str], where: object) -> None:
    """Refuse coordinates that are not ``(n, 2)`` or not finite; the rows are listed."""
    if xy.shape != (len(ids), 2):
        msg = f"{where}: coordinates have shape {xy.shape}, not ({len(ids)}, 2): one (x, y) per spot"
        raise DataError(msg)
    bad = np.flatnonzero(~np.isfinite(xy).all(axis=1))
    if bad.size:
        rows = [int(row) for row in bad[:3]]
        named = ", ".join(f"row {row + 1} ({first_few([ids[row]])})" for row in rows)
        more = f" and {bad.size - 3} more" if bad.size > 3 else ""
        msg = f"{where}: {bad.size} spots have NaN or infinite coordinates: {named}{more}"
        raise DataError(msg)


def check_csr(
    data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], shape: tuple[int, int], where: object
) -> None:
    """Refuse CSR parts that point outside `shape`; readers take them as they are, and read wild memory."""
    n, width = shape
    if len(indptr) != n + 1:
        msg = f"{where}: invalid CSR: indptr has {len(indptr)} entries for {n} rows"
        raise DataError(msg)
    steps = np.diff(np.asarray(indptr, dtype=np.int64))
    if indptr[0] != 0 or (steps < 0).any():
        row = int(np.argmax(steps < 0)) if (steps < 0).any() else 0
        msg = f"{where}: invalid CSR at row {row}: indptr does not grow from 0"
        raise DataError(msg)
    if int(indptr[-1]) != len(indices) or len(indices) != len(data):
        msg = (
            f"{where}: invalid CSR at row {n - 1}: indptr ends at {int(indptr[-1])}, "
            f"with {len(indices)} indices and {len(data)} values"
        )
        raise DataError(msg)
    bad = np.flatnonzero((np.asarray(indices) < 0) | (np.asarray(indices) >= width))
    if bad.size:
        row = int(np.searchsorted(indptr, bad[0], side="right")) - 1
        msg = f"{where}: invalid CSR at row {row}: column {int(indices[bad[0]])} of {width}"
        raise DataError(msg)


def is_whole(values: NDArray[Any]) -> bool:
    """Whether all values are whole numbers (NaN is not)."""
    return bool(values.dtype.kind in "iub" or np.array_equal(values, np.round(values)))


def as_counts(
    matrix: sp.sparray | sp.spmatrix | NDArray[Any], where: object, *, allow_normalised: bool = False
) -> tuple[sp.csr_array, bool]:
    """Return a canonical CSR of int32 counts, or of float32 values where normalised ones were let in.

    Parameters
    ----------
    matrix
        ``(n, g)`` spots x genes.
    where
        File and layer, for the message.
    allow_normalised
        Take values that are not whole or negative (log counts, scaled data) as they are.

    Returns
    -------
    matrix
        Sorted, without repeated entries or stored zeros.
    normalised
        Whether the values are not counts.

    Raises
    ------
    DataError
        NaN, negative or fractional values, or counts beyond int32.
    """
    csr = sp.csr_array(matrix, copy=sp.issparse(matrix))
    check_csr(csr.data, csr.indices, csr.indptr, csr.shape, where)
    stored = csr.nnz
    csr.sum_duplicates()
    if csr.nnz != stored:
        msg = f"{where}: {stored - csr.nnz} entries of the matrix are stored twice"
        raise DataError(msg)
    csr.eliminate_zeros()
    bad = ~np.isfinite(csr.data) if csr.dtype.kind == "f" else np.zeros(0, dtype=bool)
    if bad.any():
        msg = f"{where}: {int(bad.sum())} values are NaN or infinite, the first at row {_row_of(csr, bad)}"
        raise DataError(msg)
    negative = csr.data < 0
    whole = is_whole(csr.data)
    if allow_normalised and (negative.any() or not whole):
        return csr.astype(np.float32), True
    if negative.any():
        msg = f"{where}: {int(negative.sum())} counts are negative, the first at row {_row_of(csr, negative)}"
        raise DataError(msg)
    if not whole:
        fractional = csr.data != np.round(csr.data)
        msg = (
            f"{where}: {int(fractional.sum())} of {csr.nnz} values are not whole numbers "
            f"({csr.data[fractional][0]:g} at row {_row_of(csr, fractional)}): not raw counts; "
            "give raw counts or pass allow_normalised"
        )
        raise DataError(msg)
    if csr.nnz and csr.data.max() > INT32_MAX:
        msg = f"{where}: a count of {csr.data.max()} is beyond int32"
        raise DataError(msg)
    return csr.astype(np.int32), False


def _row_of(csr: sp.csr_array, flags: NDArray[np.bool_]) -> int:
    return int(np.searchsorted(csr.indptr, np.argmax(flags), side="right"))


def describe_counts(counts: Counts) -> Report:
    """Count spots without any count and genes that never vary: kept, but worth a word."""
    csc = counts.matrix.tocsc()
    n = len(counts)
    per_spot = np.diff(counts.matrix.indptr)
    per_gene = np.diff(csc.indptr)
    constant = int((per_gene == 0).sum())
    for gene in np.flatnonzero(per_gene == n) if n else ():
        values = csc.data[csc.indptr[gene] : csc.indptr[gene + 1]]
        constant += bool((values == values[0]).all())
    found = {"spots_without_counts": int((per_spot == 0).sum()), "constant_genes": constant}
    words = {
        "spots_without_counts": "spots have no counts at all",
        "constant_genes": "genes have one value in all spots",
    }
    return Report(found, tuple(f"{n} {words[key]}" for key, n in found.items() if n))
