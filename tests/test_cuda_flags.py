"""Torch's settings for one call: repeatable kernels, no TF32 where float32 was asked for, all put back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from histostore.cuda_flags import repeatable_kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CUDNN: Any = torch.backends.cudnn
MATMUL: Any = torch.backends.cuda.matmul


def older() -> list[Any]:
    """What the older way of asking says; it may refuse."""
    found: list[Any] = []
    asks: tuple[Callable[[], Any], ...] = (
        lambda: CUDNN.allow_tf32, lambda: MATMUL.allow_tf32, torch.get_float32_matmul_precision,
    )  # fmt: skip
    for ask in asks:
        try:
            found.append(ask())
        except RuntimeError:
            found.append("refused")
    return found


def newer() -> list[Any]:
    return [CUDNN.conv.fp32_precision, CUDNN.rnn.fp32_precision, MATMUL.fp32_precision,
            CUDNN.enabled, CUDNN.benchmark, CUDNN.deterministic]  # fmt: skip


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    CUDNN.allow_tf32, CUDNN.benchmark, CUDNN.deterministic = True, False, False
    torch.set_float32_matmul_precision("highest")
    MATMUL.fp32_precision = "none"


def nothing() -> None:
    """The user set nothing."""


def no_tf32_in_convolutions() -> None:
    CUDNN.conv.fp32_precision = "ieee"


def tf32_in_products() -> None:
    MATMUL.fp32_precision = "tf32"


def older_way() -> None:
    torch.set_float32_matmul_precision("high")
    CUDNN.benchmark = True


@pytest.mark.parametrize("chosen", [nothing, no_tf32_in_convolutions, tf32_in_products, older_way])
@pytest.mark.parametrize("full_float32", [True, False])
def test_whatever_way_the_user_set_tf32_it_is_ours_inside_and_theirs_after(
    chosen: Callable[[], None], full_float32: bool
) -> None:
    chosen()
    before = newer(), older()
    with repeatable_kernels(full_float32=full_float32):
        assert (CUDNN.conv.fp32_precision == "tf32") is not full_float32
        assert CUDNN.deterministic
        assert not CUDNN.benchmark
        if full_float32:
            assert MATMUL.fp32_precision != "tf32"
            assert older() == [False, False, "highest"]  # compilers ask the older way
    assert (newer(), older()) == before


def test_settings_are_put_back_after_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    before = newer(), older()
    with pytest.raises(ValueError, match="no"), repeatable_kernels(full_float32=True):
        raise ValueError("no")
    assert (newer(), older()) == before
