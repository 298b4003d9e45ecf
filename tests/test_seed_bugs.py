"""Every mistake that the published systems made, and the test that would catch it here.

Most live beside the part they are about and are only listed; those that are nobody's part are below.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import histostore as hs
from histostore.backbones import load_backbone
from histostore.content.tables import read_counts, write_counts
from histostore.errors import HistostoreError
from histostore.heads.mixed.random_intercept import fit_random_intercept
from histostore.heads.mixed.renn import RENN
from histostore.heads.splits import folds
from histostore.stages.ingest import IngestSpec

TESTS = Path(__file__).parent

CAUGHT_BY = {
    "STDL: flips were rotations, so eight symmetries were four": "backbones/test_augment.py::"
    "test_the_eight_symmetries_are_eight_different_images_closed_under_composition",
    "STDL: never in eval mode, predictions depended on batch mates": "backbones/test_torch_backbone.py::"
    "test_the_network_is_in_eval_mode_and_batch_statistics_never_move",
    "STDL: batch norm of a tuned network moved at test": "backbones/test_finetune.py::"
    "test_the_embedding_of_a_tile_does_not_depend_on_its_batch_mates",
    "STDL: the autoencoder worked with one row at a time only": "heads/test_decoders.py::"
    "test_one_row_at_a_time_is_decoded_as_among_others",
    "STDL: rows of counts sorted by name, images in file order": "io/test_align.py::"
    "test_no_permutation_drop_or_duplicate_ever_misaligns_a_row",
    "STDL: NMF refitted on the test spots": "stages/test_factors.py::"
    "test_new_spots_are_encoded_in_the_old_basis_and_never_refitted",
    "STDL: predicted factors below zero": "heads/test_nmf.py::"
    "test_nothing_is_below_zero_and_predicted_factors_are_clipped",
    "STDL, ST-Net: genes filtered and chosen by test counts": "heads/test_evaluate.py::"
    "test_test_rows_have_no_say_in_what_is_chosen",
    "STDL: a measure that shrank with the number of spots": "heads/test_evaluate.py::"
    "test_metrics_are_per_gene_and_slide",
    "STDL: rows and columns of a position file taken for x and y": "io/test_visium.py::"
    "test_all_forms_of_a_folder_read_alike",
    "STDL: short patches at the border were stretched": "tiles/test_read.py::"
    "test_the_white_beyond_the_border_does_not_leak_into_tiles_that_lie_inside",
    "RENN: slides read whole, up to 142 GB": "stages/test_memory.py::"
    "test_five_times_the_slide_takes_hardly_more_memory",
    "RENN: errors of workers vanished": "cli/test_bad_input.py::test_the_other_slides_of_a_sheet_go_on",
    "RENN: pen and borders counted as tissue": "tiles/test_mask.py::test_ink_is_not_tissue",
    "RENN: a query of 100 files cut short without a word": "fetch/test_gdc.py::test_every_page_is_asked_for",
    "RENN: samples of any type, the last file of a case won": "fetch/test_gdc.py::"
    "test_several_files_of_a_case_are_all_kept_or_the_newest_and_counted",
    "RENN: tile choice hung on the order of a folder": "tiles/test_plan.py::"
    "test_a_sample_keeps_row_order_and_a_larger_one_holds_it",
    "RENN: tiles stored BGR and read as RGB": "test_renn_pipeline.py::test_tiles_of_the_study_get_their_colours_back",
    "RENN: losses of batches changed what was estimated": "heads/mixed/test_renn.py::"
    "test_any_batch_size_gives_the_variances_of_the_full_likelihood",
    "RENN: an unseen group had no answer": "heads/mixed/test_renn.py::"
    "test_known_groups_get_their_effect_and_new_ones_zero_with_a_wider_interval",
    "RENN: criteria of different batch sizes compared": "heads/mixed/test_renn.py::"
    "test_the_study_s_likelihoods_are_exact_only_when_a_batch_holds_its_whole_group",
    "ST-Net: a missing gene became zero": "test_adata.py::"
    "test_a_gene_that_a_targeted_panel_lacks_is_missing_and_not_zero",
}


@pytest.mark.parametrize("bug", CAUGHT_BY)
def test_the_test_that_catches_it_is_there(bug: str) -> None:
    path, _, name = CAUGHT_BY[bug].partition("::")
    tree = ast.parse((TESTS / path).read_text())
    assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


def test_stdl_spots_without_counts_are_left_out_and_never_labelled_zero(embedded, copy_of, cohort):
    store = hs.open(copy_of(embedded))
    some = store.view(backbone="testing", slides=["A1"]).select(np.arange(5))
    assert len(some.with_counts()) == 5
    # one spot loses its counts: the row goes, the others keep theirs
    ref = store.slide("A1").find("expression")
    counts = read_counts(store.group(ref))
    lost = some.column("barcode")[2]
    keep = np.array([i != lost for i in counts.ids])
    fewer = replace(counts, ids=tuple(np.array(counts.ids)[keep].tolist()), matrix=counts.matrix[keep])
    store.commit("A1", [write_counts(store, "A1", ref.name, fewer)], replace=True)
    some = store.view(backbone="testing", slides=["A1"]).select(np.arange(5))
    left = some.with_counts()
    assert len(left) == 4
    assert left.report.counts["rows without counts"] == 1
    with pytest.raises(HistostoreError, match="1 of 5 rows have no counts"):
        some.counts()
    assert left.names().tolist() == [n for i, n in enumerate(some.names()) if i != 2]


def test_stdl_a_last_batch_of_one_and_a_single_row_are_predicted_as_among_others():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(41, 6)).astype(np.float32), rng.normal(size=(41, 2))
    for head in (hs.heads.Ridge(10.0), hs.heads.MLP((4,), max_epochs=300, patience=2)):
        head.fit(X, y, groups=np.arange(41) % 4)
        np.testing.assert_allclose(head.predict(X[:1]), head.predict(X)[:1], rtol=1e-4, atol=1e-5)
    net = load_backbone("testing")
    tiles = rng.integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(net.embed(tiles[:1]), net.embed(tiles)[:1], rtol=1e-5)


def test_stdl_a_model_name_with_a_slip_is_an_error_with_the_right_one():
    with pytest.raises(HistostoreError, match="densenet121"):
        load_backbone("densnet121")


def test_renn_red_stays_red_from_the_file_to_the_store(tmp_path):
    picture = np.zeros((400, 400, 3), np.uint8)
    picture[..., 0], picture[..., 2] = 220, 40
    Image.fromarray(picture).save(tmp_path / "red.png")
    pd.DataFrame({"id": ["p"], "x": [200], "y": [200]}).to_csv(tmp_path / "points.csv", index=False)
    store = hs.create(tmp_path / "S")
    hs.pp.ingest(store, slide="R", image=tmp_path / "red.png", mpp=0.5, points=tmp_path / "points.csv",
                 spec=IngestSpec(allow_off_tissue=True))  # fmt: skip
    hs.pp.tile(store, hs.TileSpec.at_spots(px=64), pixels=hs.PixelSpec(codec="lossless"))
    manifest = store.slide("R")
    tile = store.group(manifest.find("pixels", None)).array("pixels").read(np.array([0]))[0]
    assert tile.reshape(-1, 3).mean(0).tolist() == [220, 0, 40]


def test_renn_slides_of_one_case_stay_on_one_side():
    obs = pd.DataFrame({"slide": [f"s{i}" for i in range(8)], "patient": list("aabbccdd"), "centre": list("xxxxyyyy")})
    for text in ("group-kfold:2:patient", "stratified-kfold:2:centre"):
        for fold in folds(hs.SplitSpec.parse(text), obs):
            assert not set(obs["patient"].iloc[fold.train]) & set(obs["patient"].iloc[fold.test])


def test_renn_effects_scored_on_their_own_labels_look_better_than_they_are():
    rng = np.random.default_rng(0)
    site = np.repeat(np.arange(60), 4).astype(str)
    y = rng.normal(size=240)  # sites differ in nothing
    y = y + np.repeat(rng.normal(scale=0.3, size=60), 4)
    train = np.arange(240) % 4 != 0
    fit = fit_random_intercept(y[train], site[train])
    inside = np.mean((y[train] - fit.predict(site[train])) ** 2)
    outside = np.mean((y[~train] - fit.predict(site[~train])) ** 2)
    assert inside < outside


@pytest.mark.parametrize("loss", ["em", "nll", "cor_1", "cor_det", "no_re"])
def test_renn_every_loss_that_is_offered_trains(loss):
    rng = np.random.default_rng(0)
    X, site = rng.normal(size=(60, 3)).astype(np.float32), np.arange(60) % 10
    y = X[:, 0] + rng.normal(size=60)
    head = RENN((4,), loss=loss, epochs=3, batch_size=4).fit(X, y, groups=site)
    assert np.isfinite(head.predict(X)).all()
    assert not torch.is_grad_enabled() or head.s2_e_[0] > 0
