"""Where the rows of an index lie: which ids it gives to the rows of which slides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from histostore.view import View


@dataclass(frozen=True, slots=True)
class Places:
    """Which ids an index gives to the rows of which slides."""

    starts: Mapping[str, int]
    """First id of a slide; its row r has the id start + r."""
    digests: Mapping[str, str]
    """Of the embeddings that were indexed."""
    next_id: int

    @classmethod
    def none(cls) -> Places:
        """Return those of an empty index."""
        return cls({}, {}, 0)

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> Places:
        """Read what a group keeps."""
        slides = attrs["slides"]
        return cls({s: v["start"] for s, v in slides.items()}, {s: v["embeddings"] for s, v in slides.items()},
                   int(attrs["next_id"]))  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return what a group keeps."""
        slides = {s: {"start": self.starts[s], "embeddings": self.digests[s]} for s in sorted(self.starts)}
        return {"slides": slides, "next_id": self.next_id}

    def ids(self, rows: View) -> NDArray[np.int64]:
        """Return the id of every row of a view; -1 for rows of slides that are not in it as they are now."""
        (name,) = rows.backbones
        out = []
        for part in rows.parts:
            local = np.arange(part.n_all, dtype=np.int64) if part.rows is None else part.rows
            known = self.digests.get(part.slide) == part.embeddings[name].digest
            out.append(self.starts[part.slide] + local if known else np.full(len(local), -1, dtype=np.int64))
        return np.concatenate(out) if out else np.zeros(0, dtype=np.int64)


class ById:
    """Embeddings of a view by the ids of an index: what it measures candidates on."""

    def __init__(self, rows: View, places: Places) -> None:
        (name,) = rows.backbones
        self._source = rows.lazy(name)
        ids = places.ids(rows)
        self._row = np.full(places.next_id, -1, dtype=np.int64)
        self._row[ids[ids >= 0]] = np.flatnonzero(ids >= 0)
        self.shape = (places.next_id, int(self._source.shape[1]))
        self.dtype = self._source.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Any) -> NDArray[Any]:
        rows = self._row[ids]
        if (rows < 0).any():
            raise NotFoundError("the index names rows that the store no longer has; bring it up to date: index")
        found: NDArray[Any] = self._source[rows]
        return found
