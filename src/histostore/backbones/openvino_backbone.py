"""A torch network run by OpenVINO on the CPU: several times as fast for small networks, equal up to rounding."""

from __future__ import annotations

import logging
import platform
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
import torch
from openvino.frontend import FrontEndManager, OpConversionFailure
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
from torch import nn
from torch.nn import functional

from histostore.backbones.difference import EngineDifference, compare_engines, probe_tiles
from histostore.backbones.engines import converted_spec
from histostore.backbones.overlap import PART, PartPool, nothing
from histostore.backbones.torch_backbone import TorchBackbone, check_tiles
from histostore.errors import SpecMismatchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from histostore.backbones.overlap import Waiting

LEAST_COSINE = 0.9999
"""A converted network whose rows are further from torch's than this is refused."""


class OpenVinoBackbone:
    """A `TorchBackbone` converted with its preprocessing: uint8 tiles in, float32 embeddings out, all in one graph.

    Inference is in float32, in parts of 16 tiles on one thread each, so that bits depend neither on the batch nor on
    the number of threads. The spec is the torch backbone's with a name and a digest of its own; the engine says which
    library made the rows, and how far they are from torch's.

    Parameters
    ----------
    backbone
        On the CPU, in float32. It keeps running what is not converted: `network`, `copy`.
    threads
        Parts at a time; None takes torch's number.

    Raises
    ------
    UsageError
        The network cannot be converted; the text says at which operation.
    SpecMismatchError
        The converted network gives other rows than torch.
    """

    def __init__(self, backbone: TorchBackbone, *, threads: int | None = None) -> None:
        self.spec = converted_spec(backbone.spec)
        self.threads = threads or backbone.threads
        self.torch = backbone
        self._core = openvino.Core()
        self._compiled: dict[int, Any] = {}
        self._compiling = threading.Lock()
        self._requests = threading.local()
        self._pool = PartPool(self._part, self.threads)
        self.difference = self._checked()

    def engine(self) -> dict[str, str | int]:
        """Return what fixes the bits beside the spec."""
        return {
            "backend": "openvino",
            "device": "cpu",
            "device_name": platform.machine(),
            "cpu": str(self._core.get_property("CPU", "FULL_DEVICE_NAME")),
            "precision": "float32",
            "part": PART,
            "threads_per_part": 1,
            "openvino": str(openvino.__version__),
            "torch": str(torch.__version__),
            "off_torch": f"{self.difference.relative:.0e}",
        }

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed a batch: ``(b, px, px, 3)`` uint8 RGB to ``(b, dim)`` float32."""
        return self.begin(tiles)().rows

    def begin(self, tiles: NDArray[np.uint8]) -> Waiting:
        """Begin to embed a batch; see `histostore.backbones.overlap.Overlapping`."""
        check_tiles(tiles)
        if len(tiles) == 0:
            return nothing(self.spec.dim)
        return self._pool.begin(tiles)

    def in_flight(self, batch: int) -> int:
        """Return how many batches keep every thread busy."""
        return self._pool.in_flight(batch)

    def _part(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        px = tiles.shape[1]
        own: dict[int, Any] = self._requests.__dict__.setdefault("by_px", {})  # of this thread
        if px not in own:
            own[px] = self._network(px).create_infer_request()
        found = own[px].infer({0: np.ascontiguousarray(tiles)}, share_inputs=True)
        return np.array(found[0], dtype=np.float32)

    def _network(self, px: int) -> Any:
        """Return the network for tiles of that edge, converted and compiled once."""
        with self._compiling:
            if px not in self._compiled:
                model = converted(self.torch, px)
                options = {
                    "INFERENCE_PRECISION_HINT": "f32",
                    "NUM_STREAMS": self.threads,
                    "INFERENCE_NUM_THREADS": self.threads,
                    "ENABLE_CPU_PINNING": False,  # the thread that decodes needs a core too
                }
                self._compiled[px] = self._core.compile_model(model, "CPU", options)
            return self._compiled[px]

    def _checked(self) -> EngineDifference:
        found = compare_engines(self.torch, self, probe_tiles(PART, self.spec.input_px))
        if not found.cosine_min >= LEAST_COSINE:
            msg = (
                f"backbone '{self.torch.spec.name}': OpenVINO {openvino.__version__} gives other rows than torch "
                f"({found.text()}); use engine torch"
            )
            raise SpecMismatchError(msg)
        return found


class _Graph(nn.Module):
    """Preprocessing and network as one module: ``(16, px, px, 3)`` uint8 to ``(16, dim)`` float32."""

    def __init__(self, backbone: TorchBackbone, px: int) -> None:
        super().__init__()
        self.network = backbone.network
        self._backbone = backbone
        edge = backbone.spec.input_px
        # as two matrix products: OpenVINO has no operation for torch's resize with antialiasing
        self.resize = None if px == edge else _resize_matrix(px, edge, backbone.spec.interpolation)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        pixels = tiles.permute(0, 3, 1, 2).float()
        if self.resize is not None:
            pixels = (self.resize @ pixels @ self.resize.T).clamp(0, 255)
        return self._backbone.forward(self._backbone.prepare(pixels)).float()


def _resize_matrix(px: int, edge: int, mode: str) -> torch.Tensor:
    """Return the ``(edge, px)`` matrix that resizes a column of pixels as torch does."""
    unit = torch.eye(px)[None, None]
    return functional.interpolate(unit, size=(edge, px), mode=mode, antialias=True)[0, 0]


def converted(backbone: TorchBackbone, px: int) -> Any:
    """Return the OpenVINO model of a backbone for parts of 16 tiles with that edge.

    Raises
    ------
    UsageError
        torch cannot export the network, or OpenVINO lacks one of its operations.
    """
    tiles = torch.zeros((PART, px, px, 3), dtype=torch.uint8)
    where = f"backbone '{backbone.spec.name}' cannot be converted for engine openvino"
    try:
        with torch.no_grad():
            program = torch.export.export(_Graph(backbone, px).eval(), (tiles,))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, TypeError, ValueError) as error:
        msg = f"{where}: torch.export says {_first_line(error)}; use engine torch"
        raise UsageError(msg) from error
    # the front end itself, since openvino.convert_model would report every use to its maker
    front = FrontEndManager().load_by_framework("pytorch")
    try:
        with _silent_root():
            decoder = TorchFXPythonDecoder.from_exported_program(program)
        model = front.convert(front.load(decoder))
    except OpConversionFailure as error:
        lacking = str(error).partition("operations:")[2].strip() or _first_line(error)
        msg = f"{where}: OpenVINO {openvino.__version__} lacks {lacking}; use engine torch"
        raise UsageError(msg) from None
    model.reshape([PART, px, px, 3])
    return model


@contextmanager
def _silent_root() -> Iterator[None]:
    """Keep OpenVINO's messages about operations that it does not need out of the program's log."""
    root, before, handler = logging.getLogger(), logging.root.manager.disable, logging.NullHandler()
    root.addHandler(handler)  # without one, logging would set up handlers of its own
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
