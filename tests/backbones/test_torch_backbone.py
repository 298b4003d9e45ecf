"""Networks from timm and torchvision with random weights: preprocessing, pooling, engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from histostore.backbones import load_backbone, networks
from histostore.backbones.records import ModelRecord
from histostore.backbones.torch_backbone import TorchBackbone
from histostore.errors import UsageError
from histostore.specs import BackboneSpec
from histostore.testing.backbone_contract import BackboneContract, stained_tiles


class TestTimm(BackboneContract):
    def make_backbone(self):
        return load_backbone("timm/resnet10t@random:0")


class TestTorchvision(BackboneContract):
    def make_backbone(self):
        return load_backbone("torchvision/resnet18@random:0")


class Pixels(torch.nn.Module):
    """Gives back what it was shown."""

    def forward(self, x):
        return x.flatten(1)


def pixels_backbone(px, **fields):
    spec = BackboneSpec(
        **{
            "name": "pixels", "source": "module:test", "weights_sha256": "0", "dim": 3 * px * px, "input_px": px,
            "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), **fields,
        }
    )  # fmt: skip
    return TorchBackbone(Pixels(), spec, device="cpu")


def test_the_network_sees_normalised_red_green_blue_channels_first():
    tile = np.zeros((1, 4, 4, 3), np.uint8)
    tile[..., 0], tile[..., 1], tile[0, 1, 2, 2] = 255, 51, 102
    seen = pixels_backbone(4).embed(tile).reshape(3, 4, 4)
    np.testing.assert_allclose(seen[0], (1 - 0.1) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(seen[1], 0, atol=1e-6)
    np.testing.assert_allclose(seen[2, 1, 2], (0.4 - 0.3) / 0.7, rtol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("px", "input_px"), [(96, 32), (32, 64)])
def test_tiles_of_another_size_are_resized_with_antialiasing(interpolation, px, input_px):
    tiles = stained_tiles(2, px=px)
    backbone = pixels_backbone(input_px, interpolation=interpolation, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    seen = backbone.embed(tiles).reshape(2, 3, input_px, input_px)
    theirs = functional.interpolate(
        torch.from_numpy(tiles).permute(0, 3, 1, 2), size=(input_px,) * 2, mode=interpolation, antialias=True
    )
    # torch's own 8-bit path rounds its weights: within one grey level and a bit
    assert np.abs(seen - theirs.numpy()).max() < 1.6
    assert seen.min() >= 0
    assert seen.max() <= 255.01


@pytest.mark.parametrize(
    ("name", "dim", "input_px", "source"),
    [
        ("timm/resnet10t@random:0", 512, 176, "timm:resnet10t@random:0"),
        ("timm/mobilenetv3_small_050.lamb_in1k@random:3", 1024, 224, "timm:mobilenetv3_small_050@random:3"),
        ("timm/vit_tiny_patch16_224@random:0", 192, 224, "timm:vit_tiny_patch16_224@random:0"),
        ("torchvision/mobilenet_v3_small@random:0", 1024, 224, "torchvision:mobilenet_v3_small@random:0"),
        ("torchvision/googlenet@random:0", 1024, 224, "torchvision:googlenet@random:0"),
        ("inception_v3@random:0", 2048, 299, "torchvision:inception_v3@random:0"),
        ("resnet50@random:0", 2048, 224, "torchvision:resnet50@random:0"),
        ("densenet121@random:0", 1024, 224, "torchvision:densenet121@random:0"),
        ("efficientnet_lite0@random:0", 1280, 224, "timm:tf_efficientnet_lite0@random:0"),
    ],
)
def test_any_model_loads_with_random_weights(name, dim, input_px, source):
    backbone = load_backbone(name)
    spec = backbone.spec
    assert (spec.dim, spec.input_px, spec.source) == (dim, input_px, source)
    assert backbone.embed(stained_tiles(1, px=64)).shape == (1, dim)


def test_random_weights_come_from_their_seed_alone(tiles):
    state = torch.get_rng_state()
    first, again, other = (load_backbone(f"timm/resnet10t@random:{s}") for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.spec == again.spec
    assert first.spec.digest != other.spec.digest
    assert np.array_equal(first.embed(tiles[:2]), again.embed(tiles[:2]))
    assert not np.array_equal(first.embed(tiles[:2]), other.embed(tiles[:2]))


@pytest.mark.parametrize(("pooling", "dim"), [("cls", 192), ("mean", 192), ("cls+mean", 384)])
def test_poolings_leave_register_tokens_out(tiles, pooling, dim):
    record = ModelRecord(
        name="vit", source="module:test", dim=192, arch="timm/vit_tiny_patch16_224", arch_options=(("reg_tokens", 4),)
    )
    network = networks.bare(record, seed=0).module
    spec = load_backbone("timm/vit_tiny_patch16_224@random:0").spec
    values = {**spec.to_json(), "dim": dim, "pooling": pooling}
    rows = TorchBackbone(network, BackboneSpec.from_json(values), device="cpu").embed(tiles[:1])
    pixels = torch.from_numpy(tiles[:1].copy()).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    with torch.inference_mode():
        tokens = network.forward_features((pixels - mean) / std)
    assert tokens.shape[1] == 1 + 4 + 196
    parts = {"cls": tokens[:, 0], "mean": tokens[:, 5:].mean(1)}
    np.testing.assert_allclose(rows, torch.cat([parts[p] for p in pooling.split("+")], 1).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "dim", "parameters"),
    [
        ("uni", 1024, 303e6), ("uni2-h", 1536, 681e6), ("virchow2", 1280, 631e6), ("h-optimus-0", 1536, 1135e6),
        ("prov-gigapath", 1536, 1135e6), ("phikon-v2", 1024, 303e6),
    ],
)  # fmt: skip
def test_the_pathology_networks_have_the_published_size(name, dim, parameters):
    from histostore.backbones.catalog import find

    with torch.device("meta"):  # shapes only
        network = networks.bare(find(name))
    assert network.dim == dim
    assert sum(p.numel() for p in network.module.parameters()) == pytest.approx(parameters, rel=0.005)


def test_the_number_of_threads_holds_for_the_call_only(tiles):
    before = torch.get_num_threads()
    backbone = load_backbone("timm/resnet10t@random:0", threads=2)
    seen = []
    backbone._network.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    backbone.embed(np.concatenate([tiles, tiles, tiles])[:20])
    assert seen == [1, 1]  # two parts of 16, each on one thread
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("batch", [1, 5, 16, 20])
def test_batch_and_threads_change_no_bit_on_cpu(tiles, batch):
    """Parts of 16 are always alike, whoever computes them and whatever is beside them."""
    many = np.concatenate([tiles, tiles[::-1], tiles])[:20]
    whole = load_backbone("timm/resnet10t@random:0", device="cpu", threads=1).embed(many)
    other = load_backbone("timm/resnet10t@random:0", device="cpu", threads=2)
    cut = np.concatenate([other.embed(many[i : i + batch]) for i in range(0, len(many), batch)])
    assert cut.tobytes() == whole.tobytes()


def test_the_network_is_in_eval_mode_and_batch_statistics_never_move(tiles):
    backbone = load_backbone("timm/resnet10t@random:0")
    before = {k: v.clone() for k, v in backbone._network.state_dict().items()}
    backbone.embed(tiles)
    assert not backbone._network.training
    assert all(torch.equal(v, before[k]) for k, v in backbone._network.state_dict().items())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"device": "cuda:99"}, "'cuda:99' is not here"),
        ({"device": "cpu", "precision": "bfloat16"}, "for CUDA devices"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"threads": 0}, "threads is 0"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_impossible_engines_are_refused(options, text):
    with pytest.raises(UsageError, match=text):
        load_backbone("timm/resnet10t@random:0", **options)


def test_float32_and_dihedral_are_what_the_digest_sees_and_the_engine_is_not(tiles):
    plain = load_backbone("timm/resnet10t@random:0", threads=1)
    assert plain.spec.digest == load_backbone("timm/resnet10t@random:0", threads=2).spec.digest
    turned = load_backbone("timm/resnet10t@random:0", dihedral=True)
    assert turned.spec.digest != plain.spec.digest
    assert turned.spec.name == "resnet10t-random0+dihedral"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-4), ("bfloat16", 5e-2), ("float16", 5e-3)])
def test_cuda_agrees_with_the_cpu(tiles, precision, limit):
    cpu = load_backbone("efficientnet_lite0", device="cpu").embed(tiles)
    gpu = load_backbone("efficientnet_lite0", device="cuda", precision=precision)
    assert gpu.engine()["precision"] == precision
    assert np.linalg.norm(gpu.embed(tiles) - cpu) / np.linalg.norm(cpu) < limit
