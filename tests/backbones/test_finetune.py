"""A backbone learns on: from pixels in memory, with and without a cut, on classes and on values."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from histostore.backbones import load_backbone
from histostore.backbones.finetune import Curves, tune
from histostore.backbones.finetune_spec import AugmentSpec, FinetuneSpec
from histostore.backbones.torch_backbone import TorchBackbone
from histostore.backbones.torch_loader import rebuilt
from histostore.backbones.weights import sha256_of_state
from histostore.errors import CorruptionError, DataError, UsageError
from histostore.specs import BackboneSpec
from histostore.testing.backbone_contract import stained_tiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from histostore.backbones.finetune import Tuned

RESNET = "timm/test_resnet@random:0"
TRAIN, HELD = np.arange(24), np.arange(24, 36)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """Tiles of two kinds by turns: every other one is darker."""
    tiles = stained_tiles(36, px=48)
    tiles[1::2] = (tiles[1::2] * 0.6).astype(np.uint8)
    return tiles


@pytest.fixture(scope="module")
def parent() -> TorchBackbone:
    backbone = load_backbone(RESNET, device="cpu", threads=1)
    assert isinstance(backbone, TorchBackbone)
    backbone.spec = replace(backbone.spec, input_px=64)
    return backbone


KINDS = (np.arange(36) % 2).astype(np.int64)


def spec(**options: Any) -> FinetuneSpec:
    return FinetuneSpec(**{"backbone": RESNET, "batch": 8, "max_epochs": 3, "lr": 1e-3, "head_lr": 1e-2, **options})


class Memory:
    """Keeps the state of a run, and can cut it short after some epochs."""

    def __init__(self, cut_after: int = 1000) -> None:
        self.data: bytes | None = None
        self.saves = 0
        self.cut_after = cut_after

    def load(self) -> bytes | None:
        return self.data

    def save(self, data: bytes) -> None:
        self.data, self.saves = data, self.saves + 1
        if self.saves == self.cut_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def run(parent: TorchBackbone, pixels: NDArray[np.uint8]) -> Callable[..., Tuned]:
    def go(wanted: FinetuneSpec, y: NDArray[Any] = KINDS, *, n_classes: int | None = 2, **options: Any) -> Tuned:
        where = {"parent": parent, "read": lambda rows: pixels[rows], "train": TRAIN, "held": HELD} | options
        return tune(y=y, spec=wanted, n_classes=n_classes, **where)

    return go


def state_of(tuned: Tuned) -> dict[str, torch.Tensor]:
    return tuned.backbone.network.state_dict()


def test_the_loss_falls_on_separable_classes_and_the_parent_stays(
    run: Callable[..., Tuned], parent: TorchBackbone
) -> None:
    before = sha256_of_state(parent.network.state_dict())
    tuned = run(spec(blocks="all", max_epochs=6))
    assert min(tuned.curves.validation_loss) < 0.7 * tuned.curves.begun_at
    assert tuned.curves.train_loss[-1] < 0.6 * tuned.curves.train_loss[0]
    assert max(tuned.curves.validation_score) > 0.9
    assert sha256_of_state(parent.network.state_dict()) == before != sha256_of_state(state_of(tuned))
    assert not tuned.backbone.network.training


def test_frozen_blocks_keep_every_bit_and_batch_norm_statistics(
    run: Callable[..., Tuned], parent: TorchBackbone
) -> None:
    old = parent.network.state_dict()
    new = state_of(run(spec(blocks=2)))
    moved = {k for k, v in new.items() if not torch.equal(v, old[k])}
    assert {k.partition(".")[0] for k in moved} == {"layer3", "layer4"}
    assert any("running_mean" in k for k in moved)
    still = state_of(run(spec(blocks=2, batch_norm="frozen")))
    assert not [k for k, v in still.items() if "running" in k and not torch.equal(v, old[k])]
    assert not torch.equal(still["layer4.0.conv1.weight"], old["layer4.0.conv1.weight"])


def test_the_embedding_of_a_tile_does_not_depend_on_its_batch_mates(
    run: Callable[..., Tuned], pixels: NDArray[np.uint8]
) -> None:
    tuned = run(spec(blocks="all", max_epochs=1)).backbone
    before = sha256_of_state(tuned.network.state_dict())
    whole = tuned.embed(pixels[:20])
    for part in (slice(3, 4), slice(3, 9)):
        assert np.array_equal(tuned.embed(pixels[part]), whole[part])
    assert sha256_of_state(tuned.network.state_dict()) == before


class _Colours(nn.Module):
    """Means of R, G and B, and one learning layer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach().mean((2, 3)))
        out: torch.Tensor = self.layer(x.mean((2, 3)))
        return out


def test_red_green_and_blue_reach_the_network_in_that_order_normalised_once() -> None:
    record = BackboneSpec(
        name="colours",
        source="module:x",
        weights_sha256="0",
        dim=3,
        input_px=8,
        mean=(0.5, 0.25, 0.0),
        std=(0.5, 0.25, 0.1),
    )
    network = _Colours()
    tiles = np.tile(np.array([204, 102, 51], np.uint8), (4, 8, 8, 1))
    tuned = tune(
        TorchBackbone(network, record, device="cpu"), lambda rows: tiles[rows], np.array([0, 1, 0, 1]), np.arange(3),
        np.arange(3, 4), spec(max_epochs=1, augment=AugmentSpec.none()), n_classes=2,
    )  # fmt: skip
    expected = torch.tensor([(0.8 - 0.5) / 0.5, (0.4 - 0.25) / 0.25, 0.2 / 0.1])
    seen = torch.cat(tuned.backbone.network.seen)
    assert len(seen) == 1 + 3 + 1
    assert torch.allclose(seen, expected.expand_as(seen), atol=1e-5)


def test_a_run_that_was_cut_goes_on_and_ends_as_an_uncut_one(run: Callable[..., Tuned]) -> None:
    wanted = spec(blocks=3, max_epochs=3, hidden=(8,))
    whole = run(wanted)
    keeper = Memory(cut_after=2)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, keeper=keeper)
    resumed = run(wanted, keeper=keeper)
    assert (resumed.resumed, whole.resumed, keeper.saves) == (True, False, 3)
    assert resumed.curves == whole.curves
    assert sha256_of_state(state_of(resumed)) == sha256_of_state(state_of(whole))
    assert all(torch.equal(v, whole.head[k]) for k, v in resumed.head.items())


def test_dropout_too_is_drawn_anew_but_alike_after_a_cut(pixels: NDArray[np.uint8]) -> None:
    torch.manual_seed(7)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 16), nn.Dropout(0.5), nn.Linear(16, 4))
    record = BackboneSpec(
        name="drop", source="module:x", weights_sha256="0", dim=4, input_px=8, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    backbone = TorchBackbone(network, record, device="cpu")
    found = []
    for cut_after in (1000, 2):
        keeper = Memory(cut_after)
        while True:
            try:
                found.append(
                    tune(backbone, lambda rows: pixels[rows], KINDS, TRAIN, HELD, spec(blocks="all", max_epochs=4),
                         n_classes=2, keeper=keeper)
                )  # fmt: skip
                break
            except KeyboardInterrupt:
                torch.manual_seed(99)  # the state of torch's own generator is nobody's business
    assert found[0].curves == found[1].curves


def test_the_same_seed_gives_the_same_bits_and_another_one_others(run: Callable[..., Tuned]) -> None:
    one, same, other = (run(spec(seed=s, max_epochs=2)) for s in (0, 0, 1))
    assert one.curves == same.curves != other.curves
    assert sha256_of_state(state_of(one)) == sha256_of_state(state_of(same))


def test_training_stops_when_patience_ends_and_the_best_epoch_is_kept(run: Callable[..., Tuned]) -> None:
    wild = run(spec(blocks="all", max_epochs=9, patience=2, lr=0.3, head_lr=0.3))
    curves = wild.curves
    assert curves.settled
    assert len(curves.validation_loss) == curves.best_epoch + 2 < 9
    assert curves.best_epoch == 1 + int(np.argmin(curves.validation_loss))
    short = run(spec(blocks="all", max_epochs=curves.best_epoch, patience=2, lr=0.3, head_lr=0.3))
    assert sha256_of_state(state_of(short)) == sha256_of_state(state_of(wild))


def test_values_are_learned_in_units_of_their_training_spread(run: Callable[..., Tuned]) -> None:
    y = np.stack([100 + 10.0 * KINDS, 3 - 0.01 * KINDS], axis=1) + np.where(np.arange(36) < 24, 0, 0.001)[:, None]
    tuned = run(spec(blocks="all", max_epochs=4, batch_norm="frozen"), y, n_classes=None)
    assert min(tuned.curves.validation_loss) < 0.6 * tuned.curves.begun_at
    assert max(tuned.curves.validation_score) > 0.3
    assert tuned.head["target_mean"].tolist() == pytest.approx(y[TRAIN].mean(axis=0).tolist())
    assert tuned.head["target_std"].tolist() == pytest.approx(y[TRAIN].std(axis=0).tolist())


def test_rows_held_out_are_never_trained_on(run: Callable[..., Tuned], pixels: NDArray[np.uint8]) -> None:
    y = KINDS.copy()
    one = run(spec(max_epochs=2, patience=9))
    y[HELD] = 1 - y[HELD]
    broken = pixels.copy()
    broken[HELD] = 0
    other = run(spec(max_epochs=2, patience=9), y, read=lambda rows: broken[rows])
    assert one.curves.train_loss == other.curves.train_loss
    assert one.curves.validation_loss != other.curves.validation_loss


def test_balanced_weights_count_rare_classes_as_much_as_common_ones(run: Callable[..., Tuned]) -> None:
    y = (np.arange(36) % 12 == 1).astype(np.int64)
    plain, balanced = (run(spec(max_epochs=1, class_weight=w), y) for w in ("none", "balanced"))
    assert plain.curves.train_loss != balanced.curves.train_loss
    assert plain.curves.begun_at == balanced.curves.begun_at


def features(backbone: TorchBackbone, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Embed one tile and no more: `embed` fills a part of 16."""
    with torch.inference_mode():
        found: NDArray[np.float32] = backbone.forward(backbone.prepare(backbone.upload(pixels[:1]).float())).numpy()
    return found


@pytest.mark.parametrize("name", ["efficientnet_lite0", "timm/test_vit@random:1", "torchvision/resnet50@random:0"])
def test_any_network_can_be_tuned_and_made_again_from_its_tensors(name: str, pixels: NDArray[np.uint8]) -> None:
    parent = load_backbone(name, device="cpu", threads=1)
    assert isinstance(parent, TorchBackbone)
    if "vit" not in name:  # a transformer's input is of one size; the others are faster at a smaller one
        parent.spec = replace(parent.spec, input_px=64)
    tuned = tune(
        parent,
        lambda rows: pixels[rows],
        KINDS,
        np.arange(4),
        np.arange(4, 6),
        spec(max_epochs=1, batch=4),
        n_classes=2,
    ).backbone
    state = tuned.network.state_dict()
    assert tuned.rebuild is not None
    record = BackboneSpec.from_json(parent.spec.to_json() | {"weights_sha256": sha256_of_state(state)})
    again = rebuilt(tuned.rebuild, state, record, device="cpu", threads=1)
    assert np.array_equal(features(again, pixels), features(tuned, pixels))
    assert not np.array_equal(features(again, pixels), features(parent, pixels))
    with pytest.raises(CorruptionError, match="its weights have sha256"):
        rebuilt(tuned.rebuild, parent.network.state_dict(), record, device="cpu")


def test_a_last_batch_of_one_tile_joins_the_one_before(run: Callable[..., Tuned]) -> None:
    tuned = run(spec(blocks="all", max_epochs=1, batch=8), train=np.arange(17), held=HELD)
    assert np.isfinite(tuned.curves.train_loss[0])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"train": np.arange(1)}, UsageError, "1 tiles to train on"),
        ({"held": np.arange(0)}, UsageError, "0 for validation"),
        ({"wanted": spec(blocks=99)}, UsageError, "blocks is 99: backbone 'test_resnet-random0' has 7"),
        ({"wanted": spec(lr=1e30, head_lr=1e30)}, DataError, "in epoch 1: give a smaller lr"),
        ({"y": np.ones((36, 1)), "n_classes": None}, DataError, "target 0 is 1 in all 24 training rows"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    run: Callable[..., Tuned], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    wanted = options.pop("wanted", spec())
    with pytest.raises(error, match=words) as caught:
        run(wanted, **options)
    assert "\n" not in str(caught.value)


def test_specs_have_a_digest_that_survives_json_and_refuse_nonsense() -> None:
    one = spec(test=("C",), hidden=(4,), augment=AugmentSpec(hue=0.1))
    assert FinetuneSpec.from_json(one.to_json()) == one
    assert FinetuneSpec.from_json(one.to_json()).digest == one.digest != spec().digest
    for options in (
        {"blocks": 0},
        {"blocks": "some"},
        {"lr": float("nan")},
        {"folds": 1},
        {"task": "x"},
        {"hidden": (0,)},
    ):
        with pytest.raises(UsageError):
            spec(**options)
    curves = Curves([1.0], [2.0], [0.5], 3.0, 1, True)
    assert Curves.from_json(curves.to_json()) == curves


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": "fast"}, "lr is 'fast', no number"),
        ({"weight_decay": float("inf")}, "weight_decay is inf, no number"),
        ({"batch": "8"}, "batch is '8', no number"),
        ({"max_epochs": 2.5}, "max_epochs is 2.5, no whole number"),
        ({"seed": 1.5}, "seed is 1.5, no whole number"),
        ({"hidden": (8, "x")}, "hidden is .*widths are whole numbers"),
        ({"hidden": "8x4"}, "hidden is .*widths are whole numbers"),
        ({"allow_same_patient": "maybe"}, "allow_same_patient is 'maybe', neither true nor false"),
    ],
)
def test_settings_of_the_wrong_type_are_refused_before_anything_is_done(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        spec(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blur": "nan"}, "blur is 'nan', no number"),
        ({"hue": float("nan")}, "hue is nan, no number"),
        ({"symmetries": "maybe"}, "symmetries is 'maybe', neither true nor false"),
    ],
)
def test_variations_of_the_wrong_type_are_refused_too(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        AugmentSpec(**options)


def test_one_width_and_one_test_group_are_tuples_of_one_and_whole_numbers_are_one_spec() -> None:
    assert spec(hidden=8) == spec(hidden=(8,))
    assert spec(test="C1", by="slide") == spec(test=("C1",), by="slide")
    assert spec(max_epochs=2.0, folds=3.0).digest == spec(max_epochs=2, folds=3).digest
