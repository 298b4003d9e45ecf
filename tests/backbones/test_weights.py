"""Local checkpoints: what fits is loaded, what does not is one clear line."""

from __future__ import annotations

import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from histostore.backbones import load_backbone, networks, weights
from histostore.backbones.names import parse
from histostore.backbones.records import ModelRecord
from histostore.errors import DataError, HistostoreError, UsageError

ARCH = "timm/resnet10t"


@pytest.fixture(scope="module")
def state():
    record = ModelRecord(name="x", source="module:test", dim=512, arch=ARCH)
    return networks.bare(record, seed=11).module.state_dict()


@pytest.fixture
def saved(state, tmp_path):
    path = tmp_path / "best run.safetensors"
    save_file(state, path)
    return path


def test_a_safetensors_checkpoint_gives_what_its_network_gave(saved, tiles):
    backbone = load_backbone(f"file:{saved}#{ARCH}")
    assert np.array_equal(backbone.embed(tiles), load_backbone(f"{ARCH}@random:11").embed(tiles))
    assert backbone.spec.name == "best_run"
    assert backbone.spec.source == "file:timm/resnet10t"
    assert backbone.spec.weights_sha256 == weights.sha256_of_file(saved)


def test_where_the_file_lies_is_no_part_of_its_digest(saved, tmp_path):
    moved = tmp_path / "elsewhere" / "other.safetensors"
    moved.parent.mkdir()
    moved.write_bytes(saved.read_bytes())
    assert load_backbone(ARCH, checkpoint=moved).spec.digest == load_backbone(f"file:{saved}#{ARCH}").spec.digest


def test_a_classifier_in_the_checkpoint_is_left_out(state, tmp_path, tiles):
    headed = {**state, "fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}
    save_file(headed, tmp_path / "headed.safetensors")
    rows = load_backbone(ARCH, checkpoint=tmp_path / "headed.safetensors").embed(tiles)
    assert np.array_equal(rows, load_backbone(f"{ARCH}@random:11").embed(tiles))


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module."])
def test_a_torch_file_is_read_when_it_is_allowed(state, tmp_path, tiles, wrap):
    value = {"state_dict": dict(state), "epoch": 3} if wrap == "state_dict" else dict(state)
    if wrap == "module.":
        value = {f"module.{k}": v for k, v in value.items()}
    torch.save(value, tmp_path / "last.pth")
    with pytest.raises(UsageError, match="is a pickle"):
        load_backbone(ARCH, checkpoint=tmp_path / "last.pth")
    rows = load_backbone(ARCH, checkpoint=tmp_path / "last.pth", allow_pickle=True).embed(tiles)
    assert np.array_equal(rows, load_backbone(f"{ARCH}@random:11").embed(tiles))


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_even_when_pickles_are_allowed(tmp_path):
    target = tmp_path / "harm"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"w": Harm(target)}, protocol=2))
    with pytest.raises(DataError, match="more than tensors"):
        load_backbone(ARCH, checkpoint=tmp_path / "evil.pt", allow_pickle=True)
    assert not target.exists()


def _nan(state):
    state["conv1.0.weight"] = state["conv1.0.weight"].clone()
    state["conv1.0.weight"][0, 0, 0, 0] = float("nan")


def _shape(state):
    state["bn1.weight"] = torch.zeros(7)


def _missing(state):
    del state["bn1.weight"]


def _extra(state):
    state["decoder.weight"] = torch.zeros(2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param(_nan, "tensor 'conv1.0.weight' has 1 values that are NaN", id="NaN"),
        pytest.param(_shape, r"tensor 'bn1.weight' is \(7,\), the network wants \(\d+,\)", id="shape"),
        pytest.param(_missing, "1 of the network's .* missing, first 'bn1.weight'", id="missing"),
        pytest.param(_extra, "no place in the network, first 'decoder.weight'", id="extra"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_tensor(state, tmp_path, change, text):
    changed = dict(state)
    change(changed)
    save_file(changed, tmp_path / "bad.safetensors")
    with pytest.raises(DataError, match=text) as caught:
        load_backbone(ARCH, checkpoint=tmp_path / "bad.safetensors")
    assert "bad.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def _saved(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "raw", "text"),
    [
        pytest.param("a.safetensors", b"", "not a whole safetensors file", id="empty"),
        pytest.param(
            "a.safetensors", struct.pack("<Q", 2**60) + b"{}", "not a whole safetensors file", id="huge header"
        ),
        pytest.param("a.safetensors", b"PK\x03\x04 not it", "not a whole safetensors file", id="another format"),
        pytest.param("a.pth", b"", "cut short", id="empty pickle"),
        pytest.param("a.pth", _saved([1, 2]), "expected a state dict", id="a list"),
        pytest.param("a.pth", _saved({"a": 1}), "expected a state dict", id="no tensors"),
        pytest.param("a.pth", _saved({"a": torch.ones(9)})[:-200], "cut short", id="truncated torch file"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, name, raw, text):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=text) as caught:
        load_backbone(ARCH, checkpoint=tmp_path / name, allow_pickle=True)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-1000])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_backbone(f"file:{saved}#{ARCH}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("file:/nowhere/a.safetensors#timm/resnet10t", "no such file"),
        ("file:a.safetensors", "name the weights and their architecture"),
        ("file:a.safetensors#resnet10x", "unknown backbone 'resnet10x'"),
        ("timm/resnte50", "did you mean 'resnet50'"),
        ("timm/resnet50.nope", "no weights 'nope'"),
        ("torchvision/resnet5", "did you mean 'resnet50'"),
        ("torchvision/resnet50.V9", "no weights 'V9'"),
        ("torchvision/squeezenet1_0@random:0", "does not end in a linear classifier"),
        ("resnet50@random", "need a seed"),
        ("conch@random:0", "comes with its weights only"),
        ("testing?speed=5", "the one option of testing is delay_ms"),
        ("testing?delay_ms=-1", "0 or more seconds"),
        ("", "unknown backbone ''"),
    ],
)
def test_bad_names_are_one_clear_line(name, text):
    with pytest.raises(HistostoreError, match=text) as caught:
        load_backbone(name)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code in (2, 3)


def test_two_sources_of_weights_are_refused(saved):
    for name in (f"file:{saved}#{ARCH}", f"{ARCH}@random:0", "testing"):
        with pytest.raises(UsageError, match=r"weights"):
            load_backbone(name, checkpoint=saved)


def test_a_file_name_may_hold_a_hash_sign():
    parsed = parse("file:run#3/best.safetensors#timm/resnet18")
    assert (str(parsed.checkpoint), parsed.model) == ("run#3/best.safetensors", "timm/resnet18")


def test_timm_weights_in_the_hub_cache_are_used_and_identified_by_their_file(bare_machine, state, tiles):
    full = {**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    snapshot = bare_machine / "hf" / "hub" / "models--timm--resnet10t.c3_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    save_file(full, snapshot / "model.safetensors")
    backbone = load_backbone("timm/resnet10t.c3_in1k")
    assert (backbone.spec.name, backbone.spec.source) == ("resnet10t", "timm:resnet10t.c3_in1k")
    assert backbone.spec.weights_sha256 == weights.sha256_of_file(snapshot / "model.safetensors")
    assert np.array_equal(backbone.embed(tiles), load_backbone(f"{ARCH}@random:11").embed(tiles))


def test_dinov2_names_map_onto_timm_and_a_lost_key_is_named():
    record = ModelRecord(
        name="v", source="module:test", dim=192, arch="timm/vit_tiny_patch16_224",
        arch_options=(("depth", 2), ("init_values", 1e-5)),
    )  # fmt: skip
    network = networks.bare(record, seed=0).module
    theirs = _as_dinov2(network.state_dict())
    back = weights.dinov2_to_timm(theirs)
    assert set(back) == set(network.state_dict())
    assert all(torch.equal(back[k], v) for k, v in network.state_dict().items())
    del theirs["encoder.layer.0.attention.attention.key.bias"]
    with pytest.raises(DataError, match=r"lacks 'encoder\.layer\.0\.attention\.attention\.key\.bias'"):
        weights.dinov2_to_timm(theirs)


def _as_dinov2(state):
    names = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "attn.proj": "attention.output.dense",
             "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1", "blocks.": "encoder.layer.",
             "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}  # fmt: skip
    out = {"embeddings.mask_token": torch.zeros(1, 192)}
    for name, tensor in state.items():
        new = f"layernorm.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        for ours, hf in names.items():
            new = new.replace(ours, hf)
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                out[new.replace("attn.qkv", f"attention.attention.{part}")] = piece
        else:
            out[new] = tensor
    return out
