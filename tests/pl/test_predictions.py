from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histostore.errors import AlignmentError, DataError, NotFoundError, UsageError
from histostore.pl import distributions, residuals, scatter


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


def test_a_gene_predicted_as_a_constant_has_no_r(tables):
    truth, prediction = tables
    assert panels(scatter(truth, prediction.assign(A=1.0), ["A"]))[0].get_title() == "A  r undefined"


def test_a_slide_without_the_gene_takes_no_part_in_its_r_and_the_panel_says_so(tables):
    truth, prediction = tables
    slides = np.repeat(["S1", "S2"], 20)
    only = prediction.copy()
    only.iloc[20:, 0] = np.nan
    first, second, _ = (ax.get_title() for ax in panels(scatter(truth, only, labels=slides)))
    r = np.corrcoef(truth.iloc[:20, 0], prediction.iloc[:20, 0])[0, 1]
    assert first == f"{truth.columns[0]}  r = {r:.2f} (1 of 2)"
    assert "of 2" not in second


def test_every_panel_says_how_many_pairs_it_shows(tables):
    truth, prediction = tables
    truth.iloc[:3, 0] = np.nan
    ax, other, _ = panels(scatter(truth, prediction))
    assert ax.texts[0].get_text() == "n = 37\n3 without value"
    assert other.texts[0].get_text() == "n = 40"


def test_very_many_points_are_counted_in_cells_of_one_scale():
    rng = np.random.default_rng(0)
    truth = pd.DataFrame(rng.normal(size=(6000, 2)), columns=["A", "B"])
    figure = scatter(truth, truth * 0.5)
    cells = [ax.collections[0] for ax in figure.axes[:2]]
    assert [c.get_array().sum() for c in cells] == [6000, 6000]
    assert cells[0].norm.vmax == cells[1].norm.vmax == max(c.get_array().max() for c in cells)
    assert figure.axes[2].get_ylabel() == "points in a cell"
    labels = np.repeat(["S1", "S2"], 3000)
    assert len(scatter(truth, truth * 0.5, labels=labels).axes[0].collections[0].get_offsets()) == 3000


def test_residuals_are_true_minus_predicted_against_predicted(tables):
    truth, prediction = tables
    truth = truth + 0.5
    for ax, gene in zip(panels(residuals(truth, prediction.iloc[::-1])), truth, strict=True):
        want = np.c_[prediction[gene], truth[gene] - prediction[gene]]
        assert np.allclose(ax.collections[0].get_offsets(), want)
        left = truth[gene] - prediction[gene]
        assert ax.texts[0].get_text() == f"n = 40\nbias {left.mean():+.2f}\nsd {left.std(ddof=0):.2f}"


def test_the_line_through_residuals_finds_a_bend():
    x = np.linspace(-1, 1, 400)
    fitted = pd.DataFrame({"A": x})
    (ax,) = panels(residuals(pd.DataFrame({"A": x + x**2}), fitted))
    (line,) = [item for item in ax.lines if item.get_gid() == "trend"]
    at, mean = line.get_xdata(), line.get_ydata()
    assert len(at) == 12
    assert np.allclose(mean, np.square(at), atol=0.01)


def test_a_constant_prediction_has_one_point_of_trend(tables):
    truth, prediction = tables
    (ax,) = panels(residuals(truth, prediction.assign(A=1.0), ["A"]))
    (line,) = [item for item in ax.lines if item.get_gid() == "trend"]
    assert np.allclose(line.get_xydata(), [[1.0, truth["A"].mean() - 1.0]])


def test_distributions_share_bins_and_are_shares_of_spots(tables):
    truth, prediction = tables
    figure = distributions(truth, prediction, ["A"], bins=10)
    (ax,) = panels(figure)
    measured, predicted = ax.patches
    assert np.array_equal(measured.get_data().edges, predicted.get_data().edges)
    assert measured.get_data().values.sum() == pytest.approx(100)
    assert predicted.get_data().values.sum() == pytest.approx(100)
    assert f"measured sd {truth['A'].std(ddof=0):.2f}" in ax.texts[0].get_text()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["measured", "predicted"]


@pytest.mark.parametrize("draw", [scatter, residuals, distributions])
def test_what_is_constant_or_missing_is_drawn_and_what_is_empty_is_refused(tables, draw, tmp_path):
    truth, prediction = tables
    draw(truth.assign(A=0.0, B=np.nan), prediction.assign(A=0.0), save=tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000
    with pytest.raises(DataError, match="no spots to draw"):
        draw(truth.iloc[:0], prediction.iloc[:0])
    with pytest.raises(UsageError, match="65 genes to draw"):
        many = pd.DataFrame(np.ones((2, 65)))
        draw(many, many)
