"""The head that is kept: everything needed to predict new slides, as arrays and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import FormatError, UsageError
from histostore.head_specs import FeatureSpec, HeadSpec
from histostore.heads.baselines import PositionKNN
from histostore.heads.classifier import Classifier
from histostore.heads.estimator import as_table, under
from histostore.heads.evaluate import average, chosen
from histostore.heads.label_evaluation import train_labels
from histostore.heads.registry import check_task, head_class, make
from histostore.heads.splits import kept_whole
from histostore.heads.targets import targets_of
from histostore.heads.training import Cohort, Turn, effects_of, inputs, places, predict_head, readable_rows, train
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.heads.rows import Table
    from histostore.progress import Progress
    from histostore.protocols import Head

STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedHead:
    """A head trained on all usable rows of a cohort."""

    spec: HeadSpec
    names: tuple[str, ...]
    """``(t,)`` what it predicts, in the order of the columns: genes, table columns, or classes (probabilities)."""
    n_features: int
    """Width of the embeddings it takes."""
    features: FeatureSpec
    """The feature spec chosen."""
    estimator: Head
    position: PositionKNN | None
    """What its prediction is averaged with, where the features say so."""
    chosen: dict[str, Any]
    """Features, alpha, inner score and inner folds."""
    report: Report
    """Rows it was trained on and rows left out."""

    def predict(self, X: Table, obs: pd.DataFrame) -> NDArray[np.float32]:
        """Return ``(n, t)`` float32 predictions; NaN where the embedding is NaN.

        Parameters
        ----------
        X
            ``(n, d)`` embeddings of the backbone it was trained on; a row source for heads that stream.
        obs
            ``n`` lines with ``slide``, and ``x_um``, ``y_um`` where features or position need them. Give all rows of
            a slide: context and per-slide scale look at all of them.
        """
        X = as_table(X, "X")
        if len(X) != len(obs):
            msg = f"X has {len(X)} rows and obs {len(obs)}: align them by id first"
            raise UsageError(msg)
        if X.shape[1] != self.n_features:
            msg = f"X has {X.shape[1]} features and this head was trained on {self.n_features}: use its backbone"
            raise UsageError(msg)
        slide, xy = places(obs)
        if isinstance(self.estimator, Classifier):
            return self.estimator.predict_proba(inputs("embeddings", self.features, X, slide, xy))
        known = bool(self.spec.groups) and all(g in obs for g in self.spec.groups or ())
        effects = effects_of(self.spec, obs) if known else None
        out = predict_head(self.estimator, inputs(_sees(self.estimator), self.features, X, slide, xy), effects)
        if self.position is not None:
            out = average(out, self.position.predict(inputs("positions", self.features, X, slide, xy)))
        out[~readable_rows(self.spec, X)] = np.nan
        return out

    @property
    def threshold(self) -> float | None:
        """Of a classifier: the probability from which the positive (last) of two classes is called."""
        return self.estimator.threshold_ if isinstance(self.estimator, Classifier) else None

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays (for safetensors) and plain JSON."""
        arrays, meta = self.estimator.to_state()
        state = {f"head.{k}": np.ascontiguousarray(v) for k, v in arrays.items()}
        position = None
        if self.position is not None:
            arrays, position = self.position.to_state()
            state |= {f"position.{k}": np.ascontiguousarray(v) for k, v in arrays.items()}
        return state, {
            "version": STATE_VERSION,
            "spec": self.spec.to_json(),
            "genes": list(self.names),
            "n_features": self.n_features,
            "features": self.features.to_json(),
            "head": meta,
            "position": position,
            "chosen": self.chosen,
            "report": self.report.to_json(),
        }

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> FittedHead:
        """Return the head that `to_state` described."""
        if meta.get("version") != STATE_VERSION:
            msg = f"head state of version {meta.get('version')!r}; this histostore reads {STATE_VERSION}"
            raise FormatError(msg)
        spec = HeadSpec.from_json(meta["spec"])
        position = None
        if meta["position"] is not None:
            position = PositionKNN.from_state(under(arrays, "position."), meta["position"])
        return cls(
            spec=spec,
            names=tuple(meta["genes"]),
            n_features=int(meta["n_features"]),
            features=FeatureSpec.from_json(meta["features"]),
            estimator=head_class(spec.head).from_state(under(arrays, "head."), meta["head"]),
            position=position,
            chosen=dict(meta["chosen"]),
            report=Report(dict(meta["report"]["counts"]), tuple(meta["report"]["notes"])),
        )


def fit_final(
    spec: HeadSpec,
    *,
    X: Table,
    obs: pd.DataFrame,
    counts: Any = None,
    symbols: Sequence[str] | None = None,
    values: pd.DataFrame | None = None,
    progress: Progress | None = None,
) -> FittedHead:
    """Train a head on all usable rows; panel, features and penalty are chosen there by inner folds.

    Takes what `histostore.heads.evaluate.cross_validate` takes. Its quality on new slides is what that says, not how
    well it fits these rows.
    """
    targets = targets_of(spec, counts=counts, symbols=symbols, values=values)
    cohort = Cohort.of(spec, X=X, targets=targets, obs=obs)
    nothing = np.empty(0, np.int64)
    (one,) = train(spec, cohort, [Turn(cohort.usable, nothing, "all")], progress)
    assert one.features is not None
    assert one.head is not None
    position = None
    if one.features.position and _sees(one.head) == "embeddings":
        positions = inputs("positions", one.features, cohort.X, cohort.slide, cohort.xy_um)
        position = PositionKNN().fit(positions[cohort.usable], one.y_train)
    return FittedHead(
        spec=spec,
        names=tuple(targets.names[c] for c in one.columns),
        n_features=cohort.X.shape[1],
        features=one.features,
        estimator=one.head,
        position=position,
        chosen=chosen(one),
        report=cohort.report,
    )


def fit_final_labels(
    spec: HeadSpec, *, X: NDArray[Any], labels: Any, obs: pd.DataFrame, classes: Sequence[str] | None = None
) -> FittedHead:
    """Train a classifier on all rows that have a label; see `fit_final`."""
    head = classifier(spec, classes)
    by = kept_whole(spec.split, obs)
    made = train_labels(head, X=X, labels=labels, obs=obs, by=by, features=spec.features, seed=spec.seed)
    return FittedHead(
        spec=spec,
        names=made.head.classes_,
        n_features=X.shape[1],
        features=made.features,
        estimator=made.head,
        position=None,
        chosen=made.chosen,
        report=made.report,
    )


def classifier(spec: HeadSpec, classes: Sequence[str] | None = None) -> Classifier:
    """Return the unfitted classifier of a spec.

    Raises
    ------
    UsageError
        Its head predicts numbers.
    """
    check_task(spec.head, "labels")
    head: Any = make(spec.head, spec.options, seed=spec.seed)
    if classes is not None and head.classes is None:
        head.set_params(classes=tuple(classes))
    made: Classifier = head
    return made


def _sees(head: Head) -> str:
    return getattr(head, "sees", "embeddings")
