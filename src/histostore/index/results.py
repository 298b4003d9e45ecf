"""Choosing among candidates: pure functions on the answer to one query, nearest first.

Each returns positions into the list of candidates, in order, so they chain. Ask the index for more than k, choose, and
cut to k; a candidate is never moved before a nearer one but by `diverse`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import UsageError
from histostore.index.spec import check_k, check_metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.index.spec import Metric


def within(distance: NDArray[np.floating], most: float) -> NDArray[np.int64]:
    """Return the candidates at most that far (`distance` as the index gives it), in order."""
    if np.isnan(most):
        raise UsageError("the distance threshold is NaN")
    return np.flatnonzero(distance <= most)


def capped(groups: NDArray[Any], most: int) -> NDArray[np.int64]:
    """Return the candidates with at most `most` of any group (slide, patient), the nearest of each, in order."""
    if most < 1:
        raise UsageError(f"the cap per group is {most}: allow at least one")
    group = np.unique(np.asarray(groups), return_inverse=True)[1]
    by_group = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[by_group], group[by_group])
    turn = np.empty(len(group), dtype=np.int64)
    turn[by_group] = np.arange(len(group)) - starts
    return np.flatnonzero(turn < most)


def beyond_radius(
    slides: NDArray[Any],
    xy_um: NDArray[np.floating],
    *,
    slide: str,
    centre_um: tuple[float, float],
    radius_um: float,
) -> NDArray[np.int64]:
    """Return the candidates farther than a radius from the query's place on its own slide; other slides stay.

    Parameters
    ----------
    slides
        ``(c,)`` slide of each candidate.
    xy_um
        ``(c, 2)`` centre of each candidate in µm, (x, y), in its slide's frame.

    Raises
    ------
    UsageError
        The radius is negative, or a place on the query's slide is not known.
    """
    if not radius_um >= 0:
        raise UsageError(f"radius_um is {radius_um}, not a length")
    same = np.asarray(slides) == slide
    apart = np.asarray(xy_um, dtype=np.float64) - np.asarray(centre_um, dtype=np.float64)
    away = np.hypot(apart[:, 0], apart[:, 1])
    if np.isnan(away[same]).any():
        raise UsageError(f"places on slide '{slide}' are not known in µm: it has no mpp")
    return np.flatnonzero(~same | (away > radius_um))


def diverse(
    distance: NDArray[np.floating],
    embeddings: NDArray[np.floating],
    k: int,
    *,
    weight: float = 0.5,
    metric: Metric = "cosine",
) -> NDArray[np.int64]:
    """Return k candidates by maximal marginal relevance, in the order they are chosen.

    Parameters
    ----------
    distance
        ``(c,)`` from the query.
    embeddings
        ``(c, d)`` of the candidates.
    weight
        1 is nearness alone, 0 is difference from those chosen alone.

    Notes
    -----
    Source: Carbonell & Goldstein 1998, "The use of MMR", with similarity = minus the index's distance:
    the next is the largest ``-weight * d(query, i) + (1 - weight) * min over chosen j of d(i, j)``. Ties: the nearer.
    For L2 distances are squared, as the index gives them.
    """
    check_k(k)
    check_metric(metric)
    if not 0 <= weight <= 1:
        raise UsageError(f"weight is {weight}, outside 0-1")
    if len(distance) != len(embeddings):
        raise UsageError(f"{len(distance)} distances and {len(embeddings)} embeddings: one for each candidate")
    values = np.asarray(embeddings, dtype=np.float32)
    if metric == "cosine":
        values = values / np.sqrt(np.vecdot(values, values))[:, None]
    chosen: list[int] = []
    apart = np.zeros(len(values), dtype=np.float64)
    gain = -weight * np.asarray(distance, dtype=np.float64)
    for _ in range(min(k, len(values))):
        score = gain + (1 - weight) * apart
        score[chosen] = -np.inf
        best = int(np.argmax(score))
        to_best = _distance_to(values, values[best], metric)
        apart = to_best if not chosen else np.minimum(apart, to_best)
        chosen.append(best)
    return np.array(chosen, dtype=np.int64)


def _distance_to(values: NDArray[np.float32], one: NDArray[np.float32], metric: Metric) -> NDArray[np.float64]:
    if metric == "l2":
        return ((values - one) ** 2).sum(axis=1, dtype=np.float64)
    product = np.asarray(values @ one, dtype=np.float64)
    return 1 - product if metric == "cosine" else -product
