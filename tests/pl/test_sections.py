from __future__ import annotations

import gc
import io
import weakref

import anndata as ad
import matplotlib.colors as mcolors
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection
from PIL import Image

from histostore.errors import AlignmentError, DataError, NotFoundError, StorageError, UsageError
from histostore.pl import spatial, truth_and_prediction
from histostore.pl.sections import pearson


def raster(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi="figure")
    return np.asarray(Image.open(buffer).convert("RGB")).astype(int)


def pixel_at(figure, ax, x, y):
    """Return the colour drawn at a point given in full-resolution pixels."""
    image = raster(figure)
    across, up = ax.transData.transform((x, y))
    return image[round(image.shape[0] - up), round(across)]


def circles(ax):
    return [c for c in ax.collections if isinstance(c, EllipseCollection)]


def with_one_spot(adata, x, y):
    one = ad.AnnData(obs=pd.DataFrame({"slide": ["S1"], "region": pd.Categorical(["only"])}, index=["S1:only"]))
    one.uns["spatial"] = adata.uns["spatial"]
    one.obsm["spatial"] = np.array([[x, y]], dtype=float)
    one.uns["region_colors"] = ["#ff0000"]
    return one


@pytest.mark.parametrize(("x", "y"), [(120, 80), (470, 90), (300, 330)])
def test_a_spot_covers_its_own_place_on_the_image_at_its_true_size(adata, x, y):
    figure = spatial(with_one_spot(adata, x, y), "region", crop=False)
    ax = figure.axes[0]
    red, white = [255, 0, 0], [255, 255, 255]
    assert pixel_at(figure, ax, x, y).tolist() == red
    for dx, dy in ((25, 0), (-25, 0), (0, 25), (0, -25)):  # the diameter is 60
        assert pixel_at(figure, ax, x + dx, y + dy).tolist() == red
    for dx, dy in ((36, 0), (-36, 0), (0, 36), (0, -36)):
        assert pixel_at(figure, ax, x + dx, y + dy).tolist() == white


def test_the_image_lies_under_the_spots_in_the_same_frame(adata):
    image = np.full((200, 300, 3), 255, np.uint8)
    image[60:80, 100:130] = (0, 0, 255)  # full-resolution 200-260 x 120-160
    adata.uns["spatial"]["S1"]["images"]["hires"] = image
    figure = spatial(adata, None, crop=False)
    ax = figure.axes[0]
    assert pixel_at(figure, ax, 204, 124).tolist() == [0, 0, 255]
    assert pixel_at(figure, ax, 256, 156).tolist() == [0, 0, 255]
    assert pixel_at(figure, ax, 194, 124).tolist() == [255, 255, 255]
    assert pixel_at(figure, ax, 264, 156).tolist() == [255, 255, 255]


def test_float_images_are_drawn_as_uint8_ones(adata):
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    adata.uns["spatial"]["S1"]["images"]["hires"] = image
    as_bytes = raster(spatial(adata, None))
    adata.uns["spatial"]["S1"]["images"]["hires"] = image.astype(np.float32) / 255
    assert np.abs(raster(spatial(adata, None)) - as_bytes).max() <= 1


def test_a_gene_is_drawn_in_the_colours_of_its_values(adata):
    figure = spatial(adata, "B", layer="log", vmin=0, vmax=3)
    spots = circles(figure.axes[0])[0]
    assert np.allclose(spots.get_array(), adata.layers["log"][:, 1])
    assert (spots.norm.vmin, spots.norm.vmax) == (0, 3)
    assert np.allclose(spots.get_offsets(), adata.obsm["spatial"])


def test_sparse_counts_and_the_dense_matrix_give_the_same_picture(adata):
    dense = adata.copy()
    dense.X = adata.X.toarray()
    assert np.array_equal(raster(spatial(adata, "A")), raster(spatial(dense, "A")))


def test_a_categorical_column_has_a_legend_with_counts_and_the_same_colours_on_every_slide(two_slides):
    two_slides.obs["region"] = pd.Categorical(["a"] * 12 + ["b"] * 6 + ["a"] * 6)
    first = spatial(two_slides, "region", slide="S1").axes[0]
    second = spatial(two_slides, "region", slide="S2").axes[0]
    assert [t.get_text() for t in first.get_legend().get_texts()] == ["a (12)"]
    assert [t.get_text() for t in second.get_legend().get_texts()] == ["a (6)", "b (6)"]
    assert np.array_equal(circles(first)[0].get_facecolor(), circles(second)[0].get_facecolor())
    assert mcolors.to_hex(circles(second)[1].get_facecolor()[0]).upper() == "#E69F00"


def test_given_values_are_joined_by_id_whatever_their_order(adata):
    values = pd.Series(np.arange(12.0), index=adata.obs_names, name="score")
    spots = circles(spatial(adata, values.iloc[::-1]).axes[0])[0]
    assert np.array_equal(spots.get_array(), np.arange(12.0))


def test_values_that_lack_a_spot_are_refused(adata):
    values = pd.Series(np.arange(11.0), index=adata.obs_names[:11])
    with pytest.raises(AlignmentError, match="lacks 1 of 12 spots"):
        spatial(adata, values)
    with pytest.raises(AlignmentError, match=r"shape \(5,\)"):
        spatial(adata, np.arange(5))


def test_spots_without_a_value_are_hollow_and_counted(adata):
    adata.obs.loc[adata.obs_names[:3], "depth"] = np.nan
    ax = spatial(adata, "depth").axes[0]
    hollow, filled = circles(ax)
    assert len(hollow.get_offsets()) == 3
    assert len(filled.get_offsets()) == 9
    assert "3 spots without value" in ax.get_title()


def test_only_the_asked_slide_is_drawn_and_must_be_named_among_several(two_slides):
    ax = spatial(two_slides, "A", slide="S2").axes[0]
    assert np.array_equal(circles(ax)[0].get_array(), two_slides.X.toarray()[12:, 0])
    with pytest.raises(UsageError, match="2 slides to choose from"):
        spatial(two_slides, "A")
    with pytest.raises(NotFoundError, match="S3"):
        spatial(two_slides, "A", slide="S3")


def test_a_name_that_is_not_there_gets_the_nearest_names(adata):
    with pytest.raises(NotFoundError, match="did you mean 'region'"):
        spatial(adata, "regoin")
    with pytest.raises(NotFoundError, match="no image 'lowres'"):
        spatial(adata, "A", image_key="lowres")


def test_a_name_that_is_both_gene_and_column_is_refused(adata):
    adata.obs["A"] = 1.0
    with pytest.raises(UsageError, match="column of obs and a gene"):
        spatial(adata, "A")


def test_the_scale_bar_is_as_long_as_it_says(adata):
    ax = spatial(adata, "A", crop=False).axes[0]
    bars = ax.findobj(lambda a: a.get_gid() == "scale-bar")
    # 600 px at 0.5 µm per pixel are 300 µm wide; the bar takes at most a quarter: 50 µm = 100 px
    assert [b.get_width() for b in bars] == [100.0]
    assert "50 µm" in [t.get_text() for t in ax.findobj(lambda a: hasattr(a, "get_text"))]


def test_there_is_no_scale_bar_without_a_resolution(adata):
    adata.uns["spatial"]["S1"]["metadata"] = {}
    ax = spatial(adata, "A").axes[0]
    assert ax.findobj(lambda a: a.get_gid() == "scale-bar") == []


def test_a_section_without_an_image_is_drawn_on_white(adata):
    del adata.uns["spatial"]
    figure = spatial(adata, "A")
    assert len(figure.axes[0].images) == 0
    assert len(circles(figure.axes[0])[0].get_offsets()) == 12


def test_a_missing_scale_factor_names_its_key(adata):
    del adata.uns["spatial"]["S1"]["scalefactors"]["tissue_hires_scalef"]
    with pytest.raises(DataError, match="tissue_hires_scalef"):
        spatial(adata, "A")


def test_truth_and_prediction_share_one_colour_scale(adata):
    prediction = adata.layers["log"][:, 0] * 0.5 + 9
    figure = truth_and_prediction(
        adata, "A", truth="log", prediction=prediction, baseline=np.full(12, -4.0), vmin=None, vmax=None
    )
    panels = [circles(ax)[0] for ax in figure.axes if circles(ax)]
    assert len(panels) == 3
    assert {(p.norm.vmin, p.norm.vmax) for p in panels} == {(-4.0, float(prediction.max()))}
    assert {p.cmap.name for p in panels} == {"viridis"}
    assert np.allclose(panels[1].get_array(), prediction)


def test_the_titles_carry_r_on_this_slide(two_slides):
    rng = np.random.default_rng(2)
    prediction = pd.DataFrame(rng.normal(size=(24, 3)), index=two_slides.obs_names, columns=two_slides.var_names)
    two_slides.obsm["predicted"] = prediction
    figure = truth_and_prediction(two_slides, "B", slide="S2", prediction="predicted")
    want = np.corrcoef(two_slides.X.toarray()[12:, 1], prediction["B"].to_numpy()[12:])[0, 1]
    assert f"predicted  r = {want:.2f}" in [ax.get_title() for ax in figure.axes]
    given = truth_and_prediction(two_slides, "B", slide="S2", prediction=prediction.sample(frac=1, random_state=0))
    assert [a.get_title() for a in given.axes] == [a.get_title() for a in figure.axes]


def test_a_gene_that_was_not_predicted_is_named(adata):
    table = pd.DataFrame({"A": np.arange(12.0)}, index=adata.obs_names)
    with pytest.raises(NotFoundError, match="no gene 'B' in prediction"):
        truth_and_prediction(adata, "B", prediction=table)


def test_r_is_undefined_where_one_side_does_not_vary():
    assert np.isnan(pearson(np.arange(5.0), np.ones(5)))
    assert pearson(np.array([1.0, 2, 3, np.nan]), np.array([2.0, 4, 6, 0])) == pytest.approx(1.0)


def test_panels_in_bins_share_them(adata):
    predicted = pd.Series(np.linspace(-1, 30, adata.n_obs), index=adata.obs_names)
    figure = truth_and_prediction(adata, "A", prediction=predicted, bins=3)
    spots = [c for ax in figure.axes[:3] for c in ax.collections]
    assert len(spots) == 2
    assert spots[0].norm is spots[1].norm
    inner = spots[0].norm.boundaries[1:-1]
    assert np.allclose(inner, np.quantile(adata[:, "A"].X.toarray(), [1 / 3, 2 / 3]))
    assert len({tuple(c) for c in spots[0].to_rgba(spots[0].get_array())}) == 3


def test_dollar_signs_in_names_are_no_mathematics(adata):
    adata.obs["slide"] = "S$1_{$"
    adata.uns["spatial"] = {"S$1_{$": adata.uns["spatial"]["S1"]}
    assert raster(spatial(adata, "A")).size


def test_a_picture_is_saved_as_its_suffix_says(adata, tmp_path):
    spatial(adata, "A", save=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    spatial(adata, "A", save=tmp_path / "a.svg")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    with pytest.raises(UsageError, match=r"a\.xyz"):
        spatial(adata, "A", save=tmp_path / "a.xyz")
    with pytest.raises(StorageError, match="cannot write"):
        spatial(adata, "A", save=tmp_path / "none" / "a.png")


def test_a_figure_is_freed_with_its_last_reference_and_pyplot_never_sees_it(adata):
    import matplotlib.pyplot as plt

    figures = [weakref.ref(spatial(adata, "A")) for _ in range(3)]
    gc.collect()
    assert [f() for f in figures] == [None] * 3
    assert plt.get_fignums() == []


@pytest.mark.real
def test_a_real_section_is_drawn_with_every_spot_on_the_image(real_data, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # 92 million pixels are no attack here
    folder = real_data / "her2st"
    spots = pd.read_csv(folder / "C2.spots.tsv", sep="\t")
    with Image.open(folder / "C2.jpg") as jpeg:
        width = jpeg.width
        jpeg.draft("RGB", (1200, 1200))
        image = np.asarray(jpeg)
    adata = ad.AnnData(
        obs=pd.DataFrame({"slide": "C2"}, index=[f"C2:{x}x{y}" for x, y in zip(spots.x, spots.y, strict=True)])
    )
    adata.obsm["spatial"] = spots[["pixel_x", "pixel_y"]].to_numpy()
    adata.uns["spatial"] = {
        "C2": {
            "images": {"hires": image},
            "scalefactors": {"tissue_hires_scalef": image.shape[1] / width, "spot_diameter_fullres": 100 / 0.688},
            "metadata": {"mpp": 0.688},
        }
    }
    ax = spatial(adata, np.arange(len(spots))).axes[0]
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    centres = circles(ax)[0].get_offsets()
    assert len(centres) == len(spots)
    assert (left < centres[:, 0]).all()
    assert (centres[:, 0] < right).all()
    assert (top < centres[:, 1]).all()
    assert (centres[:, 1] < bottom).all()
    # spots are on stained tissue, glass is nearly white
    x, y = (centres * image.shape[1] / width).astype(int).T
    assert np.median(image[y, x].min(axis=1)) < 200 < np.median(image[:50].min(axis=2))
