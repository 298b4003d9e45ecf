"""Specs come back from their JSON with the digest they had, the specs inside them too; bad values are one line."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import histostore
from histostore.backbones.finetune_spec import AugmentSpec, FinetuneSpec
from histostore.errors import UsageError, near
from histostore.head_specs import BagSpec, FeatureSpec, HeadSpec, LabelSpec, PanelSpec, SplitSpec
from histostore.index.ann import Tuning
from histostore.index.build import BuildReport
from histostore.index.files import FileRecord
from histostore.index.spec import IndexSpec
from histostore.specs import BackboneSpec, EmbeddingSpec, MaskSpec, PixelSpec, SpecBase, TileSpec
from histostore.stages.imported_tiles import ImportSpec
from histostore.stages.ingest import IngestSpec

SPLIT = SplitSpec.parse("spatial-block:5:1000:200", seed=3)
PANEL = PanelSpec.parse(["CD74", "KRT8"])
LABELS = LabelSpec(column="c", positive=("a", "b"), negative=("d",), negatives_per_positive=2.0)

SPECS: tuple[SpecBase, ...] = (
    MaskSpec(mpp=4.0),
    TileSpec.at_spots(px=112),
    TileSpec.grid(um=256.0, mpp=0.5, mask=MaskSpec(reject_pen=False), max_tiles=9),
    PixelSpec(codec="lossless"),
    EmbeddingSpec(dtype="float32"),
    BackboneSpec(name="b", source="file:x", weights_sha256="0", dim=8, input_px=32, mean=(0.5,) * 3, std=(0.2,) * 3),
    PANEL,
    PanelSpec.parse("hvg:50"),
    SPLIT,
    FeatureSpec(context_um=(200.0, 800.0)),
    LABELS,
    BagSpec(tiles=8, pool="tiles"),
    HeadSpec(head="ridge", options=(("alphas", (1.0, 10.0)),), panel=PANEL, split=SPLIT, groups=("site",)),
    HeadSpec(head="logistic", labels=LABELS, split=SPLIT, bag=BagSpec(), features=(FeatureSpec(position=True),)),
    AugmentSpec(),
    FinetuneSpec(backbone="b", hidden=(64,), augment=AugmentSpec.none()),
    IndexSpec(kind="ivf-pq", pq_bytes=8),
    FileRecord(name="f", size=1, sha256="0", crc32c=7),
    Tuning(kind="hnsw", metric="l2", dim=8, effort=4),
    BuildReport(
        kind="exact", rows=2, left_out=0, effort=0, cells=0, refine=1, recall=1.0, queries=2, train_rows=0, seconds=0.5,
        peak_bytes=None, index_bytes=32, why="few rows",
    ),
    IngestSpec(targeted=True),
    ImportSpec(backbone="b", px=224.0),
)  # fmt: skip


def test_every_spec_is_tried_here() -> None:
    root = Path(histostore.__file__).parent
    made = {name for p in root.rglob("*.py") for name in re.findall(r"^class (\w+)\(SpecBase\)", p.read_text(), re.M)}
    assert made == {type(spec).__name__ for spec in SPECS}


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: type(s).__name__)
def test_a_spec_comes_back_from_its_json(spec: SpecBase) -> None:
    again = type(spec).from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.digest == spec.digest
    assert hash(again) == hash(spec)
    for field in dataclasses.fields(spec):
        assert type(getattr(again, field.name)) is type(getattr(spec, field.name)), field.name


def test_digests_are_what_they_always_were() -> None:
    assert TileSpec.at_spots(px=112).digest == "00de939feda09f87473df6119837c6c4"
    assert LABELS.digest == "25a1fba1b17309af86053fd9ce88ac8d"


def test_values_of_labels_are_taken_as_the_texts_that_they_are_compared_as() -> None:
    spec = LabelSpec(column="c", positive=(1, True, np.bool_(False), 2.5), negative=[np.int64(3)], ignore=("x",))
    assert (spec.positive, spec.negative, spec.ignore) == (("1", "True", "False", "2.5"), ("3",), ("x",))
    assert LabelSpec(column="c", positive=(1,)) == LabelSpec(column="c", positive=("1",))
    with pytest.raises(UsageError, match=r"positive holds \[None\]: give the values"):
        LabelSpec(column="c", positive=("a", None))


@pytest.mark.parametrize(
    ("genes", "says"), [([], "an empty list of genes"), ("", "an empty list"), ([7], r"\[7\] is no text")]
)
def test_genes_are_named(genes: list[str] | str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        PanelSpec.parse(genes)


def test_near_names_are_looked_for_among_anything() -> None:
    assert near(1, [10, True, None]) == "; did you mean '10'?"
    assert near("tru", [True, 2.0]) == "; did you mean 'True'?"
    assert near(None, []) == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TileSpec.grid(um=112, min_tissue=1, overlap=0, mag=20), TileSpec.grid(um=112.0, min_tissue=1.0, mag=20.0)),
        (TileSpec.at_spots(px=np.int64(64)), TileSpec.at_spots(px=64)),
        (TileSpec.at_spots(px=64.0), TileSpec.at_spots(px=64)),  # type: ignore[arg-type]
        (TileSpec.grid(px=64, mask=MaskSpec(mpp=4)), TileSpec.grid(px=64, mask=MaskSpec(mpp=4.0))),
    ],
)
def test_specs_of_the_same_numbers_have_one_digest(one: SpecBase, other: SpecBase) -> None:
    assert one == other
    assert one.digest == other.digest


@pytest.mark.parametrize(
    ("px", "said"),
    [(64.5, "px is 64.5, no whole number"), ("64", "px is '64', no number"), (True, "px is True, no number")],
)
def test_an_edge_that_is_no_whole_number_is_refused(px: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TileSpec.grid(px=px)
