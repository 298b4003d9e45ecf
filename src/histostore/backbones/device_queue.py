"""Batches to a device and rows back, while the device computes: pinned memory and a stream for the copies on CUDA."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

import torch

from histostore.backbones.overlap import BatchTooLargeError, Forwarded

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from histostore.backbones.overlap import Waiting

DEPTH = 2
"""Batches on a CUDA device at a time: one is computed while the next is copied."""


class DeviceQueue:
    """Forwards whole batches on one device, in order.

    On CUDA a batch goes through pinned memory (torch keeps and reuses it) and is copied by a stream of its own, so
    `begin` returns while the device is still at it. Elsewhere `begin` returns when the rows are there.

    Parameters
    ----------
    device
        Where the network is.
    forward
        Takes ``(b, px, px, 3)`` uint8 on the device and gives ``(b, dim)`` float32 there.
    """

    def __init__(self, device: torch.device, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._device = device
        self._forward = forward
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def begin(self, tiles: NDArray[np.uint8]) -> Waiting:
        """Begin to embed one tile or more.

        Raises
        ------
        BatchTooLargeError
            They do not fit into the device's memory.
        """
        # torch warns of arrays it could write to; such a tile batch is a small copy
        host = torch.from_numpy(tiles if tiles.flags.writeable else tiles.copy())
        try:
            return self._at_once(host) if self._copies is None else self._on_cuda(host, self._copies)
        except torch.OutOfMemoryError:
            msg = f"a batch of {len(tiles)} tiles of {tiles.shape[1]} px does not fit into {self._device}: give fewer"
            raise BatchTooLargeError(msg) from None

    def in_flight(self, batch: int) -> int:
        """Return how many batches keep the device busy, whatever their size."""
        del batch
        return 1 if self._copies is None else DEPTH

    def _at_once(self, host: torch.Tensor) -> Waiting:
        begun = time.perf_counter()
        rows = self._forward(host.to(self._device)).cpu().numpy()
        done = Forwarded(cast("NDArray[np.float32]", rows), time.perf_counter() - begun)
        return lambda: done

    def _on_cuda(self, host: torch.Tensor, copies: torch.cuda.Stream) -> Waiting:
        pinned = torch.empty(host.shape, dtype=host.dtype, pin_memory=True).copy_(host)
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(copies):
            pixels = pinned.to(self._device, non_blocking=True)
        compute.wait_stream(copies)
        pixels.record_stream(compute)  # its memory is not given away before the forward pass is done with it
        begun, computed, fetched = (torch.cuda.Event(enable_timing=True) for _ in range(3))  # type: ignore[no-untyped-call]
        with torch.cuda.stream(compute):
            begun.record(compute)
            found = self._forward(pixels)
            computed.record(compute)
            rows = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            rows.copy_(found, non_blocking=True)
            fetched.record(compute)

        def wait() -> Forwarded:
            fetched.synchronize()
            return Forwarded(rows.numpy().copy(), begun.elapsed_time(computed) / 1e3)

        return wait
