"""Which class each row has, and which rows say nothing: from the values of one obs column."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import DataError, NotFoundError, near
from histostore.heads.classifier import missing_labels
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.head_specs import LabelSpec


def class_labels(
    spec: LabelSpec, values: Any, slide: NDArray[Any], ids: Sequence[str], *, seed: int = 0
) -> tuple[NDArray[Any], tuple[str, ...] | None, Report]:
    """Return labels, classes and what was left out.

    Parameters
    ----------
    values
        ``(n,)`` of the spec's column; None, NaN and empty are no value.
    slide, ids
        ``(n,)`` of the rows; negatives are drawn by slide, seed and id, so the order of rows does not matter.

    Returns
    -------
    labels
        ``(n,)`` object: the class, or None where a row says nothing.
    classes
        (negative, positive) where the spec names positives, else None: every value is one.
    report
        Rows without a value, ignored and not drawn.

    Raises
    ------
    NotFoundError
        No row has a value that the spec names; near ones are suggested.
    DataError
        No row is positive, or none negative.
    """
    missing = missing_labels(values)
    texts = np.array(["" if m else str(v) for v, m in zip(values, missing, strict=True)], dtype=object)
    there = sorted({str(t) for t in texts[~missing]})
    for name in (*(spec.positive or ()), *(spec.negative or ()), *(spec.ignore or ())):
        if name not in there:
            listed = ", ".join(there[:8]) or "none"
            raise NotFoundError(f"no row has {spec.column} '{name}'{near(name, there)}; there are {listed}")
    out = np.full(len(texts), None, dtype=object)
    counts = {"without a label": int(missing.sum())}
    ignored = np.isin(texts.astype(str), spec.ignore or ()) & ~missing
    if spec.positive is None:
        said = ~missing & ~ignored
        out[said] = texts[said]
        return out, None, Report(_nonzero(counts | {"ignored": int(ignored.sum())}))
    classes = _names(spec)
    positive = np.isin(texts.astype(str), spec.positive)
    negative = ~missing & ~ignored & ~positive
    if spec.negative is not None:
        negative &= np.isin(texts.astype(str), spec.negative)
    counts["ignored"] = int((~missing & ~positive & ~negative).sum())
    if not positive.any() or not negative.any():
        which = "positive" if not positive.any() else "negative"
        raise DataError(
            f"no row of {spec.column} is {which}: {int(positive.sum())} positive, {int(negative.sum())} not"
        )
    if spec.negatives_per_positive is not None:
        kept = _draw(positive, negative, slide, ids, spec.negatives_per_positive, seed)
        counts["negatives not drawn"] = int((negative & ~kept).sum())
        negative = kept
    out[negative], out[positive] = classes
    return out, classes, Report(_nonzero(counts))


def _names(spec: LabelSpec) -> tuple[str, str]:
    positive = "+".join(spec.positive or ())
    return ("+".join(spec.negative) if spec.negative is not None else f"not {positive}"), positive


def _draw(
    positive: NDArray[np.bool_],
    negative: NDArray[np.bool_],
    slide: NDArray[Any],
    ids: Sequence[str],
    per_positive: float,
    seed: int,
) -> NDArray[np.bool_]:
    names = np.asarray(ids, dtype=str)
    kept = np.zeros(len(names), dtype=bool)
    for one in np.unique(slide):
        here = np.flatnonzero(negative & (slide == one))
        here = here[np.argsort(names[here], kind="stable")]
        wanted = min(len(here), round(per_positive * int((positive & (slide == one)).sum())))
        rng = np.random.default_rng([seed, zlib.crc32(str(one).encode())])
        kept[rng.permutation(here)[:wanted]] = True
    return kept


def _nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {reason: n for reason, n in counts.items() if n}
