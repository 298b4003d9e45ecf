"""What readers hand over: points and counts of one slide, as plain values keyed by id."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse as sp
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Places on one slide that have an id: spots of an assay, cells, given points, cells of a grid."""

    ids: tuple[str, ...]
    """Unique; barcodes, ``25x13``, or given."""
    xy: NDArray[np.float64]
    """``(n, 2)`` centres, (x, y), in level-0 pixels, finite."""
    in_tissue: NDArray[np.bool_] | None = None
    """``(n,)`` what the assay's own table says."""
    array_row: NDArray[np.int32] | None = None
    array_col: NDArray[np.int32] | None = None
    assay: str = "points"
    """``visium``, ``st-v1``, ``points``, ``grid``, …"""
    pitch_um: float | None = None
    """Nominal centre-to-centre distance of neighbours in µm, where the assay has one."""
    spot_um: float | None = None
    """Nominal spot diameter in µm."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """A spots x genes matrix with the names of both sides."""

    ids: tuple[str, ...]
    """Row ids: unique."""
    matrix: sp.csr_array
    """``(n, g)`` CSR; int32 for counts (integers kept), float32 where normalised values were allowed in."""
    gene_ids: tuple[str, ...]
    """Unique; the accession where the file has one, else the symbol."""
    symbols: tuple[str, ...]
    """Display names; may repeat."""
    feature_types: tuple[str, ...] | None = None
    whole_transcriptome: bool = True
    """A gene that is absent was not seen (0); false for targeted panels, where it was not measured."""
    normalised: bool = False

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Report:
    """What a stage did and what it left out, for people (`lines`) and for machines (`counts`)."""

    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def merged(self, other: Report) -> Report:
        """Return both, the counts of equal names added."""
        counts = dict(self.counts)
        for key, value in other.counts.items():
            counts[key] = counts.get(key, 0) + value
        return Report(counts, (*self.notes, *other.notes))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {"counts": dict(self.counts), "notes": list(self.notes)}
