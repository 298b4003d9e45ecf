"""Networks cut into blocks: every tensor in one of them, and only what should learn learns."""

from __future__ import annotations

import pytest
from torch import nn

from histostore.backbones import load_backbone
from histostore.backbones.blocks import blocks_of, last_blocks, training_mode, unfreeze
from histostore.errors import UsageError


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("timm/test_resnet", 7, "conv1.0", "layer4.0"),
        ("timm/test_vit", 7, "patch_embed", "blocks.5"),
        ("torchvision/resnet50", 17, "conv1", "layer4.2"),
        ("torchvision/mobilenet_v2", 19, "features.0.0", "features.18.0"),
    ],
)
def test_a_block_is_a_residual_or_transformer_block(name: str, count: int, first: str, last: str) -> None:
    network = load_backbone(f"{name}@random:0", device="cpu").network
    blocks = blocks_of(network)
    assert (len(blocks), blocks[0].name, blocks[-1].name) == (count, first, last)
    assert unfreeze(network, blocks) == list(network.state_dict())
    assert all(p.requires_grad for p in network.parameters())
    alone = [key for block in blocks for key in unfreeze(network, [block])]
    assert sorted(alone) == sorted(network.state_dict())


def test_a_network_without_children_is_one_block() -> None:
    network = nn.Linear(4, 2)
    (block,) = blocks_of(network)
    assert unfreeze(network, [block]) == ["weight", "bias"]


def test_only_the_last_blocks_learn_and_only_they_are_in_training_mode() -> None:
    network = load_backbone("timm/test_resnet@random:0", device="cpu").network
    blocks = last_blocks(network, 2, name="test_resnet")
    assert [b.name for b in blocks] == ["layer3.0", "layer4.0"]
    unfreeze(network, blocks)
    assert {n.partition(".")[0] for n, p in network.named_parameters() if p.requires_grad} == {"layer3", "layer4"}
    training_mode(network, blocks, frozen_statistics=False)
    norms = {n: m for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert all(m.training == n.startswith(("layer3.0", "layer4.0")) for n, m in norms.items())
    training_mode(network, blocks, frozen_statistics=True)
    assert not any(m.training for m in norms.values())
    assert network.get_submodule("layer4.0").training


@pytest.mark.parametrize("wanted", [0, 8, -1, "most", 1.5])
def test_a_count_the_network_has_not_is_refused(wanted: object) -> None:
    network = load_backbone("timm/test_resnet@random:0", device="cpu").network
    with pytest.raises(UsageError, match=r"has 7 \(the last are layer2.0, layer3.0, layer4.0\); give 1-7 or 'all'"):
        last_blocks(network, wanted, name="test_resnet")  # type: ignore[arg-type]
