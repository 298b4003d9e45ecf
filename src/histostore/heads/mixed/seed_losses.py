"""The four minibatch losses of the RENN study, kept so that it can be repeated beside the exact one.

Each takes batches of a single group. With m rows in the batch, n in the group, sums S = Σe and squares Q = Σe²:
only a batch that holds its whole group (m = n) makes the first three the marginal likelihood, and then they are equal.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    type Batch = Callable[[torch.Tensor, int, torch.Tensor, torch.Tensor], torch.Tensor]

SeedLoss = Literal["nll", "cor_1", "cor_det", "no_re"]

WHAT_THEY_ARE: dict[str, str] = {
    "nll": "composite likelihood: each batch counts as a group of its own, so what rows of other batches say of the "
    "group's effect is lost; one row per batch does not tell the two variances apart",
    "cor_1": "a corner of the whole group's inverse covariance in place of the batch's: biased, the variance between "
    "groups goes to 0 and that within is too large",
    "cor_det": "the composite likelihood plus a correction of its determinant that is exact for two batches per group "
    "only: the variance between groups is too large",
    "no_re": "no random effect: all rows count as independent",
}
"""What each loss is, said in the notes of a head that was trained with it."""


def nll(e: torch.Tensor, n: int, s2_e: torch.Tensor, s2_b: torch.Tensor) -> torch.Tensor:
    """Return the likelihood loss ``(t,)`` of a batch ``(m, t)`` as if it were the whole group."""
    return _loss(e, len(e), s2_e, s2_b)


def cor_1(e: torch.Tensor, n: int, s2_e: torch.Tensor, s2_b: torch.Tensor) -> torch.Tensor:
    """Return that with the quadratic form of the whole group's inverse, and `alpha`."""
    return _loss(e, n, s2_e, s2_b) + alpha(len(e), n, s2_e, s2_b)


def cor_det(e: torch.Tensor, n: int, s2_e: torch.Tensor, s2_b: torch.Tensor) -> torch.Tensor:
    """Return `nll` and `alpha`."""
    return nll(e, n, s2_e, s2_b) + alpha(len(e), n, s2_e, s2_b)


def no_re(e: torch.Tensor, n: int, s2_e: torch.Tensor, s2_b: torch.Tensor) -> torch.Tensor:
    """Return the loss of independent rows."""
    m = len(e)
    return 0.5 * (m * math.log(2 * math.pi) + m * torch.log(s2_e) + (e**2).sum(0) / s2_e)


def alpha(m: int, n: int, s2_e: torch.Tensor, s2_b: torch.Tensor) -> torch.Tensor:
    """Return the batch's share of what splitting a group in m and n - m rows does to the log-determinant."""
    whole, part, rest = (s2_e + k * s2_b for k in (n, m, n - m))
    return m / n * 0.5 * torch.log(s2_e * whole / (part * rest))


def _loss(e: torch.Tensor, size: int, s2_e: torch.Tensor, s2_b: torch.Tensor) -> torch.Tensor:
    m = len(e)
    logdet = (m - 1) * torch.log(s2_e) + torch.log(s2_e + m * s2_b)
    quadratic = ((e**2).sum(0) - s2_b / (s2_e + size * s2_b) * e.sum(0) ** 2) / s2_e
    return 0.5 * (m * math.log(2 * math.pi) + logdet + quadratic)


LOSSES: dict[str, Batch] = {"nll": nll, "cor_1": cor_1, "cor_det": cor_det, "no_re": no_re}
