"""The head that is kept: everything needed to predict new slides, as arrays and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import FormatError, UsageError
from histostore.heads.baselines import PositionKNN
from histostore.heads.estimator import as_rows, finite_rows
from histostore.heads.evaluate import average, chosen
from histostore.heads.registry import head_class
from histostore.heads.training import Cohort, Turn, inputs, places, train
from histostore.specs import FeatureSpec, HeadSpec, PanelSpec, SplitSpec
from histostore.tables import Report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.progress import Progress
    from histostore.protocols import Head

STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedHead:
    """A head trained on all usable rows of a cohort."""

    spec: HeadSpec
    genes: tuple[str, ...]
    """``(t,)`` what it predicts, in the order of the columns."""
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

    def predict(self, X: NDArray[Any], obs: pd.DataFrame) -> NDArray[np.float32]:
        """Return ``(n, t)`` float32 predictions; NaN where the embedding is NaN.

        Parameters
        ----------
        X
            ``(n, d)`` embeddings of the backbone it was trained on.
        obs
            ``n`` lines with ``slide``, and ``x_um``, ``y_um`` where features or position need them. Give all rows of
            a slide: context and per-slide scale look at all of them.
        """
        X = as_rows(X, "X")
        if len(X) != len(obs):
            msg = f"X has {len(X)} rows and obs {len(obs)}: align them by id first"
            raise UsageError(msg)
        if X.shape[1] != self.n_features:
            msg = f"X has {X.shape[1]} features and this head was trained on {self.n_features}: use its backbone"
            raise UsageError(msg)
        slide, xy = places(obs)
        out = self.estimator.predict(inputs(_sees(self.estimator), self.features, X, slide, xy))
        if self.position is not None:
            out = average(out, self.position.predict(inputs("positions", self.features, X, slide, xy)))
        out[~finite_rows(X)] = np.nan
        return out

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
            "genes": list(self.genes),
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
        spec = head_spec_from_json(meta["spec"])
        position = None
        if meta["position"] is not None:
            position = PositionKNN.from_state(_under(arrays, "position."), meta["position"])
        return cls(
            spec=spec,
            genes=tuple(meta["genes"]),
            n_features=int(meta["n_features"]),
            features=FeatureSpec.from_json(meta["features"]),
            estimator=head_class(spec.head).from_state(_under(arrays, "head."), meta["head"]),
            position=position,
            chosen=dict(meta["chosen"]),
            report=Report(dict(meta["report"]["counts"]), tuple(meta["report"]["notes"])),
        )


def fit_final(
    spec: HeadSpec,
    *,
    X: NDArray[Any],
    counts: Any,
    symbols: Sequence[str],
    obs: pd.DataFrame,
    progress: Progress | None = None,
) -> FittedHead:
    """Train a head on all usable rows; panel, features and penalty are chosen there by inner folds.

    Takes what `histostore.heads.evaluate.cross_validate` takes. Its quality on new slides is what that says, not how
    well it fits these rows.
    """
    cohort = Cohort.of(X=X, counts=counts, symbols=symbols, obs=obs, min_counts=spec.min_counts)
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
        genes=tuple(cohort.symbols[g] for g in one.genes),
        n_features=cohort.X.shape[1],
        features=one.features,
        estimator=one.head,
        position=position,
        chosen=chosen(one),
        report=cohort.report,
    )


def head_spec_from_json(value: Mapping[str, Any]) -> HeadSpec:
    """Return the `HeadSpec` whose `to_json` this is, the specs inside it included."""
    plain = dict(value)
    nested: dict[str, Any] = {
        "panel": PanelSpec.from_json(plain.pop("panel")),
        "split": SplitSpec.from_json(plain.pop("split")),
        "features": tuple(FeatureSpec.from_json(f) for f in plain.pop("features", [{}])),
        "options": tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in plain.pop("options", ())),
    }
    return HeadSpec.from_json({**plain, **nested})


def _sees(head: Head) -> str:
    return getattr(head, "sees", "embeddings")


def _under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
