from __future__ import annotations

import numpy as np
import pytest

from histostore.errors import DataError, UsageError
from histostore.pl import loss_curves, variance_curves


def test_both_losses_are_drawn_from_epoch_one_and_the_kept_epoch_is_marked():
    figure = loss_curves([3, 2, 1], [3.0, 2.5, 2.75], best_epoch=2, name="MSE", title="MLP")
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.lines if line.get_gid() != "best"}
    assert lines["training"].get_xdata().tolist() == [1, 2, 3]
    assert lines["validation"].get_ydata().tolist() == [3.0, 2.5, 2.75]
    (mark,) = [line for line in ax.lines if line.get_gid() == "best"]
    assert mark.get_xdata() == [2, 2]
    assert figure.get_suptitle() == "MLP · kept epoch 2 of 3, validation 2.5"


def test_without_validation_there_is_one_line_and_no_mark():
    figure = loss_curves([3, 2, 1], best_epoch=None)
    assert [line.get_label() for line in figure.axes[0].lines] == ["training"]
    assert figure.get_suptitle() == "3 epochs, at the end training 1"
    assert not [line for line in loss_curves([1.0], best_epoch=0).axes[0].lines if line.get_gid() == "best"]


def test_a_validation_loss_of_another_kind_has_a_panel_of_its_own():
    figure = loss_curves([3, 2], [9, 8], name="NLL", validation_name="MSE", best_epoch=1)
    assert [ax.get_ylabel() for ax in figure.axes] == ["NLL", "MSE"]


def test_losses_of_very_different_size_are_drawn_on_a_logarithmic_axis():
    assert loss_curves([1000, 2, 1]).axes[0].get_yscale() == "log"
    assert loss_curves([1000, 2, -1]).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize(
    ("train", "validation", "best", "said"),
    [
        ([], [], None, "training loss of shape"),
        ([1, np.nan], [], None, "one finite number per epoch"),
        ([1, 2], [1], None, "2 training and 1 validation"),
        ([1, 2], [], 3, "best epoch 3 of 2"),
    ],
)
def test_what_is_no_history_is_refused(train, validation, best, said):
    with pytest.raises((DataError, UsageError), match=said):
        loss_curves(train, validation, best_epoch=best)


def test_variances_start_at_zero_and_exact_ones_stand_beside_them():
    figure = variance_curves({"within": [1, 0.9], "between": [1, 0.5]}, reference={"between": 0.1}, best_epoch=2)
    ax = figure.axes[0]
    assert ax.get_ylim()[0] == 0
    text = [t.get_text() for t in figure.legends[0].get_texts()]
    assert text == ["within  (last 0.9)", "between  (last 0.5)", "between, exact fit  (0.1)", "kept: epoch 2"]


def test_of_many_targets_median_and_spread_are_drawn():
    table = np.outer([1.0, 0.5], np.arange(1, 12))
    figure = variance_curves({"within": table})
    assert figure.axes[0].lines[0].get_ydata().tolist() == [6.0, 3.0]
    (band,) = figure.axes[0].collections
    assert band.get_paths()[0].vertices[:, 1].max() == 10
    assert "11 targets" in figure.get_suptitle()


@pytest.mark.parametrize("variances", [{}, {"a": []}, {"a": [1, -1]}, {"a": [1, np.inf]}])
def test_what_are_no_variances_is_refused(variances):
    with pytest.raises(DataError, match="variances"):
        variance_curves(variances)
