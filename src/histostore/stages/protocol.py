"""What must be known to believe a number: the protocol that stands beside every score of a head."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore._version import __version__
from histostore.heads.evaluate import MEAN
from histostore.heads.label_evaluation import LabelEvaluation
from histostore.heads.metrics import json_lines, mean_defined, pearson
from histostore.heads.rows import blocks
from histostore.heads.significance import paired_bootstrap, sign_test
from histostore.heads.splits import leaks, patients_known
from histostore.staged import write_text

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.heads.evaluate import Evaluation, FoldResult
    from histostore.heads.rows import Table
    from histostore.stages.fit import FitResult

LIBRARIES = ("numpy", "scipy", "torch", "scikit-learn", "pandas")


def protocol(result: FitResult) -> dict[str, Any]:
    """Return spec, data, split, leakage check, scores, significance and versions as plain JSON.

    The significance is ST-Net's: per gene, in how many patients the correlation is above zero, with Holm's correction;
    and the head's mean squared error against the training mean's, drawn by patient. Where patients are not known, by
    slide, and so it is said. Of rows that are held out in several folds the correlation is the mean over those.
    """
    evaluation, data = result.evaluation, result.data
    out: dict[str, Any] = {
        "head": result.spec.to_json(),
        "head digest": result.spec.digest,
        "saved as": result.name,
        "data": {
            "rows": len(data.X),
            "slides": list(data.view.slides),
            "left out": {**result.left_out, **evaluation.report.counts},
            "embeddings": {p.slide: {r.key: r.digest for r in p.embeddings.values()} for p in data.view.parts},
        },
        "split": evaluation.split_text,
        "leakage": leakage(evaluation, data.obs, data.X),
        "scores": json_lines(evaluation.summary.reset_index()),
        "notes": list(evaluation.report.notes),
        "versions": {"histostore": __version__, "python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
    }
    if not isinstance(evaluation, LabelEvaluation):
        out["significance"] = significance(evaluation, data.obs)
    return out


def leakage(evaluation: Evaluation | LabelEvaluation, obs: pd.DataFrame, X: Table) -> dict[str, Any]:
    """Return, over all folds, what lies on both sides: patients, slides, and rows of one and the same embedding.

    Training rows are taken to be all that are not tested in the same fold, so a buffer between them is not counted.
    """
    seen = np.unique(np.concatenate([f.rows for f in evaluation.folds]))
    shared: dict[str, set[str]] = {"patient": set(), "slide": set()}
    doubles = 0
    codes = _row_codes(X)
    for fold in evaluation.folds:
        train = np.setdiff1d(seen, fold.rows)
        for column, names in leaks(obs.iloc[train], obs.iloc[fold.rows]).items():
            shared[column].update(names)
        doubles += int(np.isin(codes[fold.rows], codes[train]).sum())
    return {
        "patients known": patients_known(obs),
        "patients on both sides": sorted(shared["patient"]),
        "slides on both sides": sorted(shared["slide"]),
        "test rows with an embedding that is also trained on": doubles,
    }


def significance(evaluation: Evaluation, obs: pd.DataFrame) -> dict[str, Any]:
    """Return the sign test per gene and the bootstrap against the training mean; see `protocol`."""
    unit = "patient" if patients_known(obs) else "slide"
    folds, method = evaluation.folds, evaluation.method
    of = obs[unit].astype(str).to_numpy(dtype=object).astype(str)
    genes = sorted(set.intersection(*(set(f.genes) for f in folds)))
    tested = of[np.concatenate([f.rows for f in folds])]
    units = np.unique(tested)
    out: dict[str, Any] = {"by": unit, "units": len(units)}
    if genes:
        test = sign_test(np.array([_correlations(evaluation, genes, of == one) for one in units]))
        out["genes"] = {
            gene: {"above zero": int(a), "of": int(n), "p": _number(p), "p_holm": _number(q)}
            for gene, a, n, p, q in zip(genes, test.positive, test.n, test.p, test.p_holm, strict=True)
        }
    if len(units) > 1:
        head, mean = (np.concatenate([_row_errors(f, m) for f in folds]) for m in (method, MEAN))
        boot = paired_bootstrap(head, mean, tested, draws=2000)
        out["mse minus training mean's"] = {
            "difference": boot.difference, "low": boot.low, "high": boot.high, "p": boot.p,
        }  # fmt: skip
    return out


def _correlations(evaluation: Evaluation, genes: list[str], mine: NDArray[np.bool_]) -> list[float]:
    """Return each gene's correlation on one unit's rows: the mean over the folds that hold some of them out.

    Pooled they would not do: each fold has a model of its own, and all of them a mean that the held-out rows pulled the
    other way.
    """
    found = []
    for fold in evaluation.folds:
        at = mine[fold.rows]
        if at.any():
            columns = [fold.genes.index(g) for g in genes]
            found.append(pearson(fold.truth[at][:, columns], fold.predictions[evaluation.method][at][:, columns]))
    return [mean_defined(of_gene)[0] for of_gene in np.array(found).T]


def _row_errors(fold: FoldResult, method: str) -> NDArray[np.float64]:
    """Return the squared error of each test row, mean over the fold's targets."""
    errors: NDArray[np.float64] = ((fold.predictions[method] - fold.truth) ** 2).mean(1, dtype=np.float64)
    return errors


def write_protocol(path: Path, result: FitResult) -> Path:
    """Write `protocol` as JSON."""
    return write_text(path, [json.dumps(protocol(result), indent=1, allow_nan=False), "\n"], overwrite=True)


def _row_codes(X: Table) -> NDArray[Any]:
    """Return one number per row, equal where rows are: a random projection of the bytes, exact in integers."""
    weights = np.random.default_rng(0).integers(1, 2**62, X.shape[1] * X.dtype.itemsize, dtype=np.uint64)
    codes = np.zeros(len(X), np.uint64)
    for rows, block in blocks(X, 4096):
        raw = np.ascontiguousarray(block).view(np.uint8).reshape(len(block), -1)
        codes[rows] = (raw.astype(np.uint64) * weights).sum(1, dtype=np.uint64)
    return codes


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
