"""Turning scores into probabilities that mean what they say, fitted on rows the model had not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from scipy.optimize import isotonic_regression, minimize_scalar
from scipy.special import log_softmax, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    type Floats = NDArray[np.float64]

Method = Literal["none", "temperature", "isotonic"]
METHODS: tuple[str, ...] = get_args(Method)
Criterion = Literal["f1", "balanced_accuracy"]
CRITERIA: tuple[str, ...] = get_args(Criterion)


@dataclass(frozen=True, slots=True, eq=False)
class Calibrator:
    """From logits ``(n, c)`` to probabilities.

    ``temperature`` divides all logits by one number (Guo et al., ICML 2017): the order of rows and classes stays.
    ``isotonic`` maps each class's probability by a rising step function (Zadrozny and Elkan, KDD 2002), and the classes
    are brought to a sum of one; it needs some hundred rows.
    """

    method: Method = "none"
    temperature: float = 1.0
    steps: tuple[tuple[Floats, Floats], ...] = ()
    """Per class where its function bends and its values there."""

    @classmethod
    def fit(cls, method: Method, logits: Floats, codes: NDArray[np.int64]) -> Calibrator:
        """Learn from rows ``(n, c)`` that the model which scored them was not trained on."""
        if method == "temperature":
            found = minimize_scalar(
                lambda log_t: (
                    -float(np.mean(log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(codes)), codes]))
                ),
                bounds=(-4.0, 4.0),
                method="bounded",
            )
            return cls(method, float(np.exp(found.x)))
        if method == "isotonic":
            start = softmax(logits, axis=1)
            return cls(method, steps=tuple(_steps(start[:, k], codes == k) for k in range(logits.shape[1])))
        return cls()

    def __call__(self, logits: Floats) -> Floats:
        """Return ``(n, c)`` probabilities; a row with NaN gives NaN."""
        out: Floats = softmax(logits / self.temperature, axis=1)
        if self.method != "isotonic":
            return out
        if len(self.steps) == 2:
            # one function would do for two classes: averaging both keeps them alike whichever is called positive
            first, second = (np.interp(out[:, k], *self.steps[k]) for k in (0, 1))
            positive = (second + 1.0 - first) / 2
            return np.column_stack((1.0 - positive, positive))
        mapped = np.column_stack([np.interp(out[:, k], *self.steps[k]) for k in range(len(self.steps))])
        total = mapped.sum(1, keepdims=True)
        return np.where(total > 0, mapped / np.where(total > 0, total, 1.0), out)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays and plain JSON."""
        arrays = {f"steps.{k}": np.vstack(pair) for k, pair in enumerate(self.steps)}
        return arrays, {"method": self.method, "temperature": self.temperature, "classes": len(self.steps)}

    @classmethod
    def from_state(cls, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> Calibrator:
        """Return the calibrator that `to_state` described."""
        steps = tuple((arrays[f"steps.{k}"][0], arrays[f"steps.{k}"][1]) for k in range(int(meta["classes"])))
        return cls(meta["method"], float(meta["temperature"]), steps)


def best_threshold(probability: Floats, positive: NDArray[np.bool_], criterion: Criterion) -> float:
    """Return the probability from which a row is called positive that is best on these rows.

    Candidates lie half-way between neighbouring values, so that the choice is as far from the rows as it can be; of
    equally good ones the one nearest to 0.5.
    """
    order = np.argsort(probability, kind="stable")
    values, truth = probability[order], positive[order]
    ends = np.flatnonzero(np.append(np.diff(values) > 0, True))[:-1]
    cuts = np.concatenate(([min(values[0], 0.5) / 2], (values[ends] + values[ends + 1]) / 2))
    missed = np.concatenate(([0], np.cumsum(truth)[ends]))
    below = np.concatenate(([0], ends + 1))
    total = int(truth.sum())
    hits, rejected = total - missed, below - missed
    if criterion == "f1":
        score = 2 * hits / np.maximum(total + len(truth) - below, 1)
    else:
        score = (hits / max(total, 1) + rejected / max(len(truth) - total, 1)) / 2
    best = np.flatnonzero(score >= score.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best] - 0.5))]])


def _steps(start: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    order = np.argsort(start, kind="stable")
    at, inverse = np.unique(start[order], return_inverse=True)
    size = np.bincount(inverse).astype(np.float64)
    share = np.bincount(inverse, weights=positive[order].astype(np.float64)) / size
    return at, np.asarray(isotonic_regression(share, weights=size).x)
