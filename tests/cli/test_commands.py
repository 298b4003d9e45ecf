"""Every command on a small store: what it says, what it leaves, and that a second run changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import histostore as hs
from histostore.store.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.testing.cohort import Cohort

PNG = b"\x89PNG"


@pytest.fixture
def store(built: Path, copy_of: Callable[[Path], Path]) -> Path:
    """Return a store of the test's own, with tiles, embeddings and a head."""
    return copy_of(built)


@pytest.fixture
def ok(call: Any) -> Callable[..., str]:
    """Run a command that must succeed; return what it printed."""

    def run(*argv: object) -> str:
        told = call(*argv)
        assert told.code == 0, told.err
        assert not told.errors
        return str(told.out)

    return run


def manifests(store: Path) -> dict[str, int]:
    """Return the version of every owner."""
    opened = open_store(store)
    return {owner: opened.manifest(owner).number for owner in opened.owners()}


# --- building


def test_init_makes_an_empty_store(tmp_path: Path, ok: Any) -> None:
    out = ok("init", tmp_path / "a" / "S", "--name", "mine")
    assert "made store 'mine'" in out
    assert open_store(tmp_path / "a" / "S").slides() == []
    assert "0 slides" in ok("info", tmp_path / "a" / "S")


def test_ingest_takes_a_sheet_and_a_second_run_is_a_no_op(tmp_path: Path, cohort: Cohort, call: Any) -> None:
    store = tmp_path / "S"
    call("init", store)
    told = call("ingest", store, "--sheet", cohort.sheet)
    assert told.code == 0
    assert "A1: ingest written" in told.out
    assert "B1: ingest written" in told.out
    before = manifests(store)
    told = call("ingest", store, "--sheet", cohort.sheet)
    assert told.code == 0
    assert "A1: ingest already there" in told.out
    assert manifests(store) == before
    opened = open_store(store)
    assert {r.kind for r in opened.slide("A1").entries.values()} == {
        "source", "meta", "points", "expression", "labels", "regions",
    }  # fmt: skip


def test_ingest_takes_one_slide_by_options_and_the_pitch_gives_the_mpp(tmp_path: Path, cohort: Cohort, ok: Any) -> None:
    a1, store = cohort.slides[0], tmp_path / "S"
    ok("init", store)
    ok("ingest", store, "--slide", "X", "--image", a1.image, "--st-counts", a1.counts, "--st-spots", a1.spots,
       "--obs", a1.obs, "--geojson", a1.geojson, "--meta", "patient=A", "--meta", "centre=north")  # fmt: skip
    out = ok("info", store, "--slide", "X")
    assert "(spot pitch)" in out
    assert "patient=A" in out
    mpp = json.loads(ok("info", store, "--slide", "X", "--json"))["groups"]["meta/meta"]["attrs"]["mpp"]
    assert mpp == pytest.approx(cohort.mpp, rel=0.01)


def test_ingest_embeds_in_the_same_pass(tmp_path: Path, cohort: Cohort, ok: Any, embedded: Path) -> None:
    store = tmp_path / "S"
    ok("init", store)
    out = ok("ingest", store, "--sheet", cohort.sheet, "--embed", "testing", "--px", 96)
    assert "A1: embed" in out
    joined = hs.open(store).view(backbone="testing")
    there = hs.open(embedded).view(backbone="testing")
    assert list(joined.names()) == list(there.names())
    out = ok("ingest", store, "--sheet", cohort.sheet, "--embed", "testing", "--px", 96)
    assert out.count("already there") == 6


def test_annotate_adds_versions_and_rewrites_nothing(store: Path, cohort: Cohort, tmp_path: Path, ok: Any) -> None:
    table = tmp_path / "clinical.csv"
    table.write_text("patient,grade,site\nA,3,NA\nZ,1,south\n")
    out = ok("annotate", store, "--table", table)
    assert "A1: annotate written" in out
    assert "1 rows of no slide" in out
    assert "1 slides without a row" in out
    assert "already there" in ok("annotate", store, "--table", table)
    ok("annotate", store, "--slide", "B1", "--set", "grade=2", "--set", "stain=HE")
    a1 = cohort.slides[0]
    ok("annotate", store, "--slide", "A1", "--geojson", a1.geojson, "--name", "drawn")
    obs = tmp_path / "pathologist.csv"
    obs.write_text("id,says\n" + "\n".join(f"{s},tumour" for s in a1.spot_ids[:5]))
    ok("annotate", store, "--slide", "A1", "--obs", obs)
    rows = hs.open(store).view()
    assert set(rows.column("grade")) == {"3", "2"}
    assert set(hs.open(store).view(slides=["A1"]).column("site")) == {"NA"}, "text stays text"
    assert (rows.column("says") == "tumour").sum() == 5
    obs.write_text("id,says\n" + "\n".join(f"{s},stroma" for s in a1.spot_ids[:5]))
    ok("annotate", store, "--slide", "A1", "--obs", obs, "--replace")
    assert (hs.open(store).view().column("says") == "stroma").sum() == 5
    assert {"regions/drawn", "labels/pathologist"} <= set(open_store(store).slide("A1").entries)


def test_tile_at_spots_and_on_a_grid(ingested: Path, copy_of: Any, tmp_path: Path, ok: Any) -> None:
    store = copy_of(ingested)
    out = ok("tile", store, "--at", "spots", "--px", 64, "--picture", tmp_path / "pictures")
    assert "A1: tile written" in out
    assert "2 µm per px, native" in out
    assert (tmp_path / "pictures" / "A1.png").read_bytes().startswith(PNG)
    assert ok("tile", store, "--at", "spots", "--px", 64).count("already there") == 2
    ok("tile", store, "--grid", "--um", 256, "--mpp", 4, "--min-tissue", 0.8, "--codec", "slide")
    ok(
        "tile",
        store,
        "--grid",
        "--px",
        64,
        "--mag",
        5,
        "--max-tiles",
        5,
        "--name",
        "few",
        "--region",
        "annotations",
        "--slides",
        "A1",
    )
    slide = open_store(store).slide("A1")
    assert {"tiles/spots", "pixels/spots", "tiles/grid@4", "tiles/few"} <= set(slide.entries)
    assert "pixels/grid@4" not in slide.entries
    opened = open_store(store)
    assert opened.group(slide.find("tiles", "grid@4")).attrs["out_px"] == 64
    assert opened.group(slide.find("tiles", "few")).rows == 5


def test_embed_says_what_is_there_and_takes_several_backbones(
    tiled: Path, copy_of: Any, tmp_path: Path, ok: Any
) -> None:
    store = copy_of(tiled)
    out = ok("embed", store, "--backbone", "testing", "--dtype", "float32")
    assert "A1: embed written" in out
    assert ok("embed", store, "--backbone", "testing", "--dtype", "float32").count("already there") == 2
    out = ok("info", store, "--slide", "A1")
    assert "embeddings/spots/testing" in out
    assert "testing" in ok("models", store)
    assert "in this store: testing on 2 slides" in ok("models", store)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_goes_on_and_says_so(stop: signal.Signals, tiled: Path, copy_of: Any, call: Any) -> None:
    store = copy_of(tiled)
    argv = [
        "embed",
        str(store),
        "--slides",
        "A1",
        "--backbone",
        "testing?delay_ms=150",
        "--shard-rows",
        "4",
        "--batch",
        "4",
    ]
    run = subprocess.Popen(
        [sys.executable, "-m", "histostore", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a suite run in the background of a shell inherits an ignored SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while len(list(store.glob("slides/A1/embeddings/**/receipts/**/*.json"))) < 2:
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < deadline, "no shard was finished"
            time.sleep(0.02)
        run.send_signal(stop)
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()
    if stop == signal.SIGINT:
        assert run.returncode == 130
        assert "finished shards are kept, run the same command to go on" in err
        assert "Traceback" not in err
    else:
        assert run.returncode == -signal.SIGKILL
    assert "embeddings/spots/testing" not in open_store(store).slide("A1").entries, "half a group can be seen"
    told = call(*argv[:5], "testing", *argv[6:])
    assert told.code == 0
    assert "A1: embed resumed" in told.out
    assert "tiles are there already, going on" in told.err


# --- using


def test_fit_scores_and_keeps_a_head_and_predict_applies_it(store: Path, tmp_path: Path, ok: Any) -> None:
    out = ok("fit", store, "--genes", "top-mean:4", "--split", "leave-one-out:patient", "--tune-features",
             "--save", "mine", "--report", tmp_path / "r.html")  # fmt: skip
    assert "no patient on both sides" in out
    assert "training mean" in out
    assert "saved head 'mine'" in out
    assert (tmp_path / "r.html").read_text().lstrip().lower().startswith("<!doctype html>")
    assert "head mine" in ok("info", store)
    out = ok("predict", store, "--head", "mine", "-o", tmp_path / "p.h5ad", "--picture", tmp_path / "maps")
    assert "A1: predict written" in out
    predicted = ad.read_h5ad(tmp_path / "p.h5ad")
    assert predicted.shape == (len(hs.open(store).view(backbone="testing")), 4)
    assert np.isfinite(predicted.X).all()
    assert list((tmp_path / "maps").glob("*.png"))
    assert ok("predict", store, "--head", "mine").count("already there") == 2
    ok("predict", store, "--head", "mine", "-o", tmp_path / "p.csv")
    table = pd.read_csv(tmp_path / "p.csv", index_col=0)
    np.testing.assert_allclose(table.loc[predicted.obs_names], predicted.X, rtol=1e-5)


def test_fit_of_one_patient_needs_a_word_and_then_says_it(store: Path, call: Any) -> None:
    told = call("fit", store, "--genes", "top-mean:3", "--slides", "A1", "--split", "group-kfold:3:array_row")
    assert told.code == 2
    assert "--allow-same-patient" in told.err
    told = call("fit", store, "--genes", "top-mean:3", "--slides", "A1", "--split", "group-kfold:3:array_row",
                "--allow-same-patient")  # fmt: skip
    assert told.code == 0
    assert "same patient" in told.out


def test_search_finds_neighbours_and_draws_them(store: Path, cohort: Cohort, tmp_path: Path, ok: Any) -> None:
    spot = cohort.slides[0].spot_ids[0]
    out = ok("search", store, "--slide", "A1", "--spot", spot, "-k", 5, "--gallery", tmp_path / "g.png",
             "-o", tmp_path / "h.csv", "--columns", "patient")  # fmt: skip
    hits = pd.read_csv(tmp_path / "h.csv", index_col=0)
    assert len(hits) == 5
    assert len(out.splitlines()) == 6
    assert f"A1:{spot}" not in hits.index
    assert hits["distance"].is_monotonic_increasing
    assert (tmp_path / "g.png").read_bytes().startswith(PNG)
    ok("search", store, "--slide", "A1", "--spot", spot, "--where", "patient != 'A'", "-o", tmp_path / "h.csv")
    assert set(pd.read_csv(tmp_path / "h.csv")["slide"]) == {"B1"}
    ok("search", store, "--slide", "A1", "--spot", spot, "--exclude-same", "patient", "-o", tmp_path / "h.csv")
    assert set(pd.read_csv(tmp_path / "h.csv")["slide"]) == {"B1"}
    ok("search", store, "--slide", "A1", "--spot", spot, "--expressing", "MORPH001=2,MORPH002=-1,MORPH003",
       "--expression-weight", 1, "-k", 8, "-o", tmp_path / "h.csv")  # fmt: skip
    weights = {"MORPH001": 2.0, "MORPH002": -1.0, "MORPH003": 1.0}
    true = hs.tl.search(hs.open(store), slide="A1", spot=spot, expressing=weights, expression_weight=1.0, k=8)
    assert pd.read_csv(tmp_path / "h.csv", index_col=0).index.tolist() == true.table.index.tolist()


def test_search_takes_an_image_of_a_tile(store: Path, cohort: Cohort, tmp_path: Path, ok: Any) -> None:
    from PIL import Image

    from histostore.stages.hits import tiles_of

    rows = hs.open(store).view(backbone="testing")
    Image.fromarray(tiles_of(rows, np.array([7]))[0]).save(tmp_path / "tile.png")
    found = json.loads(ok("search", store, "--image", tmp_path / "tile.png", "-k", 1, "--json"))
    assert found["hits"][0]["tile"] == rows.names()[7]
    assert found["hits"][0]["distance"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_export_writes_what_scanpy_reads(suffix: str, store: Path, tmp_path: Path, ok: Any) -> None:
    path = tmp_path / f"x.{suffix}"
    out = ok("export", store, "--backbone", "testing", "-o", path)
    assert "X_testing" in out
    adata = ad.read_h5ad(path) if suffix == "h5ad" else ad.read_zarr(path)
    assert adata.obs_names.is_unique
    assert adata.obsm["X_testing"].shape == (adata.n_obs, 64)
    assert adata.obsm["spatial"].shape == (adata.n_obs, 2)
    assert set(adata.obs["patient"]) == {"A", "B"}
    assert set(adata.uns["spatial"]) == {"A1", "B1"}
    assert adata.X.dtype.kind in "iu"
    ok("export", store, "--slides", "B1", "--no-counts", "--tiles", "spots", "-o", path, "--overwrite")
    adata = ad.read_h5ad(path) if suffix == "h5ad" else ad.read_zarr(path)
    assert set(adata.obs["slide"]) == {"B1"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_export_of_a_filter_says_what_was_left_out(store: Path, tmp_path: Path, ok: Any) -> None:
    out = ok("export", store, "--where", "patient == 'A'", "-o", tmp_path / "x.h5ad")
    assert "rows left out by where" in out
    assert set(ad.read_h5ad(tmp_path / "x.h5ad").obs["slide"]) == {"A1"}


# --- looking after


def test_info_lists_what_there_is(store: Path, ok: Any) -> None:
    out = ok("info", store)
    assert "format 1." in out
    assert "2 slides" in out
    assert "embeddings/spots/testing" in out
    assert "head ridge-testing" in out
    out = ok("info", store, "--slide", "B1")
    assert "mpp 2" in out
    assert "B1.svs" in out


def test_doctor_and_models_say_what_is_here(store: Path, tmp_path: Path, ok: Any) -> None:
    out = ok("doctor", store)
    assert "publish" in out
    assert "zarr" in out
    ok("doctor", tmp_path)
    out = ok("models")
    assert "efficientnet_lite0" in out
    assert "licence" in out


def test_delete_hides_a_slide_until_gc_erases_it(store: Path, ok: Any, call: Any) -> None:
    out = ok("delete", store, "--slide", "A1")
    assert "heads now stale: ridge-testing" in out
    assert "1 slides" in ok("info", store)
    assert call("info", store, "--slide", "A1").code == 2
    assert (store / "slides" / "A1").exists()
    assert "stale" in ok("predict", store, "--head", "ridge-testing")
    out = ok("gc", store, "--grace", 0, "--erase")
    assert "nothing was removed; add --run" in out
    assert (store / "slides" / "A1").exists()
    assert "removed" in ok("gc", store, "--grace", 0, "--erase", "--run")
    assert not list((store / "slides").glob("A1/**/*.json"))
    assert "all is well" in ok("verify", store)
    assert "1 slides" in ok("info", store)


def test_verify_finds_a_flipped_byte_repair_puts_it_aside_and_the_stage_makes_it_again(
    store: Path, ok: Any, call: Any
) -> None:
    assert "all is well" in ok("verify", store)
    before = hs.open(store).view(backbone="testing").numpy()
    shard = next(p for p in store.glob("slides/A1/embeddings/*/*/zarr/embedding/c/**/*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 0xFF
    shard.write_bytes(data)
    told = call("verify", store)
    assert told.code == 3
    assert "A1" in told.out
    assert "histostore repair" in told.out
    assert not told.errors
    assert call("verify", store, "--slides", "B1").code == 0
    told = call("repair", store)
    assert told.code == 0
    assert "put aside" in told.out
    assert "histostore embed" in told.out
    assert "A1: embed written" in ok("embed", store, "--backbone", "testing", "--shard-rows", 16)
    assert "all is well" in ok("verify", store)
    np.testing.assert_array_equal(hs.open(store).view(backbone="testing").numpy(), before)
    assert "nothing is damaged" in ok("repair", store)


def test_gc_removes_what_a_killed_writer_left(store: Path, ok: Any) -> None:
    left = store / "slides" / "A1" / ".partial-0123456789abcdef"
    left.write_bytes(b"half")
    old = time.time() - 3 * 24 * 3600
    os.utime(left, (old, old))
    assert "nothing was removed" in ok("gc", store)
    assert left.exists()
    ok("gc", store, "--run")
    assert not left.exists()
    assert "all is well" in ok("verify", store)


def test_output_into_a_closed_pipe_ends_quietly(store: Path) -> None:
    command = f"{sys.executable} -m histostore info {store} --json | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stderr == ""
