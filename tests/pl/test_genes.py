from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histostore.errors import NotFoundError
from histostore.pl import gene_scores


def test_gene_scores_are_sorted_by_the_method_with_its_baselines_at_the_same_gene():
    wide = pd.DataFrame({"ridge": [0.1, 0.5, np.nan], "mean": [0.3, 0.2, 0.0]}, index=["A", "B", "C"])
    figure = gene_scores(wide)
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["B", "A", "C"]
    drawn = {line.get_label(): line.get_xdata() for line in ax.lines if not line.get_label().startswith("_")}
    assert np.allclose(drawn["mean (mean 0.167)"], [0.2, 0.3, 0.0])
    assert np.allclose(drawn["ridge (mean 0.300)"], [0.5, 0.1, np.nan], equal_nan=True)
    assert figure.get_suptitle() == "3 genes by ridge · 1 undefined"


def test_a_long_table_of_scores_is_averaged_over_folds():
    long = pd.DataFrame(
        {"gene": list("AABB") * 2, "method": ["ridge"] * 4 + ["mean"] * 4, "fold": [1, 2] * 4,
         "pearson": [0.1, 0.3, 0.6, 0.4, 0, 0, 0.1, 0.1]}
    )  # fmt: skip
    ax = gene_scores(long).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["B", "A"]
    with pytest.raises(NotFoundError, match="'pearsn'"):
        gene_scores(long, score="pearsn")


def test_many_genes_are_drawn_by_rank():
    scores = pd.DataFrame({"ridge": np.random.default_rng(0).random(500)})
    ax = gene_scores(scores).axes[0]
    assert ax.get_xlabel() == "gene rank"
    (line,) = [item for item in ax.lines if item.get_label().startswith("ridge")]
    assert (np.diff(line.get_ydata()) <= 0).all()
