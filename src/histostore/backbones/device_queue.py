"""Batches to a device and rows back, while the device computes: pinned memory and a stream for the copies on CUDA."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from histostore.backbones.overlap import BatchTooLargeError, Forwarded

if TYPE_CHECKING:
    from collections.abc import Callable

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
        try:
            return self._at_once(tiles) if self._copies is None else self._on_cuda(tiles, self._copies)
        except torch.OutOfMemoryError:
            pass  # raised below: here the error still holds on to the tensors of what was tried
        if self._copies is not None:
            torch.cuda.empty_cache()  # for others on this device, like FAISS
        msg = f"a batch of {len(tiles)} tiles of {tiles.shape[1]} px does not fit into {self._device}: give fewer"
        raise BatchTooLargeError(msg)

    def in_flight(self, batch: int) -> int:
        """Return how many batches keep the device busy, whatever their size."""
        del batch
        return 1 if self._copies is None else DEPTH

    def _at_once(self, tiles: NDArray[np.uint8]) -> Waiting:
        begun = time.perf_counter()
        # torch warns of arrays it could write to; such a tile batch is a small copy
        host = torch.from_numpy(tiles if tiles.flags.writeable else tiles.copy())
        rows = self._forward(host.to(self._device)).cpu().numpy()
        done = Forwarded(cast("NDArray[np.float32]", rows), time.perf_counter() - begun)
        return lambda: done

    def _on_cuda(self, tiles: NDArray[np.uint8], copies: torch.cuda.Stream) -> Waiting:
        # pinned memory and events belong to the current device, which need not be ours
        with torch.cuda.device(self._device):
            pinned = torch.empty(tiles.shape, dtype=torch.uint8, pin_memory=True)
            # by numpy, in this thread: torch's own would spin on the cores that decode the next tiles
            np.copyto(pinned.numpy(), tiles)
            compute = torch.cuda.current_stream(self._device)
            with torch.cuda.stream(copies):
                pixels = pinned.to(self._device, non_blocking=True)
            compute.wait_stream(copies)
            pixels.record_stream(compute)  # its memory is not given away before the forward pass is done with it
            begun, computed, fetched = (_event() for _ in range(3))
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


def _event() -> torch.cuda.Event:
    """Return an event that is waited for asleep: spinning would take a core from those who decode."""
    return torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
