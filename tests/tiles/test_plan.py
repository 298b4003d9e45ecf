from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import box

from histostore.errors import AlignmentError, DataError, SpecMismatchError, UsageError
from histostore.specs import TileSpec
from histostore.tables import Points
from histostore.tiles.mask import TissueMask
from histostore.tiles.plan import LEFT_OUT, TilePlan, plan_tiles

SLIDE = {"size_px": (1000, 800), "slide_mpp": 0.5, "downsamples": (1.0, 4.0), "source_digest": "source"}


def points_at(xy, **columns) -> Points:
    xy = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    return Points(ids=tuple(f"p{i}" for i in range(len(xy))), xy=xy, **columns)


def half_tissue() -> TissueMask:
    """Tissue where x < 500 on a slide of 1000 x 800 px."""
    mask = np.zeros((80, 100), dtype=bool)
    mask[:, :50] = True
    overview = np.zeros((80, 100, 3), dtype=np.uint8)
    return TissueMask(mask=mask, overview=overview, downsample=(10.0, 10.0), threshold=0.1)


def by_id(plan: TilePlan) -> dict[str, tuple]:
    ids = [plan.points.ids[i] for i in plan.point]
    return dict(zip(ids, zip(plan.xy0.tolist(), plan.tile_id.tolist(), strict=True), strict=True))


def left_out(plan: TilePlan) -> dict[str, int]:
    return {reason: n for reason in LEFT_OUT if (n := plan.report.counts[reason])}


def test_spots_become_tiles_in_their_own_order_with_exact_corners():
    spots = points_at([[500.0, 300.0], [112.4, 112.6], [699.5, 500.5]])
    plan = plan_tiles(TileSpec.at_spots(px=224), points=spots, **SLIDE)
    assert plan.point.tolist() == [0, 1, 2]
    assert plan.points is spots
    assert plan.xy0.tolist() == [[388, 188], [0, 1], [588, 389]]
    assert np.array_equal(plan.centre, spots.xy)
    assert np.isnan(plan.tissue).all()
    assert plan.grid is None
    assert plan.report.counts == {"candidates": 3, "tiles": 3, **dict.fromkeys(LEFT_OUT, 0)}


def test_what_is_left_out_is_counted_once_under_the_first_reason():
    xy = [[500, 400], [-1, 400], [1000, 400], [50, 400], [900, 400], [300, 300], [200, 200], [310, 310]]
    spots = points_at(xy, in_tissue=np.array([1, 1, 1, 1, 1, 0, 1, 1], dtype=bool))
    spec = TileSpec.at_spots(px=224, edge="drop", min_tissue=0.6, max_tiles=1)
    plan = plan_tiles(spec, points=spots, mask=half_tissue(), regions=[box(250, 250, 999, 700)], **SLIDE)
    expected = {"off image": 2, "off tissue": 1, "sticks out": 2, "not in regions": 1, "below min tissue": 1}
    assert left_out(plan) == expected  # p1 p2, p5, p3 p4, p6, p0
    assert [plan.points.ids[i] for i in plan.point] == ["p7"]
    assert sum(left_out(plan).values()) + len(plan) == plan.report.counts["candidates"] == len(spots)


def test_the_assays_own_table_counts_for_spots_only_and_can_be_overruled():
    spots = points_at([[300, 300], [500, 500]], in_tissue=np.array([True, False]))
    assert len(plan_tiles(TileSpec.at_spots(px=64), points=spots, **SLIDE)) == 1
    assert len(plan_tiles(TileSpec.at_spots(px=64, in_tissue=False), points=spots, **SLIDE)) == 2
    assert len(plan_tiles(TileSpec.at_points("cells", px=64), points=spots, **SLIDE)) == 2


def test_tiles_carry_their_share_of_tissue():
    spots = points_at([[300, 300], [500, 300], [450, 300], [700, 300]])
    plan = plan_tiles(TileSpec.at_spots(px=200), points=spots, mask=half_tissue(), **SLIDE)
    assert plan.tissue.dtype == np.float32
    assert plan.tissue == pytest.approx([1.0, 0.5, 0.75, 0.0])


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(40, 900),
    height=st.integers(40, 900),
    px=st.integers(8, 120),
    mpp=st.sampled_from([None, 0.5, 0.61, 1.0, 2.03]),
)
def test_a_grid_without_overlap_covers_every_pixel_exactly_once(width, height, px, mpp):
    spec = TileSpec.grid(px=px, mpp=mpp or "native", min_tissue=0, edge="pad")
    where = {**SLIDE, "size_px": (width, height)}
    plan = plan_tiles(spec, **where)
    points = np.random.default_rng(width).random((200, 2)) * [width, height]
    after = points[:, None] >= plan.xy0[None] - 1e-9
    before = points[:, None] < plan.xy0[None] + plan.read.edge0 - 1e-9
    assert ((after & before).all(axis=2).sum(axis=1) == 1).all()
    # no tile begins beyond the image
    assert (plan.xy0 < [width, height]).all()


@settings(max_examples=40, deadline=None)
@given(
    px=st.integers(20, 300),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    mpp=st.sampled_from([None, 0.77, 2.0]),
)
def test_dropped_edge_tiles_are_those_of_the_padded_grid_that_stick_out(px, overlap, mpp):
    def plan(edge):
        spec = TileSpec.grid(px=px, mpp=mpp or "native", overlap=overlap, min_tissue=0, edge=edge)
        return plan_tiles(spec, **SLIDE)

    padded = plan("pad")
    lies_inside = (padded.xy0 + padded.read.edge0 <= np.array(SLIDE["size_px"]) + 1e-6).all(axis=1)
    if not lies_inside.any():
        with pytest.raises(DataError, match="sticks out"):
            plan("drop")
        return
    dropped = plan("drop")
    assert dropped.points.ids == tuple(np.array(padded.points.ids)[lies_inside])
    assert np.array_equal(dropped.tile_id, padded.tile_id[lies_inside])
    assert dropped.report.counts["sticks out"] == (~lies_inside).sum()
    assert dropped.report.counts["candidates"] == len(padded)


def test_a_grid_runs_row_by_row_and_its_points_keep_their_names_whatever_is_left_out():
    whole = plan_tiles(TileSpec.grid(px=200, min_tissue=0), mask=half_tissue(), **SLIDE)
    part = plan_tiles(TileSpec.grid(px=200, min_tissue=0.5), mask=half_tissue(), **SLIDE)
    assert whole.points.ids[:6] == ("0x0", "1x0", "2x0", "3x0", "4x0", "0x1")
    assert part.points.ids[:4] == ("0x0", "1x0", "2x0", "0x1")
    assert part.points.assay == "grid"
    assert (part.points.array_row[3], part.points.array_col[3]) == (1, 0)
    assert part.points.array_row.dtype == np.int32
    assert part.point.tolist() == list(range(len(part)))
    assert np.array_equal(part.points.xy, part.centre)
    assert by_id(part).items() <= by_id(whole).items()
    assert left_out(part) == {"below min tissue": 8}
    assert (whole.grid.cols, whole.grid.rows, whole.grid.stride0) == (5, 4, 200.0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 100), max_tiles=st.sampled_from([None, 7, 30]))
def test_points_in_another_order_are_the_same_tiles_by_id(seed, max_tiles):
    rng = np.random.default_rng(seed)
    points = points_at(rng.random((60, 2)) * [1000, 800])
    order = rng.permutation(60)
    moved = Points(ids=tuple(points.ids[i] for i in order), xy=points.xy[order])
    spec = TileSpec.at_points("cells", px=100, mpp=0.7, max_tiles=max_tiles, seed=seed)
    one, other = (plan_tiles(spec, points=p, **SLIDE) for p in (points, moved))
    assert by_id(one) == by_id(other)
    assert (np.diff(one.point) > 0).all()
    assert (np.diff(other.point) > 0).all()


def test_a_sample_keeps_row_order_and_a_larger_one_holds_it():
    def ids(n, seed=0):
        return plan_tiles(TileSpec.grid(px=50, min_tissue=0, max_tiles=n, seed=seed), **SLIDE).points.ids

    small, large, everything = ids(20), ids(80), ids(10_000)
    assert set(small) < set(large) < set(everything)
    assert list(small) == [i for i in everything if i in set(small)]
    assert ids(20) == small
    assert ids(20, seed=1) != small
    plan = plan_tiles(TileSpec.grid(px=50, min_tissue=0, max_tiles=20), **SLIDE)
    assert left_out(plan) == {"beyond max_tiles": 300}


def test_sizes_in_microns_and_resolutions_resolve_on_the_slide():
    spots = points_at([[500.0, 400.0]])
    native = plan_tiles(TileSpec.at_spots(um=112), points=spots, **SLIDE)
    assert (native.read.out_px, native.read.mpp, native.read.resample) == (224, 0.5, False)
    coarse = plan_tiles(TileSpec.at_spots(um=112, mpp=1.0), points=spots, **SLIDE)
    assert (coarse.read.out_px, coarse.read.edge0, coarse.read.resample) == (112, 224.0, True)
    assert coarse.xy0.tolist() == [[388.0, 288.0]]
    near = plan_tiles(TileSpec.at_spots(px=224, mpp=0.495), points=spots, **SLIDE)
    assert (near.read.mpp, near.read.resample) == (0.5, False)


@settings(deadline=None)
@given(mpp=st.floats(0.51, 8.0), px=st.integers(8, 512))
def test_the_stored_size_and_the_footprint_say_the_same_length(mpp, px):
    plan = plan_tiles(TileSpec.at_spots(px=px, mpp=mpp), points=points_at([[500.0, 400.0]]), **SLIDE)
    assert plan.read.edge0 * 0.5 == pytest.approx(plan.read.out_px * plan.read.mpp)
    middle = plan.xy0[0] + plan.read.edge0 / 2
    half_px = 0 if plan.read.resample else plan.read.downsample / 2 + 0.5
    assert np.abs(middle - [500, 400]).max() <= half_px + 1e-6


def test_native_tiles_of_a_coarser_level_begin_on_its_whole_pixels():
    slide = {**SLIDE, "downsamples": (1.0, 4.0003)}
    spots = points_at(np.random.default_rng(0).random((50, 2)) * [1000, 800])
    plan = plan_tiles(TileSpec.at_spots(px=64, mpp=2.0), points=spots, **slide)
    assert not plan.read.resample
    assert np.array_equal(plan.xy0, np.floor(plan.xy0))
    of_level = plan.xy0 / 4.0003
    assert np.abs(of_level - np.rint(of_level)).max() < 0.13
    assert np.abs(plan.xy0 + plan.read.edge0 / 2 - spots.xy).max() <= 2.6


def test_tile_ids_are_unique_and_the_same_place_has_the_same_id_in_any_tile_set():
    grid = plan_tiles(TileSpec.grid(px=100, min_tissue=0), **SLIDE)
    assert len(np.unique(grid.tile_id, axis=0)) == len(grid) == 80
    spot = plan_tiles(TileSpec.at_points("p", px=100), points=points_at(grid.centre[[17]]), **SLIDE)
    assert np.array_equal(spot.tile_id, grid.tile_id[[17]])


def test_a_slide_of_200000_tiles_is_planned_in_seconds():
    where = {**SLIDE, "size_px": (100_000, 100_000)}
    began = time.perf_counter()
    plan = plan_tiles(TileSpec.grid(px=224, min_tissue=0, edge="pad"), **where)
    assert len(plan) == 447**2
    assert time.perf_counter() - began < 9  # 0.3 s measured


@pytest.mark.parametrize(
    ("spec", "given", "error", "says"),
    [
        (TileSpec.at_spots(px=64), {}, UsageError, "'spots' and none were given"),
        (TileSpec.grid(px=64), {}, UsageError, "no tissue mask"),
        (TileSpec.grid(px=64, min_tissue=0, regions="tumour"), {}, UsageError, "'tumour' and none were given"),
        (TileSpec.grid(um=20_000, min_tissue=0), {}, UsageError, "40000 px at 0.5 mpp"),
        (TileSpec.grid(px=8, min_tissue=0), {"size_px": (200_000, 200_000)}, UsageError, "take larger tiles"),
        (TileSpec.grid(px=224, mpp=0.25, min_tissue=0), {}, SpecMismatchError, "enlarged"),
        (TileSpec.at_spots(px=64), {"points": points_at([[1, 2], [3, np.nan]])}, DataError, "first at 'p1'"),
        (TileSpec.at_spots(px=64), {"points": points_at([])}, DataError, "there were no points"),
        (TileSpec.at_spots(px=64), {"points": points_at([[-5, 9], [9, 900]])}, DataError, "of 2: 2 off image"),
        (
            TileSpec.at_spots(px=64),
            {"points": Points(ids=("a", "b", "a"), xy=np.ones((3, 2)))},
            AlignmentError,
            "1 of 3 points repeat an id",
        ),
    ],
)
def test_bad_input_gets_one_line(spec, given, error, says):
    with pytest.raises(error, match=says) as raised:
        plan_tiles(spec, **{**SLIDE, **given})
    assert "\n" not in str(raised.value)
