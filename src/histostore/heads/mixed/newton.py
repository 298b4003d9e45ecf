"""Steps towards the best variances that need one factorisation each, for terms too large to try many.

The derivative of the deviance by a parameter is tr(V⁻¹ V') - a'V'a / s_e with a = V⁻¹ r. The trace is exact for terms
of few columns and Hutchinson's unbiased estimate for larger ones (Communications in Statistics 19, 433, 1990), with
probes that stay the same from step to step; the curvature is the average information of Gilmour, Thompson and Cullis,
Biometrics 51, 1440 (1995).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import linalg

if TYPE_CHECKING:
    from histostore.heads.mixed.design import Floats
    from histostore.heads.mixed.system import Model, Profile, System

PROBES = 64
"""Terms of more columns have their traces estimated: the error is √(2 / probes) of a standard error at most."""

LONGEST = 1.0
"""Of a step in a logarithm."""

HALVINGS = 5

NOTHING = 1e-6
"""Change of the deviance that a step must promise: √ of it is the share of a standard error that is left to go."""

NOISE = 0.3
"""Steps below this share of their own standard error are not taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """Where a search ended."""

    theta: Floats
    profile: Profile
    converged: bool
    error: Floats
    """Standard errors of `theta` that come from the estimated traces alone; 0 where they are exact."""


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """A step, and the noise in it."""

    slope: Floats
    step: Floats
    error: Floats


def probes_of(system: System, seed: int, most: int = PROBES) -> list[Floats]:
    """Return of each term the columns ``(width, m)`` its traces are taken on: all of them, or m random signs."""
    rng, signs = np.random.default_rng([seed, 2]), np.array([-1.0, 1.0])
    return [np.eye(t.width) if t.width <= most else signs[rng.integers(0, 2, (t.width, most))] for t in system.terms]


def settle(model: Model, theta: Floats, probes: list[Floats], *, most: int, found: Profile | None = None) -> Settled:
    """Return parameters of a smaller deviance after at most this many steps; values are exact, only steps estimated."""
    found = found or model.at(theta)
    low, high = np.array(model.limits()).T
    error = np.zeros(len(theta))
    for _ in range(most):
        way = direction(model, theta, found, probes)
        ahead = np.clip(theta + way.step, low, high) - theta
        error = way.error
        if abs(float(way.slope @ ahead)) < NOTHING or (np.abs(ahead) < NOISE * error).all():
            return Settled(theta, found, True, error)
        for _ in range(HALVINGS):
            tried = model.at(theta + ahead)
            if tried.deviance <= found.deviance:
                break
            ahead = ahead / 2
        else:
            # no better in the direction that noisy traces say: as near as they can tell
            return Settled(theta, found, bool(np.abs(ahead * 2**HALVINGS).max() < 4 * error.max()), error)
        theta, found = theta + ahead, tried
    return Settled(theta, found, False, error)


def direction(model: Model, theta: Floats, found: Profile, probes: list[Floats]) -> Direction:
    """Return Newton's step at a profile."""
    system, s2_e = model.system, found.rss / model.free
    weights = np.column_stack([model.right[:, -1:] - model.right[:, :-1] @ found.coef[:, None], model.right[:, :-1]])
    factored = found.factored or system.factored(theta)
    scores = weights - system.gram @ np.column_stack([found.effects, system.solve(factored, weights[:, 1:])])
    slope, noise, moved, at = [], [], [], 0
    for term, part, probe in zip(system.terms, system.split(theta), probes, strict=True):
        here = slice(at, at + term.width)
        at = here.stop
        placed = np.zeros((system.z.shape[1], probe.shape[1]))
        placed[here] = probe
        weighed = system.weighed(factored, placed)[here]
        share = 1.0 if probe.shape[1] == term.width else 1 / probe.shape[1]
        for change in term.derivatives(part):
            both = change @ np.column_stack([probe, scores[here]])
            each = (both[:, : probe.shape[1]] * weighed).sum(0)
            by_scores = scores[here].T @ both[:, probe.shape[1] :]
            fixed = 0.0
            if model.method == "reml" and len(found.root):
                half = linalg.solve_triangular(found.root, by_scores[1:, 1:], lower=True)
                fixed = float(np.trace(linalg.solve_triangular(found.root, half.T, lower=True)))
            slope.append(each.sum() * share - by_scores[0, 0] / s2_e - fixed)
            noise.append(0.0 if share == 1.0 else float(each.std(ddof=1)) / np.sqrt(len(each)))
            column = np.zeros(system.z.shape[1])
            column[here] = both[:, probe.shape[1]]
            moved.append(column)
        columns = np.stack(moved, 1)
    one = columns.T @ scores[:, 0] / s2_e
    # the average information of the parameters, that of the residual variance profiled out
    curvature = columns.T @ system.weighed(factored, columns) / s2_e - np.outer(one, one) / model.free
    return _newton(np.array(slope), np.array(noise), curvature)


def _newton(slope: Floats, noise: Floats, curvature: Floats) -> Direction:
    values, vectors = np.linalg.eigh(curvature)
    # directions the data says nothing about move slowly, not far
    inverse = vectors / np.maximum(values, 1e-6 * values.max() + 1e-12) @ vectors.T
    step = -inverse @ slope
    step /= max(1.0, float(np.abs(step).max()) / LONGEST)
    return Direction(slope, step, np.sqrt(inverse**2 @ noise**2))
