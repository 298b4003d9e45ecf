"""Rows of an IVF index as codes (the number of the cell, then the row as the cell keeps it), made block by block.

Whoever makes them ends with the same bytes on machines of one `engine`: rows are cut into fixed parts, and each part is
one call of FAISS on one thread. On several threads the last bits of its matrix products depend on how many there are,
and with them the cell of a row that lies between two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.index.ann import of_length_one
from histostore.index.engine import faiss_module
from histostore.index.vectors import row_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.index.spec import Metric
    from histostore.index.vectors import Vectors

type EncodeRows = Callable[[Any, Metric, NDArray[np.int64]], Iterator[NDArray[np.uint8]]]
"""Of a trained, empty index, its metric and the numbers of the rows (ascending): their codes, in order."""

BLOCK_ROWS = 32_768
"""Rows that are encoded and added at a time: what a task is."""
PART_ROWS = 4096
PROBE_ROWS = 256


def encode_here(values: Vectors) -> EncodeRows:
    """Return what encodes rows of an array in this process."""

    def run(index: Any, metric: Metric, rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        for _, block in row_blocks(values, rows, BLOCK_ROWS):
            yield encode(index, block, metric)

    return run


def encode(index: Any, values: NDArray[np.floating], metric: Metric) -> NDArray[np.uint8]:
    """Return the codes ``(n, width_of(index))`` of rows ``(n, d)``; the index is not changed.

    Uses as many threads as FAISS would, each on parts of its own.
    """
    starts = range(0, len(values), PART_ROWS)
    codes = np.empty((len(values), width_of(index)), dtype=np.uint8)

    def part(start: int) -> None:
        some = slice(start, start + PART_ROWS)
        codes[some] = index.sa_encode(of_length_one(values[some], metric))

    with _threads(len(starts)) as pool:
        list(pool.map(part, starts))
    return codes


def add_codes(index: Any, codes: NDArray[np.uint8]) -> None:
    """Add rows to an index by their codes, with the next numbers."""
    index.add_sa_codes(np.ascontiguousarray(codes))


def width_of(index: Any) -> int:
    """Return the bytes of one row's code."""
    return int(index.sa_code_size())


def engine(index: Any) -> dict[str, str]:
    """Return what decides the codes that an index gives here: FAISS's version, and how this machine rounds.

    The latter is a hash of distances and codes of drawn rows, to the last bit: processors of another kind, for which
    the matrix product is another program, have another one.
    """
    rows = np.random.default_rng(0).standard_normal((PROBE_ROWS, int(index.d)), dtype=np.float32)
    sha = hashlib.sha256()
    with _threads(1) as pool:
        distances, cells = pool.submit(index.quantizer.search, rows, 1).result()
        codes = pool.submit(index.sa_encode, rows).result()
    for found in (distances, cells, codes):
        sha.update(np.ascontiguousarray(found).data)
    return {"faiss": str(faiss_module().__version__), "rounding": sha.hexdigest()[:16]}


def to_bytes(index: Any) -> bytes:
    """Return an index as the bytes of its file."""
    data: bytes = faiss_module().serialize_index(index).tobytes()
    return data


def from_bytes(data: bytes) -> Any:
    """Return the index of such bytes, which must have been checked: FAISS trusts what it reads."""
    return faiss_module().deserialize_index(np.frombuffer(data, dtype=np.uint8))


def _threads(most: int) -> ThreadPoolExecutor:
    """Return threads in which FAISS starts no further ones (its setting is each thread's own)."""
    faiss = faiss_module()
    n = max(1, min(most, int(faiss.omp_get_max_threads())))
    return ThreadPoolExecutor(n, initializer=faiss.omp_set_num_threads, initargs=(1,))
