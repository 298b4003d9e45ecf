from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histostore.errors import DataError, NotFoundError
from histostore.pl import sweep_boxes, sweep_curves, sweep_means


@pytest.fixture
def runs():
    keys = [(c, m, r, e) for c in ("nll", "none") for m in (16, 2, 4) for r in range(5) for e in range(6)]
    table = pd.DataFrame(keys, columns=["loss", "m", "run", "epoch"])
    value = np.random.default_rng(0).normal(size=len(table)) + table["m"]
    return table.assign(value=value, s2_b=np.where(table["loss"] == "none", np.nan, value))


def legend(figure):
    return [t.get_text() for t in figure.legends[0].get_texts()]


def test_curves_are_means_over_runs_in_panels_by_size(runs):
    figure = sweep_curves(runs, "value", title="study")
    assert [ax.get_title() for ax in figure.axes] == ["m = 2", "m = 4", "m = 16"]
    line = figure.axes[1].lines[1]
    want = runs[(runs["m"] == 4) & (runs["loss"] == "none")].groupby("epoch")["value"].mean()
    assert np.allclose(line.get_ydata(), want)
    assert figure.get_suptitle() == "study\nline: mean, band: ± 1 sd of 5 runs"
    assert legend(figure) == ["nll", "none"]


def test_the_first_epochs_need_not_stretch_the_axis(runs):
    runs.loc[runs["epoch"] == 0, "value"] = 1e6
    figure = sweep_curves(runs, "value", skip=1)
    assert figure.axes[0].get_ylim()[1] < 100
    assert figure.get_suptitle().endswith("axis fitted after the first 1")


def test_boxes_hold_every_run_as_a_point(runs):
    last = runs[runs["epoch"] == 5]
    (ax,) = sweep_boxes(last, "value").axes
    points = {line.get_label(): line.get_ydata() for line in ax.lines if not line.get_label().startswith("_")}
    assert set(points) == {"nll", "none"}
    assert np.allclose(np.sort(points["nll"]), np.sort(last.loc[last["loss"] == "nll", "value"]))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2", "4", "16"]


def test_means_have_their_standard_error(runs):
    last = runs[(runs["epoch"] == 5) & (runs["loss"] == "nll")]
    (ax,) = sweep_means(last, "value").axes
    (container,) = ax.containers
    line, _, (bars,) = container.lines
    by = last.groupby("m")["value"]
    assert np.allclose(line.get_ydata(), by.mean())
    ends = np.array([s[:, 1] for s in bars.get_segments()])
    assert np.allclose((ends[:, 1] - ends[:, 0]) / 2, by.std() / np.sqrt(5))


@pytest.mark.parametrize("draw", [sweep_curves, sweep_boxes, sweep_means])
def test_what_has_no_value_is_named_and_the_others_keep_their_colours(runs, draw):
    swapped = runs.assign(loss=runs["loss"].map({"nll": "second", "none": "first"})).iloc[::-1]
    figure = draw(swapped, "s2_b")
    assert figure.legends[0].get_title().get_text() == "without a value: first"
    whole = draw(swapped, "value")
    colour = {f: f.axes[0].lines[-1].get_color() for f in (figure, whole)}
    assert legend(figure) == ["second"]
    assert colour[figure] == colour[whole]


@pytest.mark.parametrize("draw", [sweep_curves, sweep_boxes, sweep_means])
def test_empty_studies_and_unknown_columns_are_refused(runs, draw):
    with pytest.raises(DataError, match="no finite 'value'"):
        draw(runs.iloc[:0], "value")
    with pytest.raises(NotFoundError, match="did you mean 'value'"):
        draw(runs, "valu")
