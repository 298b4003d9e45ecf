"""What heads learn from: rows of a view, joined by id, in plain arrays; one per tile, or one per slide."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.content.tables import content_digest
from histostore.errors import DataError, NotFoundError, UsageError, near
from histostore.genes import as_called
from histostore.heads.labels import class_labels
from histostore.heads.registry import head_class, names
from histostore.heads.rows import STREAM_BYTES, RowSource
from histostore.part import with_rows
from histostore.tables import Report
from histostore.view import refuse_none, view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.genes import Genes
    from histostore.head_specs import BagSpec, HeadSpec
    from histostore.heads.rows import Table
    from histostore.store.store import Store
    from histostore.view import View


HOLD_BYTES = 4 << 30
"""Embeddings that would take more than this as float32 are refused to a head that cannot stream: 4 GiB."""


@dataclass(frozen=True, slots=True)
class Training:
    """Aligned rows of a cohort."""

    view: View
    X: Any
    """``(n, d)`` embeddings: an array, or a row source where they are too many to be held."""
    obs: pd.DataFrame
    genes: Genes | None = None
    """Counts of the rows, where the head predicts genes or all rows have them."""
    values: pd.DataFrame | None = None
    """Numbers to predict, where the head predicts columns."""
    labels: NDArray[Any] | None = None
    """``(n,)`` classes to predict; None where a row says nothing."""
    classes: tuple[str, ...] | None = None
    report: Report = field(default_factory=Report)
    """Rows left out before any head saw them."""

    def arrays(self, spec: HeadSpec) -> dict[str, Any]:
        """Return what `histostore.heads.evaluate.cross_validate` takes."""
        given: dict[str, Any] = {"X": self.X, "obs": self._obs(spec)}
        if self.genes is not None:
            given["counts"] = self.genes.matrix
        if spec.task == "genes" and self.genes is not None:
            given["symbols"] = self.genes.symbols
        if spec.task == "columns":
            given["values"] = self.values
        return given

    def _obs(self, spec: HeadSpec) -> pd.DataFrame:
        """Return the columns that a fit looks at: each fold takes its rows of all it is given."""
        needed = dict.fromkeys(("slide", "patient", "x_um", "y_um", spec.split.by, *(spec.groups or ())))
        named = {spec.split.by, *(spec.groups or ())}
        # a name that is not there is told from all that are
        return self.obs[[c for c in needed if c in self.obs]] if named <= set(self.obs) else self.obs

    def named(self, spec: HeadSpec) -> HeadSpec:
        """Return the spec with the genes of its list as they are called here: ids become unique symbols.

        Raises
        ------
        UsageError
            A symbol is of several genes; their ids are named.
        """
        if self.genes is None or spec.panel is None or spec.panel.genes is None:
            return spec
        return replace(spec, panel=replace(spec.panel, genes=as_called(spec.panel.genes, self.genes)))

    def target_digest(self) -> str | None:
        """Return the identity of given numbers or labels; counts have their own groups."""
        if self.values is not None:
            texts = self.values.astype(str).to_numpy().ravel().tolist()
            # pandas leaves missing values as they are
            return content_digest(list(self.values.columns), [v if isinstance(v, str) else "nan" for v in texts])[:32]
        if self.labels is not None:
            return content_digest(["" if v is None else str(v) for v in self.labels])[:32]
        return None


def training_data(
    store: Store,
    spec: HeadSpec,
    *,
    backbone: str,
    tiles: str | None = None,
    slides: Sequence[str] | None = None,
    where: str | None = None,
    region_share: float | None = None,
    in_memory: int | None = None,
) -> Training:
    """Return embeddings, targets and obs of a cohort.

    Parameters
    ----------
    in_memory
        Load the embeddings where they take at most so many bytes as float32, whatever they are stored in. By default
        `STREAM_BYTES` for heads that stream, `HOLD_BYTES` for the others.

    Raises
    ------
    NotFoundError
        A column that the spec names is not there; near names are suggested.
    DataError
        Genes of a slide whose values were normalised before they came in.
    UsageError
        A filter that keeps no row; a slide-level head of genes or tile labels; more embeddings than may be held, for a
        head that cannot stream.
    """
    rows = view(store, backbone=backbone, tiles=tiles, slides=slides, where=where, region_share=region_share)
    refuse_none(rows, where)
    if spec.task == "genes":
        if spec.bag is not None:
            raise UsageError("genes are of spots and this head has one row per slide: give columns of a table instead")
        rows = rows.with_counts()
        _refuse_normalised(rows)
        return _refuse_unmeasured(_read(rows, spec, in_memory, counted=True))
    if spec.bag is not None:
        return _per_slide(rows, spec, spec.bag)
    return _with_targets(_per_tile(rows, spec, in_memory), spec)


def _refuse_normalised(rows: View) -> None:
    """Refuse genes of slides that hold no counts: every unit of a gene is computed from counts."""
    bad = [p.slide for p in rows.parts if len(p) and p.normalised]
    if bad:
        some = f"{', '.join(bad[:3])}{' …' if len(bad) > 3 else ''}"
        raise DataError(
            f"{len(bad)} of {len(rows.parts)} slides have normalised values where counts are needed ({some}): choose "
            "other slides (--slides), ingest their raw counts, or predict a numeric column instead (--target)"
        )


def _refuse_unmeasured(data: Training) -> Training:
    """Refuse genes of targeted panels that differ: what one lacks is no zero, and their library sizes are of others."""
    if data.genes is not None and data.genes.unmeasured:
        lacking = [f"'{slide}' lacks {n}" for slide, n in data.genes.unmeasured.items()]
        some = ", ".join(lacking[:3]) + (" …" if len(lacking) > 3 else "")
        raise DataError(
            f"{len(lacking)} slides are of targeted panels without all genes of the others ({some}): choose slides of "
            "one panel (--slides)"
        )
    return data


def _embeddings(rows: View, spec: HeadSpec, in_memory: int | None) -> Table:
    """Return an array, or a row source where that would take too much memory and the head can do without."""
    source, head = rows.lazy(), head_class(spec.head)
    n, d = source.shape
    streams = bool(getattr(head, "streams", False))
    limit = in_memory if in_memory is not None else (STREAM_BYTES if streams else HOLD_BYTES)
    if 4 * n * d <= limit:
        return source[:]
    if streams:
        return source
    able = ", ".join(name for name in names() if getattr(head_class(name), "streams", False))
    raise UsageError(
        f"head '{spec.head}' needs all embeddings in memory: {n:,} x {d:,} take {4 * n * d / 2**20:,.0f} MiB and the "
        f"limit is {limit / 2**20:,.0f} (in_memory); choose fewer rows (slides, where), or one of {able}, which stream"
    )


def _per_tile(rows: View, spec: HeadSpec, in_memory: int | None) -> Training:
    # sums of normalised values are no library sizes
    counted = all(p.expression is not None and not p.normalised and bool((p.count_row >= 0).all()) for p in rows.parts)
    data = _read(rows, spec, in_memory, counted=counted)
    # nor are those over the genes of different panels
    return replace(data, genes=None) if data.genes is not None and data.genes.unmeasured else data


def _read(rows: View, spec: HeadSpec, in_memory: int | None, *, counted: bool) -> Training:
    """Return the rows of a view; where embeddings are streamed, nothing that was read on the way is kept either."""
    X = _embeddings(rows, spec, in_memory)
    if not isinstance(X, RowSource):
        return Training(rows, X, rows.obs(), rows.counts() if counted else None, report=rows.report)
    # ids of tiles are as many texts as there are rows, and no head looks at them
    obs = rows.obs([c for c in rows.columns() if c != "tile_id"])
    rows = rows.forgotten()
    genes = rows.counts() if counted else None
    return Training(rows.forgotten(), X, obs, genes, report=rows.report)


def _per_slide(rows: View, spec: HeadSpec, bag: BagSpec) -> Training:
    kept = replace(rows, parts=tuple(with_rows(rows.parts)))
    X, tiles = pool(kept, bag, seed=spec.seed)
    obs = slide_obs(kept).assign(n_tiles=tiles)
    without = len(rows.parts) - len(kept.parts)
    report = rows.report.merged(Report({"slides without a row left": without})) if without else rows.report
    return _with_targets(Training(kept, X, obs, report=report), spec)


def slide_obs(rows: View) -> pd.DataFrame:
    """Return one line of metadata per slide, by slide."""
    lines = [{"slide": part.slide, **part.meta["fields"]} for part in rows.parts]
    return pd.DataFrame(lines, index=pd.Index(rows.slides, dtype=object))


def is_metadata(store: Store, name: str, slides: Sequence[str] | None = None) -> bool:
    """Say whether a column is metadata of slides: one value for all tiles."""
    chosen = [store.slide(s) for s in (store.slides() if slides is None else slides)]
    return any(name in store.group(m.find("meta", "meta")).attrs["fields"] for m in chosen)


def pool(rows: View, bag: BagSpec, *, seed: int) -> tuple[NDArray[np.float32], list[int]]:
    """Return one row per slide that has rows, in the order of the view, and how many tiles each is made of.

    Unreadable tiles are not drawn. A tile is drawn by seed, slide and id alone, so neither the order of tiles nor other
    slides matter. ``tiles`` puts the drawn ones side by side, with NaN where a slide has fewer.
    """
    out, used = [], []
    at = 0
    for part in with_rows(rows.parts):
        whole = np.arange(at, at + len(part), dtype=np.int64)
        at += len(part)
        ids = part.column("barcode").astype(str)
        order = whole[np.argsort(ids, kind="stable")]
        rng = np.random.default_rng([seed, zlib.crc32(part.slide.encode())])
        block = rows.numpy(rows=rng.permutation(order)).astype(np.float32)
        block = block[np.isfinite(block).all(axis=1)][: bag.tiles]
        used.append(len(block))
        if bag.pool == "mean":
            mean = block.mean(0, dtype=np.float64) if len(block) else np.full(block.shape[1], np.nan)
            out.append(mean.astype(np.float32))
        else:
            side = np.full((bag.tiles or len(block), block.shape[1]), np.nan, dtype=np.float32)
            side[: len(block)] = block
            out.append(side.ravel())
    return np.stack(out), used


def _with_targets(data: Training, spec: HeadSpec) -> Training:
    if spec.columns is not None:
        for name in spec.columns:
            _known(data, name)
        return replace(data, values=data.obs[list(spec.columns)])
    assert spec.labels is not None
    _known(data, spec.labels.column)
    column = data.obs[spec.labels.column].to_numpy(dtype=object)
    slide = data.obs["slide"].astype(str).to_numpy(dtype=object).astype(str)
    labels, classes, report = class_labels(spec.labels, column, slide, data.obs.index.tolist(), seed=spec.seed)
    return replace(data, labels=labels, classes=classes, report=data.report.merged(report))


def _known(data: Training, name: str) -> None:
    if name not in data.obs:
        every = [str(c) for c in data.obs.columns]
        raise NotFoundError(f"no column '{name}'{near(name, every)}; there are {', '.join(sorted(every))}")
