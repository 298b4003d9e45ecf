"""A user's own network: module:callable, or an entry point."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from histostore.backbones import load_backbone
from histostore.errors import DataError, NotFoundError, SpecMismatchError, UsageError
from histostore.testing.backbone_contract import BackboneContract


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    sys.modules.pop("own_models", None)


class TestOwnNetwork(BackboneContract):
    def make_backbone(self):
        return load_backbone("own_models:network_and_record")


def test_a_network_alone_gets_the_usual_preprocessing_and_a_measured_width(tiles):
    backbone = load_backbone("own_models:network")
    assert backbone.spec.name == "network"
    assert backbone.spec.source == "module:own_models:network"
    assert backbone.spec.dim == 48
    pixels = tiles.astype(np.float64) / 255
    expected = (pixels.reshape(8, 4, 56, 4, 56, 3).mean((2, 4)) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(backbone.embed(tiles), 2 * expected.transpose(0, 3, 1, 2).reshape(8, 48), atol=1e-4)


def test_the_record_is_acted_on_and_its_version_is_part_of_the_digest():
    spec = load_backbone("own_models:network_and_record").spec
    assert (spec.name, spec.input_px, spec.dim) == ("mine", 64, 48)
    assert spec.source == "module:own_models:network_and_record@2"


def test_a_finished_backbone_is_taken_as_it_is(tiles):
    ours = load_backbone("own_models:finished")
    assert ours.embed(tiles).tobytes() == load_backbone("testing").embed(tiles).tobytes()


def test_an_installed_package_offers_backbones_by_entry_point(tmp_path, monkeypatch, tiles):
    info = tmp_path / "somepackage-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somepackage\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[histostore.backbones]\nours = own_models:network\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_backbone("ours").embed(tiles).shape == (8, 48)
    with pytest.raises(NotFoundError, match="did you mean 'ours'"):
        load_backbone("our")


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        pytest.param("own_modules:network", NotFoundError, "no module 'own_modules'", id="no such module"),
        pytest.param("own_models:netwrk", NotFoundError, "did you mean 'network'", id="no such function"),
        pytest.param("own_models:NUMBER", UsageError, "is a int", id="not callable"),
        pytest.param("own_models:needs", UsageError, "without arguments", id="wants arguments"),
        pytest.param("own_models:text", UsageError, "gave str", id="gives no network"),
        pytest.param("own_models:misspelt_record", UsageError, "'input_pixels'; did you mean 'input_px'", id="field"),
        pytest.param("own_models:not_a_number", DataError, "'scale' has 1 values that are NaN", id="NaN weights"),
        pytest.param("own_models:image_out", UsageError, r"\(1, 4, 222, 222\), expected \(b, dim\)", id="no vector"),
        pytest.param("own_models:network@random:1", UsageError, "its own weights", id="random weights"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(name, error, text):
    with pytest.raises(error, match=text) as caught:
        load_backbone(name)
    assert "\n" not in str(caught.value)


def test_a_wrong_width_is_found_at_the_first_batch(tiles):
    with pytest.raises(SpecMismatchError, match=r"gave \(8, 48\), its record says \(8, 47\)"):
        load_backbone("own_models:wrong_width").embed(tiles)
