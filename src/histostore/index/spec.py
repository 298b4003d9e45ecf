"""What an index is asked to be: a frozen value with a digest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from histostore.errors import UsageError
from histostore.specs import SpecBase

type Metric = Literal["cosine", "l2", "ip"]
type Kind = Literal["auto", "exact", "ivf-flat", "ivf-sq8", "ivf-pq", "hnsw"]
type Device = Literal["auto", "cpu", "cuda"]

METRICS = ("cosine", "l2", "ip")
KINDS = ("auto", "exact", "ivf-flat", "ivf-sq8", "ivf-pq", "hnsw")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec(SpecBase):
    """Which index, of which distance, and how good it must be. What is left None follows from the number of rows."""

    kind: Kind = "auto"
    """``exact`` reads the embeddings themselves, the others are FAISS; ``auto`` chooses by size, memory and recall."""
    metric: Metric = "cosine"
    recall: float = 0.95
    """Share of the true ten nearest to find, on held-out rows; `nprobe` (or HNSW's ef) is raised until it is."""
    nlist: int | None = None
    """Cells of an IVF index."""
    pq_bytes: int | None = None
    """Bytes per row of ivf-pq; they must divide the width."""
    refine: int | None = None
    """Candidates per answer that are measured again on the embeddings themselves; 1 is none."""
    hnsw_m: int = 32
    ef_construction: int = 80
    train_rows: int | None = None
    """Rows the quantizers learn from, drawn evenly over slides."""
    max_bytes: int | None = None
    """What the index may take in memory; ``auto`` and nothing else looks at it."""
    seed: int = 0

    @classmethod
    def of(cls, **given: Any) -> IndexSpec | None:
        """Return the spec of what was given; None where all of it is None, for an index that keeps its own."""
        chosen = {name: value for name, value in given.items() if value is not None}
        return cls.from_json(chosen) if chosen else None

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, KINDS)
        check_metric(self.metric)
        if not 0 < self.recall <= 1:
            raise UsageError(f"recall is {self.recall}, outside 0-1")
        for name in ("nlist", "pq_bytes", "refine", "hnsw_m", "ef_construction", "train_rows", "max_bytes"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} is {value!r}, not a positive whole number")


def check_metric(metric: str) -> None:
    """Raise `UsageError` for a distance that is not one of `METRICS`."""
    _one_of("metric", metric, METRICS)


def check_device(device: str) -> None:
    """Raise `UsageError` for a device that is not one of `DEVICES`."""
    _one_of("device", device, DEVICES)


def check_k(k: int) -> None:
    """Raise `UsageError` for a number of neighbours below one."""
    if k < 1:
        raise UsageError(f"k is {k}: ask for at least one neighbour")


def _one_of(name: str, got: str, known: tuple[str, ...]) -> None:
    if got not in known:
        raise UsageError(f"{name} is '{got}', not one of {', '.join(known)}")
