"""A backbone tuned from a store: rows joined by id, whole groups held out, a new backbone that embeds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from histostore.backbones import load_backbone
from histostore.backbones.engines import converted_spec
from histostore.backbones.finetune_spec import FinetuneSpec
from histostore.backbones.tuned import load_for, load_tuned, seen_by, tuned_names, tuned_record
from histostore.errors import ConflictError, DataError, HistostoreError, NotFoundError, SpecMismatchError, UsageError
from histostore.specs import PixelSpec, TileSpec
from histostore.stages.embed import embed
from histostore.stages.finetune import finetune
from histostore.stages.hits import tiles_of
from histostore.stages.tile import tile
from histostore.stages.tile_targets import TilePixels
from histostore.store.store import Store, open_store
from histostore.store.verify import verify
from histostore.testing.cohort import write_cohort
from histostore.view import view

if TYPE_CHECKING:
    from collections.abc import Callable

    from histostore.protocols import Backbone
    from histostore.stages.finetune import FinetuneResult
    from histostore.testing.cohort import Cohort

RESNET = "timm/test_resnet@random:0"


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Three patients with a slide each: one more than can be trained and validated on."""
    folder = tmp_path_factory.mktemp("patients")
    return write_cohort(folder, n_patients=3, slides_per_patient=1, spots=14, genes=12, px=800, seed=2)


@pytest.fixture(scope="module")
def three(patients: Cohort, tmp_path_factory: pytest.TempPathFactory, cli: Any) -> Path:
    store = tmp_path_factory.mktemp("three") / "store"
    cli("init", store)
    cli("ingest", store, "--sheet", patients.sheet)
    cli("tile", store, "--at", "spots", "--px", 48, "--codec", "lossless", "--shard-tiles", 8)
    return store


@pytest.fixture
def store(three: Path, copy_of: Callable[[Path], Path]) -> Store:
    return open_store(copy_of(three))


@pytest.fixture(scope="module")
def crowded(patients: Cohort, three: Path) -> pd.Series[Any]:
    """Whether cells crowd in a tile, as text, by row name and in no order of the store's."""
    found = {
        f"{s.name}:{i}": ("many" if v > np.median(s.latents[:, 0]) else "few")
        for s in patients.slides
        for i, v in zip(s.spot_ids, s.latents[:, 0], strict=True)
    }
    return pd.Series(found, name="cells").sort_index(ascending=False)


def small() -> Backbone:
    """Return the network at a smaller input than its own, which is faster."""
    backbone = load_backbone(RESNET, device="cpu", threads=1)
    backbone.spec = replace(backbone.spec, input_px=64)
    return backbone


def spec(**options: Any) -> FinetuneSpec:
    return FinetuneSpec(**{"backbone": RESNET, "batch": 8, "max_epochs": 2, "lr": 1e-3, "head_lr": 1e-2, **options})


@pytest.fixture(scope="module")
def tuned_store(three: Path, crowded: pd.Series[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with the backbone ``mine``, tuned on two patients; the third was kept for testing."""
    path = Path(shutil.copytree(three, tmp_path_factory.mktemp("tuned") / "store"))
    wanted = spec(blocks="all", max_epochs=4, test=("C",))
    result(open_store(path), crowded, wanted)
    return path


def result(store: Store, crowded: pd.Series[Any], wanted: FinetuneSpec, **options: Any) -> FinetuneResult:
    if wanted.backbone == RESNET:
        options = {"backbone": small()} | options
    return finetune(store, wanted, **{"targets": crowded, "save_as": "mine", "threads": 1} | options)


def test_the_product_is_another_backbone_that_learned_and_embeds(tuned_store: Path, tmp_path: Path) -> None:
    store = open_store(shutil.copytree(tuned_store, tmp_path / "store"))
    assert tuned_names(store) == ["mine"]
    parent, tuned = small(), load_tuned(store, "mine", device="cpu", threads=1)
    assert tuned.spec.digest != parent.spec.digest
    assert tuned.spec.weights_sha256 != parent.spec.weights_sha256
    assert (tuned.spec.name, tuned.spec.source, tuned.spec.mpp) == ("mine", "tuned:timm:test_resnet@random:0", 2.0)
    record = tuned_record(store, "mine")
    assert record["parent"]["digest"] == parent.spec.digest
    assert record["backbone_digest"] == tuned.spec.digest
    curves = record["curves"]
    assert min(curves["train_loss"]) < 0.8 * curves["train_loss"][0]
    assert min(curves["validation_loss"]) < curves["begun_at"]
    embed(store, "A1", [tuned])
    rows = view(store, backbone="mine", slides=["A1"])
    assert np.allclose(rows.numpy(), tuned.embed(tiles_of(rows, np.arange(len(rows)))), rtol=1e-2, atol=1e-3)
    assert not verify(store, deep=True).errors


def test_whole_patients_are_held_out_and_test_patients_never_read(tuned_store: Path, crowded: pd.Series[Any]) -> None:
    record = tuned_record(open_store(tuned_store), "mine")
    groups = record["groups"]
    assert groups["test"] == ["C"]
    assert sorted(groups["train"] + groups["validation"]) == ["A", "B"]
    assert record["patients"] == ["A", "B"]
    assert sorted(record["trained_on"]) == ["A1", "B1"]
    assert {len(one.keys() & {"train", "validation"}) for one in record["trained_on"].values()} == {1}
    assert record["rows"] == {"train": sum(crowded.index.str.startswith(groups["train"][0])),
                              "validation": sum(crowded.index.str.startswith(groups["validation"][0]))}  # fmt: skip
    assert record["left_out"] == {"kept for testing": sum(crowded.index.str.startswith("C"))}
    assert "never trained on" in record["split"]


def test_what_test_rows_are_changes_nothing(store: Store, tuned_store: Path, crowded: pd.Series[Any]) -> None:
    other = crowded.copy()
    other[other.index.str.startswith("C")] = np.nan
    wanted = spec(blocks="all", max_epochs=4, test=("C",))
    assert result(open_store(tuned_store), other, wanted).done == "already there"
    # and without the slide at all
    made = result(store, other, replace(wanted, max_epochs=1))
    store.delete_slide("C1")
    again = result(store, crowded, replace(wanted, max_epochs=1, test=()), save_as="again", slides=["A1", "B1"])
    assert made.record["curves"] == again.record["curves"]


def test_pixels_are_joined_by_row_across_slides_and_shards(store: Store) -> None:
    rows = view(store, tiles="spots").where("slide != 'B1'").select(np.arange(1, 24))
    order = np.random.default_rng(0).permutation(len(rows))
    for workers in (1, 2):
        with TilePixels(rows, workers) as pixels:
            assert np.array_equal(pixels.read(order), tiles_of(rows, order))


def test_the_order_of_slides_and_targets_changes_no_target(store: Store, crowded: pd.Series[Any]) -> None:
    wanted = spec(max_epochs=1)
    one = result(store, crowded, wanted)
    assert result(store, crowded.sample(frac=1, random_state=0), wanted).done == "already there"
    assert result(store, crowded.map({"many": 1, "few": 0}).map({1: "many", 0: "few"}), wanted).ref == one.ref
    with pytest.raises(ConflictError, match="backbone 'mine' is there from another run"):
        result(store, crowded, spec(max_epochs=1, seed=1))
    moved = result(store, crowded, spec(max_epochs=1, seed=1), replace=True)
    assert moved.backbone.spec.digest != one.backbone.spec.digest
    assert moved.backbone.spec.name == one.backbone.spec.name


class _Cut:
    """Progress that ends the run, as a signal would, after some epochs."""

    def __init__(self, after: int) -> None:
        self.left = after

    def start(self, what: str, total: int, *, done: int = 0, unit: str = "tiles") -> None:
        self.begun_at = done

    def advance(self, n: int, seconds: dict[str, float] | None = None) -> None:
        self.left -= n
        if self.left == 0:
            raise KeyboardInterrupt

    def say(self, text: str) -> None: ...

    def finish(self) -> None: ...


def test_a_run_that_was_cut_is_resumed_and_equals_an_uncut_one(
    store: Store, tuned_store: Path, crowded: pd.Series[Any]
) -> None:
    wanted = spec(blocks="all", max_epochs=4, test=("C",))
    with pytest.raises(KeyboardInterrupt):
        result(store, crowded, wanted, progress=_Cut(2))
    assert tuned_names(store) == []
    rest = _Cut(99)
    resumed = result(store, crowded, wanted, progress=rest)
    whole = tuned_record(open_store(tuned_store), "mine")
    assert (resumed.done, rest.begun_at) == ("resumed", 2)
    assert resumed.curves == whole["curves"]
    assert resumed.backbone.spec.digest == whole["backbone_digest"]
    files = [p.name for p in Path(store.uri, "backbones").rglob("*") if p.is_file()]
    assert not [f for f in files if f.startswith(("checkpoint", "LOCK", "ATTEMPT"))]
    assert not verify(store, deep=True).errors
    json.dumps(resumed.to_json(), allow_nan=False)


def test_a_tuned_backbone_can_be_tuned_further_and_is_found_by_name(
    tuned_store: Path, crowded: pd.Series[Any], tmp_path: Path
) -> None:
    store = open_store(shutil.copytree(tuned_store, tmp_path / "store"))
    values = (crowded == "many").astype(float)
    more = result(store, values, spec(backbone="mine", max_epochs=1), save_as="more")
    record = more.record
    assert record["parent"]["digest"] == load_for(store, "store:mine", device="cpu").spec.digest
    assert (record["classes"], record["columns"]) == (None, ["cells"])
    assert more.backbone.spec.source == "tuned:timm:test_resnet@random:0"
    assert seen_by(store, more.backbone.spec.digest)["patient"] == {"A", "B", "C"}
    assert seen_by(store, record["parent"]["digest"]) == {"slide": {"A1", "B1"}, "patient": {"A", "B"}}
    for other in (converted_spec(more.backbone.spec), replace(more.backbone.spec, dihedral=True)):
        assert seen_by(store, other.digest)["patient"] == {"A", "B", "C"}
    assert seen_by(store, "0" * 32) == {"slide": set(), "patient": set()}
    assert load_for(store, "more", device="cpu", dihedral=True).spec.name == "more+dihedral"
    assert load_for(store, "testing").spec.name == "testing"
    with pytest.raises(NotFoundError, match="did you mean 'mine'"):
        load_for(store, "store:mien")
    with pytest.raises(UsageError, match="'store:mine' is kept in a store"):
        load_backbone("store:mine")
    with pytest.raises(UsageError, match="brings its own weights"):
        load_for(store, "mine", checkpoint=Path("x.safetensors"))


def test_obs_columns_are_targets_and_rows_without_one_are_counted(store: Store, crowded: pd.Series[Any]) -> None:
    by_column = result(store, crowded, spec(max_epochs=1, task="classes", folds=3, seed=1), targets="label")
    assert set(by_column.record["classes"] or ()) <= {"0", "1", "2", "3"}
    some = crowded.copy()
    some.iloc[:3] = None
    left = result(store, some.drop(some.index[-1]), spec(max_epochs=1, missing="leave-out"), save_as="left")
    assert left.left_out == {"without a target": 4}
    assert sum(left.record["rows"].values()) == len(crowded) - 4


def test_tiles_without_stored_pixels_cannot_be_tuned_on(store: Store, crowded: pd.Series[Any]) -> None:
    for slide in store.slides():
        tile(store, slide, TileSpec.at_spots(px=32), pixels=PixelSpec(codec="slide"), name="bare")
    with pytest.raises(NotFoundError, match="slide 'A1': no pixels of tiles 'bare' are stored"):
        result(store, crowded, spec(), tiles="bare")
    with pytest.raises(NotFoundError, match="several tiles"):
        result(store, crowded, spec())


BAD: dict[str, tuple[dict[str, Any], type[HistostoreError], str]] = {
    "one class": ({"change": lambda t: t.map(lambda _: "few")}, DataError, "one class only .'few'."),
    "NaN": ({"change": lambda t: (t == "many").astype(float).where(t.index != t.index[0])},
            DataError, "1 of .* rows have no target 'cells' .NaN or none., first C1:"),
    "infinite": ({"change": lambda t: t.map({"many": np.inf, "few": 1.0})}, DataError, "are infinite"),
    "classes that are patients": ({"change": lambda t: t.index.to_series().str[0]}, UsageError,
                                  "must each be met in two values of 'patient'"),
    "no row named": ({"change": lambda t: t.rename(lambda i: f"x{i}")}, DataError, "name none of the"),
    "a row twice": ({"change": lambda t: pd.concat([t, t.iloc[:1]])}, DataError, "more than once"),
    "no such column": ({"targets": "lable"}, NotFoundError, "did you mean 'label'"),
    "no such test patient": ({"spec": {"test": ("D",)}}, NotFoundError, "test: no patient 'D'"),
    "one patient left": ({"spec": {"test": ("A", "B")}}, UsageError, "it holds only 'C', two values are needed"),
    "too many blocks": ({"spec": {"blocks": 8}}, UsageError, "has 7 .* give 1-7 or 'all'"),
    "no such split column": ({"spec": {"by": "patiant"}}, NotFoundError, "did you mean 'patient'"),
    "a backbone without torch": ({"spec": {"backbone": "testing"}}, UsageError, "'testing' cannot be fine-tuned"),
    "another resolution": ({"mpp": 0.5}, SpecMismatchError, "tiles are at 2 mpp, but backbone .* expects 0.5"),
    "a known name": ({"save_as": "resnet50"}, UsageError, "is the name of a known backbone"),
    "a bad name": ({"save_as": "a/b"}, UsageError, "invalid backbone name"),
    "no rows": ({"where": "slide == 'Z'"}, DataError, "no rows are left"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_before_anything_is_written(case: str, three: Path, crowded: pd.Series[Any]) -> None:
    given, error, words = BAD[case]
    options = {k: v for k, v in given.items() if k in ("targets", "save_as", "where")}
    if "change" in given:
        options["targets"] = given["change"](crowded)
    if "mpp" in given:
        parent = small()
        parent.spec = replace(parent.spec, mpp=given["mpp"])
        options["backbone"] = parent
    opened = open_store(three)
    with pytest.raises(error, match=words) as caught:
        result(opened, crowded, spec(**given.get("spec", {})), **options)
    assert "\n" not in str(caught.value)
    assert not Path(opened.uri, "backbones").exists()
