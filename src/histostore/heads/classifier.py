"""Classes from embeddings: logistic regression and a multilayer perceptron, weighed, calibrated and with thresholds.

Everything that is chosen (penalty, calibration, threshold) is chosen on rows left out by whole groups, from one set of
out-of-fold scores; the model that is kept is then trained on all rows.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from histostore.errors import DataError, UsageError, near
from histostore.heads.blas import threads_for
from histostore.heads.calibration import CRITERIA, METHODS, Calibrator, Criterion, Method, best_threshold
from histostore.heads.convergence import say_not_converged
from histostore.heads.estimator import Estimator, check_pair, finite_rows
from histostore.heads.tuning import by_value, column_moments, inner_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    type Floats = NDArray[np.float64]
    type Codes = NDArray[np.int64]

PENALTIES = tuple(float(c) for c in 10.0 ** np.arange(-4, 0.25, 0.5))
"""1e-4 to 1 in half decades: as for ridge, good penalties on embeddings are large."""


class Classifier(Estimator):
    """What classification heads share; classes are texts, and numbers and booleans are read as such.

    Parameters
    ----------
    classes
        The classes there may be, in order; a label that is none of them is an error with near names, and one that the
        training rows do not hold gets probability 0 and a note. Without them, those of the training rows, sorted.
    class_weight
        ``balanced`` lets every class weigh the same, a mapping gives weights by class.
    calibration
        ``temperature`` or ``isotonic``, fitted on out-of-fold scores; ``none``.
    threshold
        Two classes only: a probability from which the positive (last) class is called, or what it shall be best for
        out of fold, ``f1`` or ``balanced_accuracy``. With more classes the likeliest is called.
    inner
        At most this many inner folds of whole groups.
    seed
        Of folds, and of what the model draws.

    Attributes
    ----------
    classes_ : tuple of str
    threshold_ : float
    inner_score_ : float
        Negated log loss of the out-of-fold scores, before calibration; NaN where nothing was left out.
    notes_ : tuple of str
    """

    classes: Sequence[str] | None
    class_weight: Literal["balanced"] | Mapping[str, float] | None
    calibration: Method
    threshold: float | Criterion
    inner: int
    seed: int

    @property
    def tunes(self) -> bool:
        """Whether anything is chosen on rows left out."""
        return self.calibration != "none" or isinstance(self.threshold, str) or len(self._candidates()) > 1

    def fit(self, X: NDArray[Any], y: Any, *, groups: NDArray[Any] | None = None) -> Self:
        """Learn from ``(n, d)`` features and ``(n,)`` labels.

        Raises
        ------
        DataError
            Rows without a label, or without embedding.
        UsageError
            A label that is no class; fewer than two classes; options that make no sense.
        """
        self._check_options()
        names = as_labels(y)
        X, _ = check_pair(X, np.zeros(len(names)))
        self.classes_, codes = code_labels(names, self.classes)
        if len(found := np.unique(codes)) < 2:
            msg = f"all {len(names)} training rows are '{self.classes_[found[0]]}': two classes are needed"
            raise UsageError(msg)
        self.notes_: tuple[str, ...] = tuple(
            f"no training row is '{name}': its probability is 0"
            for k, name in enumerate(self.classes_)
            if not (codes == k).any()
        )
        order = by_value(X)
        if groups is not None:
            groups = np.asarray(groups)
            if groups.shape != (len(X),):
                msg = f"groups has shape {groups.shape} for {len(X)} rows"
                raise UsageError(msg)
            groups = groups[order]
        with threads_for(X, len(self.classes_)):
            self._learn(X[order], codes[order], groups)
        self.n_features_in_ = X.shape[1]
        return self

    def predict_proba(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(n, classes)`` float32 probabilities in the order of `classes_`; a row with NaN gives NaN."""
        self._check_fitted("n_features_in_")
        X = self._check_width(X, self.n_features_in_)
        out = np.full((len(X), len(self.classes_)), np.nan, np.float32)
        good = finite_rows(X)
        if good.any():
            out[good] = self._spread(self._calibrator(self._logits(self._model, X[good])))
        return out

    def predict(self, X: NDArray[Any]) -> NDArray[Any]:
        """Return ``(n,)`` class names; None for a row with NaN."""
        return self.decide(self.predict_proba(X))

    def decide(self, probabilities: NDArray[Any]) -> NDArray[Any]:
        """Return the class names ``(n,)`` that `predict` gives for these probabilities."""
        codes = self.decide_codes(probabilities)
        out = np.full(len(codes), None, dtype=object)
        for k, name in enumerate(self.classes_):
            out[codes == k] = name
        return out

    def decide_codes(self, probabilities: NDArray[Any]) -> Codes:
        """Return ``(n,)`` indices into `classes_`, -1 for a row with NaN."""
        self._check_fitted("classes_")
        filled = np.nan_to_num(probabilities, nan=0.0)
        binary = len(self.classes_) == 2
        codes = (filled[:, 1] >= self.threshold_).astype(np.int64) if binary else filled.argmax(1)
        return np.where(np.isfinite(probabilities).all(1), codes, -1)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return what was learned as arrays and plain JSON."""
        self._check_fitted("n_features_in_")
        steps, calibrator = self._calibrator.to_state()
        meta = {
            "params": self._json_params(),
            "classes": list(self.classes_),
            "present": list(self._present),
            "n_features": self.n_features_in_,
            "threshold": self.threshold_,
            "inner_score": None if np.isnan(self.inner_score_) else self.inner_score_,
            "chosen": self.chosen_,
            "notes": list(self.notes_),
            "calibrator": calibrator,
        }
        return self._model_arrays(self._model) | steps, meta

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Self:
        """Return the fitted head that `to_state` described."""
        params = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["params"].items()}
        head = cls(**params)
        head.classes_, head.n_features_in_ = tuple(meta["classes"]), int(meta["n_features"])
        head._present, head.chosen_ = tuple(meta["present"]), meta["chosen"]
        head.threshold_, head.notes_ = float(meta["threshold"]), tuple(meta["notes"])
        head.inner_score_ = float("nan") if meta["inner_score"] is None else float(meta["inner_score"])
        head._calibrator = Calibrator.from_state(dict(arrays), dict(meta["calibrator"]))
        head._model = head._model_from(arrays)
        return head

    # -- what a kind of model says -----------------------------------------------------------------------------------

    @abstractmethod
    def _candidates(self) -> tuple[Any, ...]:
        """Return the settings to choose from."""

    @abstractmethod
    def _train(self, X: NDArray[Any], codes: Codes, weights: Floats, groups: NDArray[Any] | None, choice: Any) -> Any:
        """Return a model of classes 0..c-1, all of which are there; `weights` ``(n,)`` have mean one."""

    @abstractmethod
    def _logits(self, model: Any, X: NDArray[Any]) -> Floats:
        """Return ``(n, c)`` scores whose softmax are the probabilities."""

    @abstractmethod
    def _model_arrays(self, model: Any) -> dict[str, NDArray[Any]]: ...

    @abstractmethod
    def _model_from(self, arrays: Mapping[str, NDArray[Any]]) -> Any: ...

    # -- how ---------------------------------------------------------------------------------------------------------

    def _learn(self, X: NDArray[Any], codes: Codes, groups: NDArray[Any] | None) -> None:
        present = np.unique(codes)
        self._present = tuple(int(k) for k in present)
        dense = np.searchsorted(present, codes)
        weights = self._weights(codes)
        choices = self._candidates()
        self.chosen_, self.inner_score_, self._calibrator = choices[0], float("nan"), Calibrator()
        self.threshold_ = 0.5 if isinstance(self.threshold, str) else float(self.threshold)
        if self.tunes:
            folds = inner_labels(len(X), groups, inner=self.inner, seed=self.seed)
            logits = [self._out_of_fold(X, dense, weights, folds, groups, choice) for choice in choices]
            rows = np.arange(len(dense))
            scores = [float(np.average(log_softmax(z, axis=1)[rows, dense], weights=weights)) for z in logits]
            best = int(np.argmax(scores))
            self.chosen_, self.inner_score_ = choices[best], scores[best]
            self._calibrator = Calibrator.fit(self.calibration, logits[best], dense)
            if isinstance(self.threshold, str) and len(self.classes_) == 2:
                held = self._calibrator(logits[best])[:, 1]
                self.threshold_ = best_threshold(held, dense == 1, self.threshold)
        self._model = self._train(X, dense, weights, groups, self.chosen_)

    def _out_of_fold(
        self, X: NDArray[Any], codes: Codes, weights: Floats, folds: Codes, groups: NDArray[Any] | None, choice: Any
    ) -> Floats:
        c = int(codes.max()) + 1
        out = np.empty((len(X), c))
        for fold in np.unique(folds):
            train, held = folds != fold, folds == fold
            there = np.unique(codes[train])
            if len(there) < 2:
                msg = f"an inner fold leaves only class '{self.classes_[self._present[there[0]]]}' to train on"
                raise UsageError(f"{msg}: give groups that each hold several classes, or choose nothing")
            part = None if groups is None else groups[train]
            model = self._train(X[train], np.searchsorted(there, codes[train]), weights[train], part, choice)
            # a class the fold has not seen is given as little as the least likely row of the others has
            scores = log_softmax(self._logits(model, X[held]), axis=1)
            block = np.full((int(held.sum()), c), min(float(scores.min()), np.log(1e-3)))
            block[:, there] = scores
            out[held] = block
        return out

    def _spread(self, probabilities: Floats) -> NDArray[np.float32]:
        """Return probabilities of the classes trained on as those of all classes."""
        out = np.zeros((len(probabilities), len(self.classes_)), np.float32)
        out[:, list(self._present)] = probabilities
        return out

    def _weights(self, codes: Codes) -> Floats:
        if self.class_weight is None:
            return np.ones(len(codes))
        if self.class_weight == "balanced":
            n = np.bincount(codes, minlength=len(self.classes_))
            per_class = np.divide(1.0, n, out=np.zeros(len(n)), where=n > 0)
        else:
            given = {str(k): float(v) for k, v in dict(self.class_weight).items()}
            for name, value in given.items():
                if name not in self.classes_ or not value > 0:
                    msg = f"class_weight '{name}': {value:g} is no positive weight of one of {', '.join(self.classes_)}"
                    raise UsageError(msg + near(name, self.classes_))
            per_class = np.array([given.get(name, 1.0) for name in self.classes_])
        weights = per_class[codes]
        return np.asarray(weights / weights.mean())

    def _check_options(self) -> None:
        for name, value, known in (("calibration", self.calibration, METHODS),):
            if value not in known:
                msg = f"{name} is {value!r}: give {', '.join(known)}{near(str(value), known)}"
                raise UsageError(msg)
        if isinstance(self.threshold, str):
            if self.threshold not in CRITERIA:
                msg = f"threshold is '{self.threshold}': give a probability or {', '.join(CRITERIA)}"
                raise UsageError(msg + near(self.threshold, CRITERIA))
        elif not 0 < self.threshold < 1:
            msg = f"threshold is {self.threshold}: give a probability between 0 and 1"
            raise UsageError(msg)

    def _json_params(self) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for name, value in self.get_params().items():
            if isinstance(value, str | int | float | None):
                plain[name] = value
            else:
                plain[name] = dict(value) if hasattr(value, "keys") else list(value)
        return plain


class Logistic(Classifier):
    """Logistic regression (scikit-learn's, multinomial) on standardised embeddings.

    Parameters
    ----------
    C
        Inverse penalties to choose from by out-of-fold log loss; one needs no choosing.
    max_iter
        Of L-BFGS; where it is not enough, it is said.

    The others are those of `Classifier`.
    """

    def __init__(
        self,
        C: Sequence[float] | float = PENALTIES,
        *,
        classes: Sequence[str] | None = None,
        class_weight: Literal["balanced"] | Mapping[str, float] | None = None,
        calibration: Method = "none",
        threshold: float | Criterion = 0.5,
        max_iter: int = 1000,
        inner: int = 10,
        seed: int = 0,
    ) -> None:
        self.C = C
        self.classes = classes
        self.class_weight = class_weight
        self.calibration = calibration
        self.threshold = threshold
        self.max_iter = max_iter
        self.inner = inner
        self.seed = seed

    def _candidates(self) -> tuple[float, ...]:
        values = np.atleast_1d(np.asarray(self.C, dtype=np.float64))
        if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values > 0)).all():
            msg = f"C is {self.C!r}: give one or more positive numbers"
            raise UsageError(msg)
        return tuple(np.unique(values).tolist())

    def _train(
        self, X: NDArray[Any], codes: Codes, weights: Floats, groups: NDArray[Any] | None, choice: Any
    ) -> tuple[Floats, Floats]:
        mean, std = column_moments(X, np.arange(len(X)))
        std = np.where(std > 1e-6 * std.max(initial=0.0), std, 1.0)
        model = LogisticRegression(C=choice, max_iter=self.max_iter, tol=1e-6)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model.fit((X - mean) / std, codes, sample_weight=weights)
        if any(issubclass(w.category, ConvergenceWarning) for w in said):
            what = f"logistic regression (C {choice:g})"
            self.notes_ += say_not_converged(what, f"{self.max_iter} iterations", "give a larger max_iter")
        coef, bias = model.coef_, model.intercept_
        if len(coef) == 1:
            # of two classes scikit-learn keeps one set of coefficients
            coef, bias = np.vstack((np.zeros_like(coef), coef)), np.append(0.0, bias)
        coef = coef / std
        return coef, bias - coef @ mean

    def _logits(self, model: tuple[Floats, Floats], X: NDArray[Any]) -> Floats:
        return X.astype(np.float64) @ model[0].T + model[1]

    def _model_arrays(self, model: tuple[Floats, Floats]) -> dict[str, NDArray[Any]]:
        return {"coef": model[0], "intercept": model[1]}

    def _model_from(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[Floats, Floats]:
        return arrays["coef"], arrays["intercept"]


def code_labels(names: NDArray[Any], classes: Sequence[str] | None = None) -> tuple[tuple[str, ...], Codes]:
    """Return the classes, those of the labels where none are given, and each label's place ``(n,)`` among them.

    Raises
    ------
    UsageError
        A label that is no class (near names suggested), or a class named twice.
    """
    found, inverse = np.unique(names, return_inverse=True)
    known = tuple(str(c) for c in (found if classes is None else classes))
    if len(set(known)) != len(known):
        msg = f"classes {', '.join(known)} name one twice"
        raise UsageError(msg)
    for name in found:
        if str(name) not in known:
            n = int((names == name).sum())
            msg = f"label '{name}' ({n} rows) is none of {', '.join(known)}{near(str(name), known)}"
            raise UsageError(msg)
    place = np.array([known.index(str(name)) for name in found], dtype=np.int64)
    return known, place[inverse]


def as_labels(y: Any) -> NDArray[Any]:
    """Return ``(n,)`` labels as texts; a missing one (None, NaN, empty) is a `DataError`."""
    values = np.asarray(y, dtype=object)
    if values.ndim != 1:
        msg = f"labels are {values.ndim}-D: give one per row"
        raise UsageError(msg)
    bad = int(missing_labels(values).sum())
    if bad:
        msg = f"{bad} of {len(values)} rows have no label: leave them out before fitting"
        raise DataError(msg)
    return np.array([str(v) for v in values], dtype=str)


def missing_labels(y: Any) -> NDArray[np.bool_]:
    """Return ``(n,)`` True where a label is None, NaN or empty."""
    # NaN and pandas' NA are the values that do not equal themselves, the latter not even as a truth
    return np.array([v is None or str(v) in ("", "nan", "<NA>") for v in np.asarray(y, dtype=object)], dtype=bool)
