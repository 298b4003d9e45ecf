"""How well classes are told apart: ranking, decisions and calibration, from probabilities.

What is undefined on some rows (one class only) is NaN, never a zero or a half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from histostore.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    type Floats = NDArray[np.float64]

CLASS_METRICS = ("auroc", "auprc", "f1", "balanced_accuracy", "accuracy", "log_loss", "calibration_error")


def auroc(truth: NDArray[Any], score: NDArray[Any]) -> float:
    """Return the chance that a positive row scores above a negative one, ties counting half; NaN with one class."""
    truth, score = _pair(truth, score)
    positive = int(truth.sum())
    negative = len(truth) - positive
    if not positive or not negative:
        return float("nan")
    return float((rankdata(score)[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


def auprc(truth: NDArray[Any], score: NDArray[Any]) -> float:
    """Return average precision: precision at each threshold weighed by the recall it adds; NaN without a positive."""
    truth, score = _pair(truth, score)
    if not truth.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits, ends = np.cumsum(truth[order]), np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def roc_curve(truth: NDArray[Any], score: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Return false positive rate, true positive rate and threshold, from none to all rows called positive."""
    truth, score = _pair(truth, score)
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    hits, false = np.cumsum(truth[order])[ends], np.cumsum(~truth[order])[ends]
    with np.errstate(invalid="ignore"):
        rates = [np.append(0.0, part / np.float64(part[-1])) for part in (false, hits)]
    return rates[0], rates[1], np.append(np.inf, score[order][ends])


def pr_curve(truth: NDArray[Any], score: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Return recall, precision and threshold, the most certain rows first."""
    truth, score = _pair(truth, score)
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    hits = np.cumsum(truth[order])[ends]
    with np.errstate(invalid="ignore"):
        return hits / np.float64(truth.sum()), hits / (ends + 1), score[order][ends]


def confusion(truth: NDArray[Any], guess: NDArray[Any], n_classes: int) -> NDArray[np.int64]:
    """Return ``(c, c)`` counts, rows the truth and columns the guess, of codes 0..c-1."""
    truth, guess = np.asarray(truth, dtype=np.int64), np.asarray(guess, dtype=np.int64)
    if truth.shape != guess.shape or truth.ndim != 1:
        msg = f"truth of shape {truth.shape} and guess of shape {guess.shape}: give equal (n,)"
        raise UsageError(msg)
    return np.bincount(truth * n_classes + guess, minlength=n_classes**2).reshape(n_classes, n_classes)


def f1_scores(table: NDArray[np.int64]) -> Floats:
    """Return each class's F1 ``(c,)`` of a confusion table; NaN for a class neither there nor guessed."""
    hits, there, called = np.diag(table), table.sum(1), table.sum(0)
    with np.errstate(invalid="ignore"):
        return np.where(there + called > 0, 2 * hits / np.float64(1.0) / (there + called), np.nan)


def balanced_accuracy(table: NDArray[np.int64]) -> float:
    """Return the mean recall over the classes that are there."""
    there = table.sum(1)
    return float(np.mean(np.diag(table)[there > 0] / there[there > 0])) if there.any() else float("nan")


def calibration_table(truth: NDArray[Any], probability: NDArray[Any], *, bins: int = 10) -> dict[str, Floats]:
    """Return the reliability diagram: per bin of equal width ``n``, mean ``predicted`` and ``observed`` share.

    ``(bins,)`` each; NaN in an empty bin.
    """
    truth, probability = _pair(truth, probability)
    which = np.minimum((probability * bins).astype(np.int64), bins - 1)
    n = np.bincount(which, minlength=bins).astype(np.float64)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(which, weights=probability, minlength=bins) / n
        observed = np.bincount(which, weights=truth.astype(np.float64), minlength=bins) / n
    return {"n": n, "predicted": predicted, "observed": observed}


def calibration_error(truth: NDArray[Any], probability: NDArray[Any], *, bins: int = 10) -> float:
    """Return the expected calibration error: mean over rows of |observed − predicted| of their bin.

    Naeini, Cooper and Hauskrecht, AAAI 2015.
    """
    table = calibration_table(truth, probability, bins=bins)
    gap = np.abs(table["observed"] - table["predicted"])
    return float(np.nansum(gap * table["n"]) / table["n"].sum())


def log_loss(codes: NDArray[Any], probabilities: NDArray[Any]) -> float:
    """Return the mean negative log probability of the true class; ``(n,)`` codes and ``(n, c)`` probabilities."""
    chosen = np.asarray(probabilities, dtype=np.float64)[np.arange(len(codes)), np.asarray(codes, dtype=np.int64)]
    return float(-np.mean(np.log(np.clip(chosen, 1e-15, 1.0))))


def class_metrics(
    codes: NDArray[Any], probabilities: NDArray[Any], guess: NDArray[Any] | None = None
) -> dict[str, float]:
    """Return each of `CLASS_METRICS`.

    Parameters
    ----------
    codes
        ``(n,)`` true classes, 0..c-1. With two classes, class 1 is the positive one.
    probabilities
        ``(n, c)``.
    guess
        ``(n,)`` decisions where they are not simply the likeliest class.

    Returns
    -------
    dict
        With more than two classes ``auroc`` and ``auprc`` are means over the classes for which they are defined, each
        against the rest, ``f1`` is the mean over the classes that are there, and the calibration error is that of the
        likeliest class.
    """
    codes, probabilities = np.asarray(codes, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or probabilities.shape[0] != len(codes) or probabilities.shape[1] < 2 or not len(codes):
        msg = f"{len(codes)} codes and probabilities of shape {probabilities.shape}: give (n,) and (n, classes)"
        raise UsageError(msg)
    if not np.isfinite(probabilities).all():
        msg = "probabilities hold NaN: leave those rows out and count them"
        raise UsageError(msg)
    c = probabilities.shape[1]
    guess = probabilities.argmax(1) if guess is None else np.asarray(guess, dtype=np.int64)
    table = confusion(codes, guess, c)
    f1 = f1_scores(table)
    if c == 2:
        positive, score = codes == 1, probabilities[:, 1]
        ranked = {"auroc": auroc(positive, score), "auprc": auprc(positive, score), "f1": float(f1[1])}
        gap = calibration_error(positive, score)
    else:
        each = [(auroc(codes == k, probabilities[:, k]), auprc(codes == k, probabilities[:, k])) for k in range(c)]
        ranked = {
            "auroc": _mean([a for a, _ in each]),
            "auprc": _mean([p for _, p in each]),
            "f1": _mean(list(f1[table.sum(1) > 0])),
        }
        gap = calibration_error(codes == probabilities.argmax(1), probabilities.max(1))
    return {
        **ranked,
        "balanced_accuracy": balanced_accuracy(table),
        "accuracy": float(np.mean(codes == guess)),
        "log_loss": log_loss(codes, probabilities),
        "calibration_error": gap,
    }


def _mean(values: list[float]) -> float:
    defined = [v for v in values if not np.isnan(v)]
    return float(np.mean(defined)) if defined else float("nan")


def _pair(truth: NDArray[Any], score: NDArray[Any]) -> tuple[NDArray[np.bool_], Floats]:
    truth, score = np.asarray(truth).astype(bool), np.asarray(score, dtype=np.float64)
    if truth.shape != score.shape or truth.ndim != 1 or not len(truth) or np.isnan(score).any():
        msg = f"truth of shape {truth.shape} and scores of shape {score.shape}: give equal (n,) without NaN"
        raise UsageError(msg)
    return truth, score
