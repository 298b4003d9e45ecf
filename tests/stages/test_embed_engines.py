"""Rows of different engines: OpenVINO's are another backbone's everywhere; torch's devices share one digest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import histostore as hs
from histostore.backbones.difference import compare_engines, probe_tiles
from histostore.backbones.openvino_backbone import OpenVinoBackbone
from histostore.backbones.testing_backbone import TestingBackbone
from histostore.backbones.torch_backbone import TorchBackbone
from histostore.backbones.tuned import load_for
from histostore.errors import ConflictError, DataError, NotFoundError, SpecMismatchError, UsageError
from histostore.specs import BackboneSpec
from histostore.testing.crash import contents

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def plain() -> TorchBackbone:
    """A small network with fixed weights."""
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.SiLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    spec = BackboneSpec(
        name="small", source="module:test", weights_sha256="0", dim=32, input_px=32, mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.6, 0.7),
    )  # fmt: skip
    return TorchBackbone(torch.nn.Sequential(*layers), spec, device="cpu", threads=1)


@pytest.fixture(scope="module")
def fast(plain: TorchBackbone) -> OpenVinoBackbone:
    return OpenVinoBackbone(plain)


@pytest.fixture
def disguised(plain: TorchBackbone) -> OpenVinoBackbone:
    """OpenVINO under torch's name, as someone may call it."""
    found = OpenVinoBackbone(plain)
    found.spec = replace(found.spec, name=plain.spec.name)
    return found


@pytest.fixture
def store(tiled: Path, copy_of: Callable[[Path], Path]) -> hs.Store:
    return hs.open(copy_of(tiled))


def test_the_digest_of_torch_is_what_it_always_was(plain: TorchBackbone) -> None:
    assert plain.spec.digest == "30b881af3baf33c5e89a018707068968"


def test_both_lie_side_by_side_and_can_be_compared(
    store: hs.Store, plain: TorchBackbone, fast: OpenVinoBackbone
) -> None:
    (first,) = hs.tl.embed(store, plain, slides="A1")
    before = contents(Path(store.uri), "A1")
    (second,) = hs.tl.embed(store, fast, slides="A1")
    assert (first.refs[0].name, second.refs[0].name) == ("spots/small", "spots/small+openvino")
    assert second.done == "written"  # not taken for what torch made
    after = contents(Path(store.uri), "A1")
    assert {k: after[k] for k in before} == before
    rows = store.view(backbone=["small", "small+openvino"], slides=["A1"])
    off = np.abs(rows.numpy("small").astype(float) - rows.numpy("small+openvino").astype(float)).max()
    assert off <= np.abs(rows.numpy("small")).max() * 2e-3  # float16
    assert float(store.group(second.refs[0]).header["engine"]["off_torch"]) < 1e-5


def test_a_view_never_joins_them(
    store: hs.Store, plain: TorchBackbone, fast: OpenVinoBackbone, disguised: OpenVinoBackbone
) -> None:
    hs.tl.embed(store, plain, slides="A1")
    hs.tl.embed(store, fast, slides="B1")
    with pytest.raises(NotFoundError, match=r"'B1' has no embeddings 'small'.*small\+openvino"):
        store.view(backbone="small", slides=["A1", "B1"])
    hs.tl.embed(store, disguised, slides="B1")
    with pytest.raises(DataError, match="'small' is not the same backbone on all slides"):
        store.view(backbone="small", slides=["A1", "B1"])


def test_a_name_that_torch_has_is_not_moved_to_openvino_unasked(
    store: hs.Store, plain: TorchBackbone, disguised: OpenVinoBackbone
) -> None:
    hs.tl.embed(store, plain, slides="A1")
    with pytest.raises(ConflictError, match="'spots/small' are there with another backbone"):
        hs.tl.embed(store, disguised, slides="A1")


def test_a_head_of_one_is_not_applied_to_the_other(
    store: hs.Store, plain: TorchBackbone, disguised: OpenVinoBackbone
) -> None:
    hs.tl.embed(store, plain)
    hs.tl.fit(store, genes="top-variance:5", backbone="small", split="leave-one-out:slide", save="head")
    hs.tl.embed(store, disguised, slides="B1", replace=True)
    with pytest.raises(SpecMismatchError, match="head 'head' was trained on backbone"):
        hs.tl.predict(store, "head", slides="B1")


def test_an_image_is_not_looked_up_among_rows_of_the_other(
    store: hs.Store, plain: TorchBackbone, fast: OpenVinoBackbone
) -> None:
    hs.tl.embed(store, fast, slides="A1")
    image = probe_tiles(1, 64)[0]
    with pytest.raises(SpecMismatchError, match="load the backbone they were made with"):
        hs.tl.search(store, image=image, embed_with=plain, backbone="small+openvino", slides=["A1"], k=2)
    assert (
        len(hs.tl.search(store, image=image, embed_with=fast, backbone="small+openvino", slides=["A1"], k=2).table) == 2
    )


def test_the_name_of_the_embeddings_loads_what_made_them(store: hs.Store) -> None:
    name = "timm/test_resnet@random:0"
    long = load_for(store, name, engine="openvino", dihedral=True)
    short = load_for(store, f"{name}+openvino+dihedral", engine="torch", dihedral=False)
    assert short.spec == long.spec
    assert short.engine() == long.engine()
    with pytest.raises(UsageError, match="engine openvino runs on the CPU"):
        load_for(store, f"{name}+openvino", device="cuda")


def test_precisions_of_torch_share_a_digest_and_each_group_says_which_it_was(store: hs.Store) -> None:
    class Coarse(TestingBackbone):
        """As the same network in bfloat16 on another device."""

        def engine(self) -> dict[str, str | int]:
            return super().engine() | {"precision": "bfloat16"}

    for slide, backbone in (("A1", TestingBackbone()), ("B1", Coarse())):
        hs.tl.embed(store, backbone, slides=slide)
    rows = store.view(backbone="testing")
    groups = [part.group(part.embeddings[rows.backbones[0]]) for part in rows.parts]
    assert [g.header["engine"]["precision"] for g in groups] == ["exact", "bfloat16"]
    again = hs.tl.embed(store, Coarse(), slides="A1")
    assert [r.done for r in again] == ["already there"]
    assert groups[0].header["engine"]["precision"] == "exact"


def test_two_backbones_are_not_compared_as_engines_of_one(plain: TorchBackbone, fast: OpenVinoBackbone) -> None:
    found = compare_engines(plain, fast, probe_tiles(2, 32))
    assert found.relative < 1e-5
    with pytest.raises(UsageError, match="are two backbones"):
        compare_engines(TestingBackbone(), fast, probe_tiles(2, 32))
