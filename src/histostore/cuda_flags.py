"""Kernels that repeat, and float32 that is float32: torch's settings for the time of one call."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def repeatable_kernels(*, full_float32: bool) -> Iterator[None]:
    """Take the same cuDNN kernels every time; whatever the caller had set is put back.

    Torch has two ways to set TF32 and refuses to tell the older one once the newer was used for a part. The newer is
    asked, and the older is set, which sets both: what runs inside sees settings that agree.

    Parameters
    ----------
    full_float32
        Neither convolutions nor matrix products round to TF32; else convolutions may, and products do as the caller
        chose.
    """
    cudnn: Any = torch.backends.cudnn
    switches = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    parts = _tf32_of_parts()
    products = _product_precision()
    convolutions = parts[0][1] == "tf32" if parts else bool(cudnn.allow_tf32)
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = True, False, True
    cudnn.allow_tf32 = not full_float32
    if full_float32:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = switches
        cudnn.allow_tf32 = convolutions
        if full_float32 and products is not None:
            torch.set_float32_matmul_precision(products)
        for part, precision in parts:
            part.fp32_precision = precision


def _tf32_of_parts() -> list[tuple[Any, str]]:
    """Return the parts that the newer way sets one by one, convolutions first, with their precision."""
    cudnn: Any = torch.backends.cudnn
    if not hasattr(cudnn, "conv"):  # torch before 2.9
        return []
    return [(part, part.fp32_precision) for part in (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)]


def _product_precision() -> str | None:
    """Return the older setting of matrix products; None where the newer one has overruled it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
