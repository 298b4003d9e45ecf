"""Counts to points by id, points to the image, points to the tissue.

Nothing is joined by order, and nothing that fits badly is joined in silence: what is on one side only is counted,
and below a share of matches the join is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import AlignmentError, UsageError
from histostore.io.check import first_few, repeated
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from histostore.tables import Counts, Points

    type MaskContains = Callable[[NDArray[np.float64]], NDArray[np.bool_]]

MAX_OFF_TISSUE = 0.2
"""More in-tissue spots than this share off the tissue mask: the coordinates are not this image's."""

BETTER_BY = 0.1
"""A swap or mirror image that puts this share more of the spots on tissue is taken for the true one: a swapped
section of her2st keeps up to 85 % on its tissue, a right one is at 91-100 % and no other way is better."""

_SCALES = (2.0, 4.0, 8.0, 16.0, 0.5, 0.25, 0.125, 0.0625)


def align(points: Points, counts: Counts, *, min_match: float = 0.9) -> tuple[NDArray[np.int64], Report]:
    """Find the row of counts of every point, by id.

    The share that must match is that of the counts' rows which have a point: a count without a place is lost to
    every later step, while spots without counts are usual (a spot file lists the spots of the array, raw positions
    those off tissue too). Order plays no part.

    Parameters
    ----------
    points, counts
        Of one slide.
    min_match
        Least share of the counts' rows that must have a point, 0-1.

    Returns
    -------
    row_of_point
        ``(n_points,)`` int64: row of `counts`, -1 where the point has none.
    report
        Counts ``matched``, ``only_in_points``, ``only_in_counts``, ``duplicated``.

    Raises
    ------
    AlignmentError
        Ids repeat on a side, nothing matches, or less than `min_match` does; with the first three ids of each side.
    """
    if not 0 <= min_match <= 1:
        msg = f"min_match is {min_match}, outside 0-1"
        raise UsageError(msg)
    for side, ids in (("spots", points.ids), ("counts", counts.ids)):
        twice = repeated(ids)
        if twice:
            msg = (
                f"{len(twice)} ids occur more than once in the {side}: {first_few(twice)}; they cannot be joined by id"
            )
            raise AlignmentError(msg)
    row_of_id = {row_id: row for row, row_id in enumerate(counts.ids)}
    rows = np.array([row_of_id.get(point, -1) for point in points.ids], dtype=np.int64)
    matched = int((rows >= 0).sum())
    known = set(points.ids)
    only_points = [point for point, row in zip(points.ids, rows, strict=True) if row < 0]
    only_counts = [row_id for row_id in counts.ids if row_id not in known]
    share = matched / len(counts) if len(counts) else 0.0
    if matched == 0 or share < min_match:
        msg = (
            f"{matched} of {len(counts)} count rows ({share:.0%}) have a spot, at least {min_match:.0%} must; "
            f"only in counts: {first_few(only_counts) or 'none'}; only in spots: {first_few(only_points) or 'none'}"
            f"{_id_hint(points.ids, counts.ids, matched)}"
        )
        raise AlignmentError(msg)
    notes = []
    if only_points:
        notes.append(f"{len(only_points)} spots have no counts: {first_few(only_points)}")
    if only_counts:
        notes.append(f"{len(only_counts)} count rows have no spot and are left out: {first_few(only_counts)}")
    found = {
        "matched": matched,
        "only_in_points": len(only_points),
        "only_in_counts": len(only_counts),
        "duplicated": 0,
    }
    return rows, Report(found, tuple(notes))


def _id_hint(points: Sequence[str], counts: Sequence[str], matched: int) -> str:
    bare = {re.sub(r"-\d+$", "", point) for point in points}
    if sum(re.sub(r"-\d+$", "", row) in bare for row in counts) > matched:
        return "; more would match without the -1 suffix: write barcodes alike on both sides"
    known = set(points)
    if sum("x".join(reversed(row.split("x"))) in known for row in counts) > matched:
        return "; more would match as YxX: array x and y are swapped on one side"
    return "; are both of the same slide? lower min_match to join what matches"


def check_on_image(points: Points, size_px: tuple[int, int], *, drop: bool = False) -> tuple[NDArray[np.bool_], Report]:
    """Check that the points lie on the image.

    Points that the assay itself calls off tissue may lie outside (the image may be cropped to the tissue): they are
    counted and kept.

    Parameters
    ----------
    points
        Centres in level-0 pixels.
    size_px
        (width, height) of level 0.
    drop
        Leave the points outside out instead of refusing.

    Returns
    -------
    keep
        ``(n,)`` bool; all true unless `drop`.
    report
        Count ``off_image``.

    Raises
    ------
    AlignmentError
        In-tissue points lie outside and `drop` is false; or all points do.
    """
    outside = ~_within(points.xy, size_px)
    n = int(outside.sum())
    report = Report({"off_image": n})
    if not n:
        return ~outside, report
    low, high = points.xy.min(axis=0), points.xy.max(axis=0)
    where = (
        f"{n} of {len(points)} spots lie off the image of {size_px[0]} x {size_px[1]} px "
        f"(spots span x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f})"
    )
    relevant = outside if points.in_tissue is None else outside & points.in_tissue
    if outside.all() or (relevant.any() and not drop):
        msg = f"{where}; is this the full-resolution image of these spots? pass drop_off_image to leave them out"
        raise AlignmentError(msg)
    if drop:
        return ~outside, Report(report.counts, (f"{where}: left out",))
    return np.ones(len(points), dtype=bool), Report(report.counts, (f"{where}, all of them off tissue: kept",))


def _within(xy: NDArray[np.float64], size_px: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray(((xy >= 0) & (xy < np.asarray(size_px))).all(axis=1))


def check_orientation(
    points: Points,
    mask_contains: MaskContains,
    size_px: tuple[int, int],
    *,
    scales: Sequence[float] = (),
    force: bool = False,
) -> Report:
    """Check that the spots in tissue lie on tissue, as a test of orientation and scale.

    x and y swapped, the mirror images and the scale factors are tried as well; the error names the one that puts
    most on tissue.

    Parameters
    ----------
    points
        Those with `in_tissue` false are not looked at.
    mask_contains
        Takes ``(k, 2)`` level-0 (x, y) inside the image, returns ``(k,)`` bool: on tissue. The mask should be
        closed over pale tissue; a bare threshold misses a third of the spots of a good section.
    size_px
        (width, height) of level 0.
    scales
        Further factors to try, such as ``1 / tissue_hires_scalef``.
    force
        Turn the error into a note.

    Returns
    -------
    Report
        Count ``off_tissue`` (of the in-tissue spots).

    Raises
    ------
    AlignmentError
        More than 20 % are off tissue, or a swap or mirror image puts at least 10 % more of them on tissue.
    """
    xy = points.xy if points.in_tissue is None else points.xy[points.in_tissue]
    if not len(xy):
        return Report({"off_tissue": 0}, ("no spots in tissue: orientation not checked",))
    share = _share_on(xy, mask_contains, size_px)
    n_off = round((1 - share) * len(xy))
    too_many = 1 - share > MAX_OFF_TISSUE
    tried = list(_orientations(xy, size_px))
    if too_many:
        tried += [(f"multiplying by {factor:.4g}", xy * factor) for factor in (*scales, *_SCALES)]
    shares = {label: _share_on(other, mask_contains, size_px) for label, other in tried}
    best = max(shares, key=lambda label: shares[label])  # the first of equals: commonest mistakes come first
    better = shares[best] >= share + BETTER_BY
    report = Report({"off_tissue": n_off})
    if not (too_many or better):
        return report
    hint = f"{best} would put {shares[best]:.0%} on tissue: check the coordinates"
    words = (
        f"{n_off} of {len(xy)} in-tissue spots ({1 - share:.0%}) lie off the tissue; "
        f"{hint if better else 'no swap, flip or scale fits better: is this their image?'}"
    )
    if force:
        return Report(report.counts, (f"{words} (taken by force)",))
    raise AlignmentError(words)


def _share_on(xy: NDArray[np.float64], mask_contains: MaskContains, size_px: tuple[int, int]) -> float:
    inside = _within(xy, size_px)
    return float(mask_contains(xy[inside]).sum()) / len(xy) if inside.any() else 0.0


def _orientations(xy: NDArray[np.float64], size_px: tuple[int, int]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield the seven other symmetries of the rectangle, the commonest mistakes first."""
    width, height = size_px
    swapped = xy[:, ::-1]
    yield "swapping x and y", swapped
    for prefix, base in (("", xy), ("swapping x and y and ", swapped)):
        x, y = base[:, 0], base[:, 1]
        yield f"{prefix}mirroring x", np.column_stack([width - x, y])
        yield f"{prefix}mirroring y", np.column_stack([x, height - y])
        yield f"{prefix}turning by 180°", np.column_stack([width - x, height - y])
