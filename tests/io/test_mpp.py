from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from histostore.errors import SlideError
from histostore.io.mpp import mpp_from_pitch, resolve_mpp
from histostore.io.st import read_spots
from histostore.io.visium import read_visium
from histostore.tables import Points

if TYPE_CHECKING:
    from pathlib import Path


def _array(assay: str, mpp: float, *, turn: float = 0.0, n: int = 12) -> Points:
    row, col = (a.ravel().astype(np.int32) for a in np.mgrid[:n, :n])
    if assay == "visium":
        col = 2 * col + row % 2
        um = np.column_stack([col * 50.0, row * 100 * np.sqrt(3) / 2])
        pitch = 100.0
    else:
        um, pitch = np.column_stack([col, row]) * 200.0, 200.0
    turned = um @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    ids = tuple(f"{c}x{r}" for c, r in zip(col, row, strict=True))
    return Points(ids=ids, xy=turned / mpp + 500, array_row=row, array_col=col, assay=assay, pitch_um=pitch)


@pytest.mark.parametrize("section", ["C2", "C3", "C4", "C5"])
def test_real_st_sections_are_at_0_688(real_data: Path, section: str) -> None:
    mpp = mpp_from_pitch(read_spots(real_data / "her2st" / f"{section}.spots.tsv"))
    assert mpp == pytest.approx(0.688, rel=0.005)


def test_the_real_visium_is_at_0_725(real_data: Path) -> None:
    assert mpp_from_pitch(read_visium(real_data / "visium_mini" / "outs")[0]) == pytest.approx(0.725, rel=0.002)


@pytest.mark.parametrize("assay", ["visium", "st-v1"])
@pytest.mark.parametrize("turn", [0.0, 0.3, np.pi / 2, np.pi])
def test_turned_and_mirrored_arrays_give_the_same_mpp(assay: str, turn: float) -> None:
    points = _array(assay, 0.4, turn=turn)
    assert mpp_from_pitch(points) == pytest.approx(0.4)
    mirrored = dataclasses.replace(points, xy=points.xy * [-1, 1])
    assert mpp_from_pitch(mirrored) == pytest.approx(0.4)


def test_jitter_and_a_few_lost_spots_do_not_move_it() -> None:
    points = _array("st-v1", 0.688)
    rng = np.random.default_rng(0)
    xy = points.xy + rng.normal(0, 12, points.xy.shape)
    xy[rng.choice(len(xy), 5, replace=False)] += 8000
    assert mpp_from_pitch(dataclasses.replace(points, xy=xy)) == pytest.approx(0.688, rel=0.01)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda p: {"array_row": None}, id="no_array"),
        pytest.param(lambda p: {"pitch_um": None}, id="no_pitch"),
        pytest.param(lambda p: {"array_row": np.zeros(len(p), np.int32)}, id="one_row"),
        pytest.param(lambda p: {"xy": p.xy * [1, 1.3]}, id="axes_of_different_scale"),
        pytest.param(
            lambda p: {"xy": np.random.default_rng(0).permutation(p.xy)}, id="pixels_that_do_not_follow_the_array"
        ),
    ],
)
def test_an_array_that_says_nothing_gives_none(change) -> None:
    points = _array("st-v1", 0.5)
    assert mpp_from_pitch(dataclasses.replace(points, **change(points))) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({"given": 0.5, "file": 0.49, "pitch": 0.51}, (0.5, "given"), id="given_first"),
        pytest.param({"file": 0.49, "pitch": 0.5}, (0.49, "file"), id="then_the_file"),
        pytest.param({"pitch": 0.5}, (0.5, "spot pitch"), id="then_the_pitch"),
        pytest.param({"pitch": 0.725, "spot_diameter_px": 89.44}, (0.725, "spot pitch"), id="checked_by_diameter"),
        pytest.param({"spot_diameter_px": 130.0}, (0.5, "spot diameter"), id="diameter_alone"),
    ],
)
def test_the_first_that_is_there_is_taken(values: dict[str, float], expected: tuple[float, str]) -> None:
    mpp, origin, notes = resolve_mpp(**{"given": None, "file": None, "pitch": None} | values)
    assert (mpp, origin) == expected
    assert notes == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({}, "mpp is unknown.*--mpp", id="none"),
        pytest.param({"given": 0.0}, "the mpp given is 0.0, outside 0.05-10", id="zero"),
        pytest.param({"given": -1.0}, "outside", id="negative"),
        pytest.param({"given": float("nan")}, "outside", id="nan"),
        pytest.param({"file": 1000.0, "pitch": 0.5}, "the file's mpp is 1000.0, outside", id="file_nonsense"),
        pytest.param(
            {"given": 0.25, "pitch": 0.688},
            "the mpp given is 0.25 but the mpp from the spot pitch is 0.688",
            id="pitch",
        ),
        pytest.param({"given": 0.5, "file": 0.25}, "the mpp given is 0.5 but the file's mpp is 0.25", id="file"),
        pytest.param({"file": 0.5, "pitch": 0.53}, "6.0% apart, at most 5%", id="file_and_pitch"),
        pytest.param({"pitch": 0.5, "spot_diameter_px": 110.0}, "spot diameter is 0.5909", id="diameter_is_not_55"),
    ],
)
def test_contradictions_name_both_values(values: dict[str, float], message: str) -> None:
    with pytest.raises(SlideError, match=message):
        resolve_mpp(**{"given": None, "file": None, "pitch": None} | values)


def test_force_takes_the_first_and_says_so() -> None:
    mpp, origin, notes = resolve_mpp(given=0.25, file=0.5, pitch=None, force=True)
    assert (mpp, origin) == (0.25, "given")
    assert "by force" in notes[0]


def test_a_given_value_mends_a_file_that_claims_nonsense() -> None:
    mpp, origin, notes = resolve_mpp(given=0.25, file=0.0, pitch=None)
    assert (mpp, origin) == (0.25, "given")
    assert notes == ("the file's mpp is 0, which no slide has: not used",)
