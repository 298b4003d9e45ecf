"""Resolutions that a slide can have."""

from __future__ import annotations

import numpy as np
import pytest

from histostore.errors import SlideError, UsageError
from histostore.specs import TileSpec
from histostore.units import check_mpp


def test_numbers_of_any_kind_are_taken() -> None:
    assert [check_mpp(v) for v in (1, 0.5, np.float32(0.25))] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf"), 1e6])
def test_what_no_slide_has_is_refused(mpp: float) -> None:
    with pytest.raises(SlideError, match="µm per pixel"):
        check_mpp(mpp)


def test_text_is_no_resolution() -> None:
    for ask in (lambda: check_mpp("0.5"), lambda: TileSpec(at="grid", px=64, mpp="native")):  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="no number of µm per pixel"):
            ask()
