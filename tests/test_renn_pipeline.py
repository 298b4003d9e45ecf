"""The RENN recipe on what the study left behind: its feature file, its tile files, its table."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

import histostore as hs
from histostore.backbones import load_backbone
from histostore.errors import DataError, NotFoundError, UsageError
from histostore.recipes import load_recipe, run

RENN = Path(__file__).parents[1] / "pipelines" / "renn_mki67.py"
QUICK = {"epochs": 3, "lr": 3e-3, "hidden": (4,), "m": 8}


def table(folder, n=60, seed=0):
    rng = np.random.default_rng(seed)
    sites = rng.choice(["A2", "NA", "BH", "E2", "A8"], n)
    lines = pd.DataFrame({"file_id": [f"f{i}" for i in range(n)], "tss_code": sites,
                          "MKI67_tpm_unst": rng.lognormal(3, 1, n).round(4).astype(str)})  # fmt: skip
    lines.loc[3, "MKI67_tpm_unst"] = ""
    lines.to_csv(folder / "t.csv")
    return lines


def test_features_of_the_study_are_joined_by_file_and_the_code_NA_is_a_site(tmp_path):
    lines = table(tmp_path)
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "features.npz", **{f: rng.normal(size=6).astype(np.float32) for f in lines["file_id"][5:]})
    settings = QUICK | {"features": str(tmp_path / "features.npz"), "table": str(tmp_path / "t.csv")}
    made = run(load_recipe(RENN), None, settings, "npz", out=tmp_path)
    assert made.metrics["slides"] == 55
    assert made.metrics["sites"] == 5
    assert len(made.table()) == 3


def test_tiles_of_the_study_get_their_colours_back(tmp_path):
    lines = table(tmp_path, n=30)
    rng = np.random.default_rng(2)
    folder = tmp_path / "tiles"
    folder.mkdir()
    for f in lines["file_id"]:
        with h5py.File(folder / f"{f}.h5", "w") as file:
            bgr = rng.integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
            bgr[..., 2] = 250
            file.create_dataset(f"{f}/tiles", data=bgr)
    module = load_recipe(RENN).run.__globals__
    settings = module["Settings"](
        features=str(folder), table=str(tmp_path / "t.csv"), backbone="testing", tiles_per_slide=2
    )
    tiles = module["_tiles_of"](folder / "f0.h5", "f0", settings)
    assert tiles.shape == (2, 32, 32, 3)
    assert (tiles[..., 0] == 250).all()
    made = run(load_recipe(RENN), None, QUICK | {"features": str(folder), "table": str(tmp_path / "t.csv"),
               "backbone": "testing", "tiles_per_slide": 2}, "h5", out=tmp_path)  # fmt: skip
    assert made.metrics["slides"] == 29
    assert load_backbone("testing").embed(tiles).shape[0] == 2


def test_slides_of_a_store_are_tiled_embedded_and_pooled(embedded, copy_of, tmp_path):
    store = hs.open(copy_of(embedded))
    for slide, tpm in (("A1", "3.5"), ("B1", "9.25")):
        hs.pp.annotate(store, slide, MKI67_tpm_unst=tpm, tss_code=slide)
    module = load_recipe(RENN).run.__globals__
    settings = module["Settings"](px=96, mpp=2.0, backbone="testing", tiles_per_slide=5, codec="slide", min_tissue=0.5)

    class Report:
        progress = None

        def __init__(self):
            self.counts = {}

        def count(self, what, n):
            self.counts[what] = n

    report = Report()
    slides = module["_from_store"](store, settings, report)
    np.testing.assert_allclose(slides.y, np.log([3.5, 9.25]))
    assert report.counts == {"without tiles": 0, "without MKI67_tpm_unst": 0, "without a site": 0, "slides used": 2}


def test_the_published_figures_are_redrawn(real_data, tmp_path):
    module = load_recipe(RENN).run.__globals__
    made = module["redraw"](real_data / "tcga_brca" / "renn_results_flat.csv", tmp_path)
    assert len(made) == 10
    assert all(p.stat().st_size > 10_000 for p in made)


def test_slides_without_features_are_one_line(tmp_path):
    table(tmp_path)
    np.savez(tmp_path / "f.npz", other=np.zeros(3))
    with pytest.raises(hs.HistostoreError, match="none of the 60 slides"):
        run(load_recipe(RENN), None, {"features": str(tmp_path / "f.npz"), "table": str(tmp_path / "t.csv")}, "x",
            out=tmp_path)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"features": "nothing.npz"}, "features 'nothing.npz': no such file"),
        ({"table": "nothing.csv"}, "table 'nothing.csv': no such file"),
        ({"site": "tss_cod"}, "did you mean 'tss_code'"),
        ({"target": "MKI67"}, "no column 'MKI67' among"),
        ({"features": ".", "backbone": "testinf"}, "testinf"),
    ],
)
def test_files_and_columns_that_are_not_there_are_told_before_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path)
    np.savez(tmp_path / "f.npz", f0=np.zeros(3))
    with pytest.raises((NotFoundError, DataError, UsageError), match=said):
        run(load_recipe(RENN), None, QUICK | {"features": "f.npz", "table": "t.csv"} | given, "bad", out=tmp_path)
    assert not (tmp_path / "bad").exists()
