"""The section that reports how well heads predict: folds, baselines beside them, genes, and the kind of split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histostore.errors import DataError
from histostore.report.section import Section

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

SAME_PATIENT = (
    "Same patient on both sides: training and test rows share patients, so these scores say how well replicates of "
    "known tissue are predicted, not a new patient. Compare them with the position-only baseline."
)


def evaluation_section(
    summary: pd.DataFrame | Mapping[str, Any],
    genes: pd.DataFrame | None = None,
    *,
    title: str = "Evaluation",
    text: str = "",
    metric: str = "Pearson r",
    split: str = "",
    same_patient: bool = False,
    figures: Mapping[str, Figure | bytes] | None = None,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Section:
    """Return the section of an evaluation.

    Parameters
    ----------
    summary
        Rows are methods (baselines among them), columns folds; or ``{method: {fold: score}}``. A column ``mean``
        is added at the end where there is none; it is undefined where a fold is, and a note counts those.
    genes
        Rows are genes, columns what is known of each (scores by method, fold, …).
    metric
        What the scores are.
    split
        The kind of split, in words.
    same_patient
        Training and test share patients: a warning says what that means.
    """
    folds = _summary(summary)
    undefined = int(folds.drop(columns="mean").isna().to_numpy().sum())
    tables = {f"{metric} by method and fold": folds}
    if genes is not None:
        tables[f"{metric} by gene ({len(genes)} genes)"] = genes
    small = [f"Split: {split}."] if split else []
    if undefined:
        small.append(f"{undefined} fold scores are undefined; a mean over them is left open, not taken over the rest.")
    return Section(
        title=title,
        text=text,
        warnings=[*([SAME_PATIENT] if same_patient else []), *warnings],
        tables=tables,
        figures=dict(figures or {}),
        notes=[*small, *notes],
    )


def _summary(summary: pd.DataFrame | Mapping[str, Any]) -> pd.DataFrame:
    table = summary if isinstance(summary, pd.DataFrame) else pd.DataFrame.from_dict(dict(summary), orient="index")
    if table.empty:
        msg = "the evaluation has no scores; give methods x folds"
        raise DataError(msg)
    if not table.index.is_unique:
        msg = f"a method stands twice in the summary: {table.index[table.index.duplicated()][0]}; name each once"
        raise DataError(msg)
    try:
        table = table.astype(np.float64)
    except (TypeError, ValueError) as error:
        msg = f"the summary holds what is no score ({error}); rows are methods, columns folds"
        raise DataError(msg) from error
    if "mean" not in table.columns:
        table = table.assign(mean=table.mean(axis=1, skipna=False))
    table = table[[*(c for c in table.columns if c != "mean"), "mean"]]
    named: pd.DataFrame = table.rename_axis(index="method")
    return named
