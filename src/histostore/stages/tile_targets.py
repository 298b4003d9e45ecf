"""Tiles to learn from: rows that have stored pixels and a target, joined by id, and their pixels batch by batch."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.content.tables import content_digest
from histostore.errors import DataError, NotFoundError, SpecMismatchError, UsageError, near
from histostore.field_of_view import MPP_TOLERANCE
from histostore.part import bounds_of, by_part
from histostore.protocols import TileStatus
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.backbones.finetune_spec import FinetuneSpec
    from histostore.part import Part
    from histostore.protocols import Backbone
    from histostore.store.arrays import ArrayReader
    from histostore.store.manifest import Ref
    from histostore.store.store import Store
    from histostore.view import View

    type Targets = str | Sequence[str] | pd.Series[Any] | pd.DataFrame
    type Rows = NDArray[np.int64]

KEEP_MAPPED = 512 << 20
"""Bytes of tiles after which files that were mapped to read them are let go: over an epoch they would be all."""


@dataclass(frozen=True, slots=True, eq=False)
class TileTargets:
    """Rows with pixels and a target, and nothing read of the pixels yet."""

    rows: View
    obs: pd.DataFrame
    y: NDArray[Any]
    """``(n,)`` int64 classes or ``(n, t)`` float64 values, in the order of `rows`."""
    classes: tuple[str, ...] | None
    columns: tuple[str, ...]
    left_out: dict[str, int]

    @classmethod
    def of(
        cls, store: Store, spec: FinetuneSpec, targets: Targets, tiles: str | None,
        slides: Sequence[str] | None, where: str | None,
    ) -> TileTargets:  # fmt: skip
        """Choose rows and join their targets; nothing is read of the pixels.

        Raises
        ------
        NotFoundError
            No such tiles, column or test group; or pixels that were not stored.
        DataError
            Rows without a target that were not to be left out, infinite values, or one class only.
        """
        every = view(store, tiles=tiles or _only_tiles(store, slides), slides=slides, where=where)
        _check_pixels(every)
        table = _table(every, targets)
        left_out = dict(every.report.counts)
        unreadable = every.column("status") == TileStatus.UNREADABLE.name.lower()
        testing = _in_test(every, spec)
        missing = table.isna().to_numpy().any(axis=1) | (table.astype(str) == "").to_numpy().any(axis=1)
        missing &= ~unreadable & ~testing
        if missing.any() and spec.missing == "refuse":
            first = every.names()[np.flatnonzero(missing)[0]]
            raise DataError(
                f"{int(missing.sum())} of {len(every)} rows have no target {_named(table)} (NaN or none), "
                f"first {first}; "
                "choose rows with where, or leave them out with missing='leave-out'"
            )
        keep = ~(unreadable | testing | missing)
        for reason, mask in (("unreadable", unreadable), ("kept for testing", testing), ("without a target", missing)):
            left_out |= {reason: int(mask.sum())} if mask.any() else {}
        chosen = every.select(keep)
        y, classes = _encoded(table.loc[keep], spec)
        return cls(chosen, chosen.obs(), y, classes, tuple(map(str, table.columns)), left_out)

    def check_mpp(self, parent: Backbone, *, allow: bool) -> float:
        """Return the tiles' resolution, which must be one, and the parent's where it declares one."""
        found = np.array([float(p.group(_tiles_of(p)).attrs["mpp"]) for p in self.rows.parts if len(p)])
        mpp, wanted = float(found.mean()), parent.spec.mpp
        if not allow and np.ptp(found) > MPP_TOLERANCE * mpp:
            raise SpecMismatchError(f"tiles are at {found.min():g} to {found.max():g} mpp; re-tile, or pass allow_mpp")
        if wanted is not None and not allow and abs(mpp - wanted) > MPP_TOLERANCE * wanted:
            raise SpecMismatchError(
                f"tiles are at {mpp:g} mpp, but backbone '{parent.spec.name}' expects {wanted:g}; "
                f"re-tile with mpp={wanted:g}, or pass allow_mpp"
            )
        return mpp

    def inputs(self) -> dict[str, Any]:
        """Return what the run's digest is made of, by slide: tiles, pixels, and the targets by id."""
        texts = np.array([json.dumps(v) for v in self.y.tolist()], dtype=object)
        if self.classes is not None:
            texts = np.array([self.classes[v] for v in self.y.tolist()], dtype=object)
        ids = self.obs.index.to_numpy(dtype=object)
        slide = self.obs["slide"].to_numpy(dtype=object)
        found: dict[str, Any] = {}
        for part in self.rows.parts:
            mine = np.flatnonzero(slide == part.slide)
            if len(mine):
                lines = sorted(f"{ids[i]}\t{texts[i]}" for i in mine)
                found[part.slide] = groups_of(part) | {"targets": content_digest(lines)[:32], "n": len(mine)}
        return found


@dataclass(slots=True)
class TilePixels:
    """Tiles of a view by row, decoded when they are asked for. Use it with ``with``."""

    rows: View
    workers: int = 1
    _readers: dict[int, ArrayReader] = field(default_factory=dict)
    _pool: ThreadPoolExecutor | None = None
    _bytes: int = 0

    def __enter__(self) -> TilePixels:
        self._pool = ThreadPoolExecutor(self.workers) if self.workers > 1 else None
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def read(self, rows: Rows) -> NDArray[np.uint8]:
        """Return the tiles ``(k, px, px, 3)`` uint8 RGB of some rows, in their order."""
        if self._bytes > KEEP_MAPPED:
            self._readers, self._bytes = {}, 0
        out: NDArray[np.uint8] | None = None
        for at, mine, local in by_part(bounds_of(self.rows.parts), rows):
            part = self.rows.parts[at]
            if at not in self._readers:
                self._readers[at] = part.group(_pixels_of(part)).array("pixels")
            found = self._readers[at].read(local if part.rows is None else part.rows[local], pool=self._pool)
            if out is None:
                out = np.empty((len(rows), *found.shape[1:]), np.uint8)
            out[mine] = found
        assert out is not None
        self._bytes += out.nbytes
        return out


def _only_tiles(store: Store, slides: Sequence[str] | None) -> str:
    chosen = list(slides) if slides is not None else store.slides()
    if not chosen:
        raise NotFoundError(f"no slides in {store.uri}; ingest one first")
    return store.slide(chosen[0]).find("tiles").name


def _check_pixels(rows: View) -> None:
    sizes = set()
    for part in rows.parts:
        if len(part):
            sizes.add(int(part.group(_pixels_of(part)).attrs["px"]))
    if len(sizes) > 1:
        raise SpecMismatchError(
            f"tiles are of {' and '.join(f'{s}' for s in sorted(sizes))} px; give tiles of one size"
        )
    if not len(rows):
        raise DataError("no rows are left to train on; look at slides and where")


def _pixels_of(part: Part) -> Ref:
    name = _tiles_of(part).name
    ref = part.manifest.get("pixels", name)
    if ref is None:
        raise NotFoundError(
            f"slide '{part.slide}': no pixels of tiles '{name}' are stored (codec slide); "
            "tile it again with codec jpeg or lossless"
        )
    return ref


def _tiles_of(part: Part) -> Ref:
    assert part.tiles is not None  # the view was opened with the name of a tile set
    return part.tiles


def groups_of(part: Part) -> dict[str, str]:
    """Return the digests of a slide's tiles and pixels, by key."""
    return {r.key: r.digest for r in (_tiles_of(part), _pixels_of(part))}


def _in_test(rows: View, spec: FinetuneSpec) -> NDArray[np.bool_]:
    if spec.by not in rows.columns():
        known = rows.columns()
        raise NotFoundError(f"no column '{spec.by}' to split by{near(spec.by, known)}; there are {', '.join(known)}")
    values = rows.column(spec.by).astype(str)
    known = np.unique(values).tolist()
    for name in spec.test:
        if name not in known:
            raise NotFoundError(f"test: no {spec.by} '{name}'{near(name, known)}; there are {', '.join(known[:8])}")
    testing = np.isin(values, list(spec.test))
    if testing.any() and not spec.allow_same_patient and "patient" in rows.columns():
        patients = rows.column("patient").astype(str)
        if shared := sorted(set(patients[testing]) & set(patients[~testing])):
            raise UsageError(
                f"test by '{spec.by}' puts patient {', '.join(shared[:5])} on both sides: split by patient, "
                "or allow it (allow_same_patient)"
            )
    return np.asarray(testing, dtype=np.bool_)


def _table(rows: View, targets: Targets) -> pd.DataFrame:
    """Return the targets of every row, joined by id; NaN or None where there is none."""
    import pandas as pd

    if isinstance(targets, pd.Series | pd.DataFrame):
        frame = (
            targets.to_frame("target" if targets.name is None else targets.name)
            if isinstance(targets, pd.Series)
            else targets
        )
        if frame.index.has_duplicates:
            twice = frame.index[frame.index.duplicated()][0]
            raise DataError(f"targets name row '{twice}' more than once")
        if not len(frame.index.intersection(pd.Index(rows.names()))):
            raise DataError(
                f"targets name none of the {len(rows)} rows: index them by obs name, like {rows.names()[0]}"
            )
        return frame.reindex(rows.names())
    names = [targets] if isinstance(targets, str) else list(targets)
    if not names:
        raise UsageError("targets is empty: give an obs column")
    return rows.obs(names)


def _encoded(table: pd.DataFrame, spec: FinetuneSpec) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    import pandas as pd

    numeric = all(pd.api.types.is_numeric_dtype(t) and not pd.api.types.is_bool_dtype(t) for t in table.dtypes)
    if spec.task == "values" or (spec.task == "auto" and numeric):
        if not numeric:
            raise DataError(f"targets {_named(table)} are not numbers; give numeric columns, or task='classes'")
        values = table.to_numpy(dtype=np.float64)
        if not np.isfinite(values).all():
            raise DataError(f"{int((~np.isfinite(values)).sum())} targets in {_named(table)} are infinite; mend them")
        return values, None
    if table.shape[1] != 1:
        raise UsageError(f"classes come from one column, got {table.shape[1]} ({_named(table)})")
    column = table.iloc[:, 0]
    # 1.0 and 1 are one class
    texts = [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in column.tolist()]
    classes, y = np.unique(np.array(texts, dtype=str), return_inverse=True)
    if len(classes) < 2:
        got = f"one class only ('{classes[0]}')" if len(classes) else "no rows"
        raise DataError(f"targets {_named(table)} hold {got} in {len(table)} rows: two are needed")
    return y.astype(np.int64), tuple(classes.tolist())


def _named(table: pd.DataFrame) -> str:
    names = [str(c) for c in table.columns]
    return f"'{names[0]}'" if len(names) == 1 else f"'{names[0]}' and {len(names) - 1} more"
