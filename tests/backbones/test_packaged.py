"""The packaged models: real weights, in the right places."""

from __future__ import annotations

import csv
import dataclasses
import shutil

import numpy as np
import pytest

from histostore.backbones import catalog, load_backbone, weights
from histostore.errors import CorruptionError
from histostore.testing.backbone_contract import BackboneContract

PALACE = 698
"""ImageNet's class of the photograph of a Chinese palace that scikit-learn ships."""


class TestEfficientNetLite0(BackboneContract):
    def make_backbone(self):
        return load_backbone("efficientnet_lite0")


class TestMobileNetV2(BackboneContract):
    def make_backbone(self):
        return load_backbone("mobilenet_v2")


@pytest.mark.parametrize(
    ("name", "layer"), [("efficientnet_lite0", "_fc"), ("mobilenet_v2", "classifier.1")], ids=["lite0", "mobilenet"]
)
def test_with_its_own_classifier_it_recognises_a_palace(name, layer):
    # 296 tensors mapped by position, the normalisation and the colour order are all right, or this fails
    from sklearn.datasets import load_sample_image

    photo = load_sample_image("china.jpg")
    edge = min(photo.shape[:2])
    left = (photo.shape[1] - edge) // 2
    features = load_backbone(name).embed(np.ascontiguousarray(photo[None, :edge, left : left + edge]))
    state = weights.read_state(catalog.local_file(catalog.find(name)), allow_pickle=True)
    scores = features @ state[f"{layer}.weight"].numpy().T + state[f"{layer}.bias"].numpy()
    assert scores.argmax() == PALACE


def test_a_packaged_file_that_was_changed_is_refused(tmp_path):
    record = catalog.find("efficientnet_lite0")
    changed = tmp_path / record.file
    raw = bytearray(catalog.local_file(record).read_bytes())
    raw[len(raw) // 2] ^= 1
    changed.write_bytes(raw)
    with pytest.raises(CorruptionError, match="sha256"):
        weights.check_pinned(changed, record.sha256)


def test_the_spec_carries_the_pinned_digest_and_name_and_licence_do_not_count():
    spec = load_backbone("efficientnet_lite0").spec
    assert spec.weights_sha256 == catalog.find("efficientnet_lite0").sha256
    assert dataclasses.replace(spec, name="mine", licence=None).digest == spec.digest
    assert dataclasses.replace(spec, input_px=192).digest != spec.digest


def test_torchvision_finds_the_same_weights_in_its_own_cache(bare_machine, tiles):
    packaged = catalog.local_file(catalog.find("mobilenet_v2"))
    cache = bare_machine / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    shutil.copy(packaged, cache / packaged.name)
    theirs = load_backbone("torchvision/mobilenet_v2.IMAGENET1K_V1")
    assert theirs.spec.weights_sha256 == catalog.find("mobilenet_v2").sha256
    assert np.array_equal(theirs.embed(tiles), load_backbone("mobilenet_v2").embed(tiles))


def test_a_cached_torchvision_file_with_other_bytes_is_refused(bare_machine):
    cache = bare_machine / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / "resnet18-f37072fd.pth").write_bytes(b"half a file")
    with pytest.raises(CorruptionError, match=r"resnet18-f37072fd\.pth: sha256"):
        load_backbone("resnet18")


@pytest.mark.parametrize("threads", [1, 2])
def test_batch_mates_change_no_bit_on_cpu(tiles, threads):
    backbone = load_backbone("efficientnet_lite0", device="cpu", threads=threads)
    rows = backbone.embed(tiles)
    for keep in (0, 3, 7):
        mixed = np.roll(tiles, 3, axis=0)
        mixed[keep] = tiles[keep]
        assert np.array_equal(backbone.embed(mixed)[keep], rows[keep])


def test_real_tissue_gives_features_that_vary(real_data):
    import imagecodecs

    section = imagecodecs.imread(real_data / "her2st" / "C2.jpg")
    with (real_data / "her2st" / "C2.spots.tsv").open(encoding="utf-8") as file:
        spots = list(csv.DictReader(file, delimiter="\t"))[:160:10]
    corners = [(round(float(s["pixel_x"])) - 112, round(float(s["pixel_y"])) - 112) for s in spots]
    rows = load_backbone("efficientnet_lite0").embed(np.stack([section[y : y + 224, x : x + 224] for x, y in corners]))
    assert rows.shape == (16, 1280)
    share = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    share /= share.sum()
    assert rows.std(0).mean() > 0.05
    assert share[0] < 0.6, "one direction must not be all there is"
    assert (share > 0.01).sum() >= 8
