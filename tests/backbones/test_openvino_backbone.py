"""The OpenVINO engine: the same rows as torch up to rounding, the same bits for any batch and threads."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from histostore.backbones import load_backbone
from histostore.backbones.difference import compare_engines
from histostore.backbones.dihedral import DihedralBackbone
from histostore.backbones.engines import network_digest
from histostore.backbones.openvino_backbone import OpenVinoBackbone
from histostore.backbones.torch_backbone import TorchBackbone
from histostore.errors import MissingDependencyError, SpecMismatchError, UsageError
from histostore.specs import BackboneSpec
from histostore.testing.backbone_contract import BackboneContract, stained_tiles

NAME = "timm/resnet10t@random:0"


def small(px=32, interpolation="bicubic", network=None, dim=8):
    """Return a small torch network with everything that a larger one has; always the same weights."""
    torch.manual_seed(0)
    layers = (
        torch.nn.Conv2d(3, 16, 3, stride=2), torch.nn.BatchNorm2d(16), torch.nn.SiLU(), torch.nn.Conv2d(16, 8, 3),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    )  # fmt: skip
    spec = BackboneSpec(
        name="small", source="module:test", weights_sha256="0", dim=dim, input_px=px, mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.6, 0.7), interpolation=interpolation,
    )  # fmt: skip
    return TorchBackbone(network or torch.nn.Sequential(*layers), spec, device="cpu", threads=1)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(NAME, engine="openvino", threads=2)


class TestOpenVino(BackboneContract):
    other_px = 90

    def make_backbone(self):
        return OpenVinoBackbone(small())


def test_rows_are_those_of_torch_up_to_rounding(backbone):
    tiles = stained_tiles(4, px=176)
    found = compare_engines(backbone.torch, backbone, tiles)
    assert found.relative < 1e-5
    assert found.cosine_min > 0.999999
    assert found.tiles == len(tiles)


def test_batch_and_threads_change_no_bit(backbone):
    many = stained_tiles(20, px=176)
    whole = OpenVinoBackbone(backbone.torch, threads=1).embed(many)
    for batch in (3, 16):
        cut = np.concatenate([backbone.embed(many[i : i + batch]) for i in range(0, len(many), batch)])
        assert np.array_equal(cut, whole)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("px", [40, 90])
def test_tiles_of_another_size_are_resized_as_torch_does(interpolation, px):
    blocks = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())
    reference = small(64, interpolation, blocks, dim=48)
    found = compare_engines(reference, OpenVinoBackbone(reference), stained_tiles(3, px=px))
    assert found.max_abs < 1e-4


def test_the_engine_says_openvino_and_how_far_it_is_from_torch(backbone):
    engine, plain = backbone.engine(), load_backbone(NAME, device="cpu")
    assert engine["backend"] == "openvino"
    assert engine["openvino"]
    assert engine["precision"] == "float32"
    assert float(engine["off_torch"]) < 1e-5
    assert engine != plain.engine()


def test_its_embeddings_have_a_digest_and_a_name_of_their_own_and_torch_keeps_its(backbone):
    plain = load_backbone(NAME, device="cpu")
    assert backbone.spec.digest != plain.spec.digest
    assert backbone.spec.name == f"{plain.spec.name}+openvino"
    assert network_digest(backbone.spec) == plain.spec.digest == network_digest(plain.spec)
    both = DihedralBackbone(backbone).spec
    assert both.name.endswith("+openvino+dihedral")
    assert len({both.digest, backbone.spec.digest, plain.spec.digest, DihedralBackbone(plain).spec.digest}) == 4


def test_symmetries_are_averaged_on_it_too():
    plain, tiles = small(), stained_tiles(2, px=32)
    ours, theirs = DihedralBackbone(OpenVinoBackbone(plain)), DihedralBackbone(plain)
    np.testing.assert_allclose(ours.embed(tiles), theirs.embed(tiles), atol=1e-5)


def test_an_own_module_runs_on_it(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    own = load_backbone("own_models:network_and_record", engine="openvino")
    reference = load_backbone("own_models:network_and_record", device="cpu")
    assert compare_engines(reference, own, stained_tiles(2, px=64)).max_abs < 1e-5


def test_what_is_no_torch_network_is_refused_in_one_line():
    with pytest.raises(UsageError, match="'testing' is no torch network: engine openvino cannot run it"):
        load_backbone("testing", engine="openvino")


class Branches(torch.nn.Module):
    """Goes two ways, by what it sees: nothing that a graph can hold."""

    def forward(self, x):
        x = x.mean((2, 3))
        return x if x.sum() > 0 else -x


class Noise(torch.nn.Module):
    """Never the same twice, so no engine can give its rows."""

    def forward(self, x):
        return x.mean((2, 3)) * 0 + torch.rand(x.shape[0], 3)


def test_a_network_that_cannot_be_converted_is_refused_in_one_line():
    with pytest.raises(
        UsageError, match=r"'small' cannot be converted for engine openvino: .+; use engine torch"
    ) as told:
        OpenVinoBackbone(small(16, network=Branches(), dim=3))
    assert "\n" not in str(told.value)


def test_a_network_with_other_rows_is_refused():
    with pytest.raises((SpecMismatchError, UsageError), match="use engine torch"):
        OpenVinoBackbone(small(16, network=Noise(), dim=3))


def test_a_network_of_another_width_than_its_record_is_refused():
    with pytest.raises(SpecMismatchError, match="correct its dim"):
        OpenVinoBackbone(small(16, network=torch.nn.Flatten(), dim=3))


@pytest.mark.parametrize(
    "options", [{"device": "cuda"}, {"precision": "bfloat16"}, {"compile_with": "inductor"}], ids=str
)
def test_what_it_has_not_is_refused(options):
    with pytest.raises(UsageError, match="engine openvino runs on the CPU in float32"):
        load_backbone(NAME, engine="openvino", **options)


def test_an_unknown_engine_is_refused():
    with pytest.raises(UsageError, match="engine is 'onnx': use torch or openvino"):
        load_backbone(NAME, engine="onnx")


def test_without_the_package_the_error_tells_how_to_install_it(monkeypatch):
    here = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else here(name))
    with pytest.raises(MissingDependencyError, match=r"pip install 'histostore\[openvino\]'"):
        load_backbone(NAME, engine="openvino")


def test_converting_leaves_logging_as_it_was(backbone):
    assert backbone.difference.relative < 1e-5
    assert not [h for h in logging.root.handlers if type(h) is logging.StreamHandler and h.stream is sys.stderr]
    assert logging.root.manager.disable == logging.NOTSET
