from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histostore.errors import AlignmentError, DataError, NotFoundError, UsageError
from histostore.pl import fold_table, gene_scores, scatter


@pytest.fixture
def tables():
    rng = np.random.default_rng(0)
    index = [f"S{i // 20}:{i}" for i in range(40)]
    truth = pd.DataFrame(rng.normal(size=(40, 3)), index=index, columns=["A", "B", "C"])
    return truth, truth * 0.5 + rng.normal(size=(40, 3))


def panels(figure):
    return [ax for ax in figure.axes if ax.has_data()]


def test_scatter_joins_by_id_and_titles_carry_r(tables):
    truth, prediction = tables
    shuffled = prediction.sample(frac=1, random_state=1)[["C", "A", "B"]]
    figure = scatter(truth, shuffled)
    for ax, gene in zip(panels(figure), truth.columns, strict=True):
        assert ax.get_title() == f"{gene}  r = {np.corrcoef(truth[gene], prediction[gene])[0, 1]:.2f}"
        assert np.allclose(ax.collections[0].get_offsets(), np.c_[truth[gene], prediction[gene]])


def test_scatter_has_equal_limits_and_the_line_of_equality(tables):
    for ax in panels(scatter(*tables)):
        assert ax.get_xlim() == ax.get_ylim()
        (line,) = [item for item in ax.lines if item.get_gid() == "y=x"]
        assert np.array_equal(line.get_xdata(), line.get_ydata())


def test_with_labels_r_is_the_mean_over_slides(tables):
    truth, prediction = tables
    shifted = [t + np.repeat([0.0, 50.0], 20)[:, None] for t in (truth, prediction)]  # pooled r would be near 1
    labels = pd.Series([i.split(":")[0] for i in truth.index], index=truth.index).iloc[::-1]
    figure = scatter(*shifted, ["B"], labels=labels)
    each = [np.corrcoef(truth["B"][s], prediction["B"][s])[0, 1] for s in (slice(20), slice(20, 40))]
    assert panels(figure)[0].get_title() == f"B  r = {np.mean(each):.2f}"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["S0", "S1"]


def test_tables_of_other_spots_or_genes_are_refused(tables):
    truth, prediction = tables
    with pytest.raises(AlignmentError, match="39, 39 in common"):
        scatter(truth, prediction.iloc[1:])
    with pytest.raises(NotFoundError, match="no gene 'D' in truth"):
        scatter(truth, prediction, ["D"])
    with pytest.raises(AlignmentError, match="repeats 1 row ids"):
        scatter(truth, pd.concat([prediction, prediction.iloc[:1]]))
    with pytest.raises(UsageError, match="0 genes to draw"):
        scatter(truth, prediction, [])


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


def test_the_fold_table_writes_every_score_and_leaves_the_mean_over_a_gap_open():
    scores = pd.DataFrame({"C2": [0.32, 0.46], "C3": [0.352, np.nan]}, index=["ridge", "both"])
    ax = fold_table(scores).axes[0]
    assert [t.get_text() for t in ax.texts] == ["0.320", "0.352", "0.336", "0.460", "–", "–"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ridge", "both"]
    with pytest.raises(DataError, match="methods x folds"):
        fold_table(pd.DataFrame())


def test_a_gene_predicted_as_a_constant_has_no_r(tables):
    truth, prediction = tables
    assert panels(scatter(truth, prediction.assign(A=1.0), ["A"]))[0].get_title() == "A  r undefined"
