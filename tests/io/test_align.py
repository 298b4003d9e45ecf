from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_closing, binary_fill_holes, gaussian_filter
from skimage.filters import threshold_otsu

from histostore.errors import AlignmentError, UsageError
from histostore.io.align import align, check_on_image, check_orientation
from histostore.io.st import read_spots, read_st
from histostore.tables import Counts, Points

if TYPE_CHECKING:
    from pathlib import Path

type Mask = Callable[[NDArray[np.float64]], NDArray[np.bool_]]
SECTIONS = ("C2", "C3", "C4", "C5")


def _points(ids: list[str], xy: NDArray[np.float64] | None = None, in_tissue: list[bool] | None = None) -> Points:
    return Points(
        ids=tuple(ids),
        xy=np.zeros((len(ids), 2)) if xy is None else xy,
        in_tissue=None if in_tissue is None else np.array(in_tissue),
    )


def _counts(ids: list[str]) -> Counts:
    matrix = sp.csr_array(np.arange(len(ids), dtype=np.int32)[:, None])
    return Counts(ids=tuple(ids), matrix=matrix, gene_ids=("G",), symbols=("G",))


@pytest.mark.parametrize(("section", "lonely"), [("C2", 0), ("C3", 2), ("C4", 3), ("C5", 2)])
def test_real_sections_align_and_say_which_spots_have_no_counts(real_data: Path, section: str, lonely: int) -> None:
    points, counts = read_st(
        real_data / "her2st" / f"{section}.counts.tsv.gz", real_data / "her2st" / f"{section}.spots.tsv"
    )
    rows, report = align(points, counts)
    assert report.counts == {
        "matched": len(counts),
        "only_in_points": lonely,
        "only_in_counts": 0,
        "duplicated": 0,
    }
    assert (rows == -1).sum() == lonely
    assert all(counts.ids[row] == point for point, row in zip(points.ids, rows, strict=True) if row >= 0)


def test_order_plays_no_part() -> None:
    ids = [f"s{i}" for i in range(100)]
    rng = np.random.default_rng(0)
    for _ in range(20):
        shuffled = [ids[i] for i in rng.permutation(100)]
        rows, report = align(_points(ids), _counts(shuffled))
        assert [shuffled[row] for row in rows] == ids
        assert report.counts["matched"] == 100


def test_the_share_that_must_match_is_that_of_the_counts() -> None:
    counts = _counts([f"s{i}" for i in range(10)])
    many = [f"s{i}" for i in range(9)] + [f"t{i}" for i in range(500)]
    rows, report = align(_points(many), counts)  # 9 of 10 count rows
    assert report.counts == {"matched": 9, "only_in_points": 500, "only_in_counts": 1, "duplicated": 0}
    assert report.notes[1] == "1 count rows have no spot and are left out: 's9'"
    with pytest.raises(AlignmentError, match=r"8 of 10 count rows \(80%\) have a spot, at least 90%"):
        align(_points(many[1:]), counts)
    rows, _ = align(_points(many[1:]), counts, min_match=0.5)
    assert (rows >= 0).sum() == 8


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_bad_match_names_ids_of_both_sides(share: float) -> None:
    n = round(share * 10)
    with pytest.raises(AlignmentError, match=r"only in counts: 's.', .*, …; only in spots: 'u0', 'u1', 'u2', …"):
        align(_points([f"s{i}" for i in range(n)] + [f"u{i}" for i in range(9)]), _counts([f"s{i}" for i in range(10)]))


def test_nothing_in_common_is_refused_whatever_was_asked() -> None:
    with pytest.raises(AlignmentError, match="0 of 1"):
        align(_points(["a"]), _counts(["b"]), min_match=0)
    with pytest.raises(UsageError, match="min_match is 90"):
        align(_points(["a"]), _counts(["b"]), min_match=90)


def test_the_likely_reason_of_a_mismatch_is_named() -> None:
    with pytest.raises(AlignmentError, match="without the -1 suffix"):
        align(_points(["ACGT", "ACGA"]), _counts(["ACGT-1", "ACGA-1"]))
    with pytest.raises(AlignmentError, match="array x and y are swapped"):
        align(_points(["1x2", "3x4"]), _counts(["2x1", "4x3"]))


def test_repeated_ids_cannot_be_joined() -> None:
    with pytest.raises(AlignmentError, match="1 ids occur more than once in the counts: 'a'"):
        align(_points(["a", "b"]), _counts(["a", "b", "a"]))
    with pytest.raises(AlignmentError, match="in the spots"):
        align(_points(["a", "a"]), _counts(["a"]))


def test_no_permutation_drop_or_duplicate_ever_misaligns_a_row() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        ids = [f"s{i}" for i in range(50)]
        counts = [ids[i] for i in rng.permutation(50)[: rng.integers(40, 51)]]
        points = [ids[i] for i in rng.permutation(50)[: rng.integers(45, 51)]]
        if rng.random() < 0.3:
            counts.append(counts[0])
        try:
            rows, _ = align(_points(points), _counts(counts))
        except AlignmentError:
            continue
        assert all(counts[row] == point for point, row in zip(points, rows, strict=True) if row >= 0)


def test_spots_off_the_image_are_refused_or_left_out() -> None:
    points = _points(list("abcd"), np.array([[0.0, 0.0], [99.9, 49.9], [100.0, 10.0], [5.0, -1.0]]))
    with pytest.raises(AlignmentError, match=r"2 of 4 spots .* 100 x 50 px \(spots span x 0 to 100, y -1 to 50\)"):
        check_on_image(points, (100, 50))
    keep, report = check_on_image(points, (100, 50), drop=True)
    assert keep.tolist() == [True, True, False, False]
    assert report.counts == {"off_image": 2}
    assert "left out" in report.notes[0]


def test_spots_off_tissue_may_lie_off_the_image() -> None:
    points = _points(list("ab"), np.array([[5.0, 5.0], [500.0, 5.0]]), [True, False])
    keep, report = check_on_image(points, (100, 50))
    assert keep.all()
    assert report.counts == {"off_image": 1}


def test_all_spots_off_the_image_are_refused_even_when_dropping() -> None:
    points = _points(["a"], np.array([[500.0, 500.0]]))
    with pytest.raises(AlignmentError, match="full-resolution image"):
        check_on_image(points, (100, 50), drop=True)


@pytest.fixture(scope="module")
def real_masks(real_data: Path) -> dict[str, tuple[Mask, tuple[int, int]]]:
    return {section: _mask_of(real_data / "her2st" / f"{section}.jpg") for section in SECTIONS}


def _mask_of(path: Path) -> tuple[Mask, tuple[int, int]]:
    """Otsu on the smoothed saturation of an eighth of the image, closed: enough to know tissue from glass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # these sections are known
        image = Image.open(path)
    with image:
        size = image.size
        image.draft("RGB", (size[0] // 8, size[1] // 8))
        saturation = gaussian_filter(np.asarray(image.convert("HSV"))[..., 1].astype(np.float32), 2)
    mask = binary_fill_holes(binary_closing(saturation > threshold_otsu(saturation), iterations=6))
    scale = np.array([mask.shape[1] / size[0], mask.shape[0] / size[1]])

    def contains(xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        x, y = (xy * scale).astype(int).T
        return np.asarray(mask[np.minimum(y, mask.shape[0] - 1), np.minimum(x, mask.shape[1] - 1)])

    return contains, size


def _real(real_data: Path, section: str) -> Points:
    return read_spots(real_data / "her2st" / f"{section}.spots.tsv")


@pytest.mark.parametrize("section", SECTIONS)
def test_real_sections_lie_on_their_tissue(real_data: Path, real_masks, section: str) -> None:
    contains, size = real_masks[section]
    report = check_orientation(_real(real_data, section), contains, size)
    assert report.counts["off_tissue"] <= 5
    assert report.notes == ()


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        pytest.param(lambda xy, size: xy[:, ::-1], "swapping x and y would", id="swapped"),
        pytest.param(lambda xy, size: np.array([size[0], 0]) + xy * [-1, 1], "mirroring x would", id="mirrored_x"),
        pytest.param(lambda xy, size: np.array([0, size[1]]) + xy * [1, -1], "mirroring y would", id="mirrored_y"),
        pytest.param(lambda xy, size: np.array(size) - xy, "turning by 180° would", id="turned"),
        pytest.param(lambda xy, size: xy * 0.25, "multiplying by 4 would", id="too_small"),
        pytest.param(lambda xy, size: xy * 0.17, "multiplying by 5.882 would", id="hires_pixels"),
    ],
)
def test_spoilt_coordinates_of_real_sections_are_refused_with_what_was_done(
    real_data: Path, real_masks, section: str, spoil, hint: str
) -> None:
    contains, size = real_masks[section]
    points = _real(real_data, section)
    spoilt = dataclasses.replace(points, xy=np.asarray(spoil(points.xy, size), dtype=np.float64))
    with pytest.raises(AlignmentError, match=hint):
        check_orientation(spoilt, contains, size, scales=(1 / 0.17,))
    report = check_orientation(spoilt, contains, size, scales=(1 / 0.17,), force=True)
    assert "by force" in report.notes[0]


def test_a_wrong_image_has_no_better_orientation() -> None:
    points = _points(list("abcd"), np.array([[10.0, 10.0], [20.0, 10.0], [10.0, 20.0], [20.0, 20.0]]))
    with pytest.raises(AlignmentError, match="no swap, flip or scale fits better"):
        check_orientation(points, lambda xy: np.zeros(len(xy), dtype=bool), (100, 100))


def test_only_spots_in_tissue_are_looked_at() -> None:
    points = _points(list("ab"), np.array([[10.0, 10.0], [90.0, 90.0]]), [True, False])
    assert check_orientation(points, lambda xy: xy[:, 0] < 50, (100, 100)).counts == {"off_tissue": 0}
    nobody = _points(["a"], np.array([[10.0, 10.0]]), [False])
    assert "not checked" in check_orientation(nobody, lambda xy: xy[:, 0] < 50, (100, 100)).notes[0]
