"""What an index consists of at one moment: an immutable value, small enough for a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histostore.errors import FormatError
from histostore.index.ann import Tuning
from histostore.index.build import BuildReport
from histostore.index.files import FileRecord
from histostore.index.spec import IndexSpec
from histostore.specs import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Rows that were indexed together. Its files never change; which of its rows are dead is a file of its own."""

    rows: int
    ids: FileRecord
    """``(rows,)`` int64, ascending: position to row number of the embeddings."""
    body: FileRecord
    """A FAISS index, or for an exact segment its embeddings ``(rows, d)``."""
    tuning: Tuning | None
    """None for an exact segment."""
    report: BuildReport
    dead: FileRecord | None = None
    """Deleted positions, int64, ascending."""
    n_dead: int = 0

    def files(self) -> Iterator[FileRecord]:
        """Yield the files it needs."""
        yield self.ids
        yield self.body
        if self.dead is not None:
            yield self.dead

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "rows": self.rows,
            "ids": self.ids.to_json(),
            "body": self.body.to_json(),
            "tuning": None if self.tuning is None else self.tuning.to_json(),
            "report": self.report.to_json(),
            "dead": None if self.dead is None else self.dead.to_json(),
            "n_dead": self.n_dead,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Segment:
        """Return what `to_json` wrote."""
        return cls(
            rows=value["rows"],
            ids=FileRecord.from_json(value["ids"]),
            body=FileRecord.from_json(value["body"]),
            tuning=None if value["tuning"] is None else Tuning.from_json(value["tuning"]),
            report=BuildReport.from_json(value["report"]),
            dead=None if value["dead"] is None else FileRecord.from_json(value["dead"]),
            n_dead=value["n_dead"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An index as readers see it. Changing it makes another one; publishing that one is the caller's single act."""

    spec: IndexSpec
    dim: int
    segments: tuple[Segment, ...] = ()

    @property
    def live(self) -> int:
        """Rows that can be found."""
        return sum(s.rows - s.n_dead for s in self.segments)

    @property
    def dead(self) -> int:
        """Deleted rows that still take space; `compact` drops them."""
        return sum(s.n_dead for s in self.segments)

    @property
    def recall(self) -> float:
        """recall@10 as measured when the segments were built, weighted by their rows."""
        rows = sum(s.rows for s in self.segments)
        return sum(s.rows * s.report.recall for s in self.segments) / rows if rows else 1.0

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files())

    @property
    def digest(self) -> str:
        """The identity of this snapshot."""
        return digest_of(self.to_json())

    def files(self) -> Iterator[FileRecord]:
        """Yield the files it needs: nothing else in the folder is looked at."""
        for segment in self.segments:
            yield from segment.files()

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for a manifest."""
        segments = [s.to_json() for s in self.segments]
        return {"format": FORMAT, "spec": self.spec.to_json(), "dim": self.dim, "segments": segments}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Snapshot:
        """Return what `to_json` wrote.

        Raises
        ------
        FormatError
            It was written by a newer version.
        """
        if value.get("format") != FORMAT:
            raise FormatError(f"index snapshot of format {value.get('format')!r}; this version reads {FORMAT}")
        segments = tuple(Segment.from_json(s) for s in value["segments"])
        return cls(spec=IndexSpec.from_json(value["spec"]), dim=value["dim"], segments=segments)
