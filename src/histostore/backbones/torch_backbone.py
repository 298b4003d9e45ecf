"""A torch network as a backbone: tiles in, embeddings out, the same bytes for the same engine."""

from __future__ import annotations

import copy
import platform
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from histostore.backbones.device_queue import DeviceQueue
from histostore.backbones.networks import VERSIONS
from histostore.backbones.overlap import PART, Forwarded, PartPool, nothing
from histostore.cuda_flags import repeatable_kernels
from histostore.errors import SpecMismatchError, UsageError, near

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from histostore.backbones.overlap import Waiting
    from histostore.specs import BackboneSpec

type Precision = Literal["auto", "float32", "bfloat16", "float16"]

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchBackbone:
    """A network with its preprocessing, on one device.

    Parameters
    ----------
    network
        Takes ``(b, 3, input_px, input_px)`` float32 and gives ``(b, dim)``; with another pooling than ``model``
        it has timm's ``forward_features`` and ``num_prefix_tokens``. It is put in eval mode and moved.
    spec
        Its identity; `dim`, `input_px`, `mean`, `std`, `interpolation` and `pooling` are acted on.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    threads
        CPU threads; None takes torch's number. They work on parts of a batch side by side and change no bit.
    precision
        Of the forward pass: ``auto`` is bfloat16 on a CUDA device that has it, float16 on one that has not, and
        float32 elsewhere. Preprocessing and results are float32 always.
    rebuild
        How the same network is made without weights (`torch_loader.rebuilt` takes it); None where it cannot be.
    compile_with
        A backend of ``torch.compile`` for the forward pass, like ``inductor`` or ``cudagraphs``; part of the engine.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: BackboneSpec,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: Precision = "auto",
        rebuild: Mapping[str, Any] | None = None,
        compile_with: str | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            msg = f"threads is {threads}: give 1 or more"
            raise UsageError(msg)
        self.spec = spec
        self.device = _device(device)
        self.precision = _precision(precision, self.device)
        self.threads = threads or torch.get_num_threads()
        self.rebuild = rebuild
        self.compile_with = compile_with
        network = network.eval().requires_grad_(False)
        self._network: nn.Module = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = (1, 3, 1, 1)
        scale = 1.0 / (255.0 * np.asarray(spec.std, np.float64))
        shift = -np.asarray(spec.mean, np.float64) / np.asarray(spec.std, np.float64)
        self._scale = torch.tensor(scale, dtype=torch.float32, device=self.device).view(shape)
        self._shift = torch.tensor(shift, dtype=torch.float32, device=self.device).view(shape)
        self._whole = _compiled(self._prepared_forward, compile_with)
        self._work = self._worker()

    @property
    def network(self) -> nn.Module:
        """The network itself, on its device."""
        return self._network

    def engine(self) -> dict[str, str | int]:
        """Return what fixes the bits beside the spec."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        return {
            "backend": "torch",
            "device": self.device.type,
            "device_name": name,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "precision": self.precision,
            "part": PART if self.device.type == "cpu" else 0,
            "torch": str(torch.__version__),
            **({"compile": self.compile_with} if self.compile_with else {}),
            **VERSIONS,
        }

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed a batch: ``(b, px, px, 3)`` uint8 RGB to ``(b, dim)`` float32."""
        return self.begin(tiles)().rows

    def begin(self, tiles: NDArray[np.uint8]) -> Waiting:
        """Begin to embed a batch; see `histostore.backbones.overlap.Overlapping`."""
        check_tiles(tiles)
        if len(tiles) == 0:
            return nothing(self.spec.dim)
        waiting = self._work.begin(tiles)

        def wait() -> Forwarded:
            found = waiting()
            wanted = (len(tiles), self.spec.dim)
            if found.rows.shape != wanted:
                msg = f"backbone '{self.spec.name}' gave {found.rows.shape}, its record says {wanted}: correct its dim"
                raise SpecMismatchError(msg)
            return found._replace(rows=np.ascontiguousarray(found.rows))

        return wait

    def in_flight(self, batch: int) -> int:
        """Return how many batches keep the device busy."""
        return self._work.in_flight(batch)

    def copy(self) -> TorchBackbone:
        """Return the same backbone with weights of its own, for training; float16 (too narrow for that) is float32."""
        precision = cast("Precision", "float32" if self.precision == "float16" else self.precision)
        return TorchBackbone(
            copy.deepcopy(self._network), self.spec, device=str(self.device), threads=self.threads,
            precision=precision, rebuild=self.rebuild, compile_with=self.compile_with,
        )  # fmt: skip

    def _worker(self) -> PartPool | DeviceQueue:
        if self.device.type != "cpu":
            return DeviceQueue(self.device, self._features)
        return PartPool(self._part, self.threads, ready=partial(torch.set_num_threads, 1))

    def _part(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        return cast("NDArray[np.float32]", self._features(_tensor(tiles)).numpy())

    def _features(self, tiles: torch.Tensor) -> torch.Tensor:
        """Forward ``(b, px, px, 3)`` uint8 on the device as they are; ``(b, dim)`` float32 on it."""
        with torch.inference_mode(), self.flags():
            return self._whole(tiles)

    def _prepared_forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.forward(self.prepare(tiles.permute(0, 3, 1, 2).float())).float()

    def upload(self, tiles: NDArray[np.uint8]) -> torch.Tensor:
        """Return tiles ``(b, px, px, 3)`` as ``(b, 3, px, px)`` uint8 on the device."""
        # NHWC bytes seen as NCHW are channels_last already: nothing is moved
        return _tensor(tiles).to(self.device).permute(0, 3, 1, 2)

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the network sees of ``(b, 3, px, px)`` float32 RGB in 0-255: resized and normalised."""
        edge = self.spec.input_px
        if pixels.shape[-1] != edge:
            mode = self.spec.interpolation
            pixels = functional.interpolate(pixels, size=(edge, edge), mode=mode, antialias=True).clamp_(0, 255)
        pixels = pixels.mul(self._scale).add_(self._shift)
        return pixels.contiguous(memory_format=torch.channels_last)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the ``(b, dim)`` embedding of prepared pixels, with its gradient where the caller records one."""
        with torch.autocast(self.device.type, dtype=_AUTOCAST.get(self.precision), enabled=self.precision in _AUTOCAST):
            if self.spec.pooling == "model":
                return cast("torch.Tensor", self._network(pixels))
            network: Any = self._network
            tokens = network.forward_features(pixels)
        return _pooled(tokens.float(), self.spec.pooling, int(network.num_prefix_tokens))

    @contextmanager
    def flags(self) -> Iterator[None]:
        """Full float32 and repeatable kernels on CUDA, for the time of one call."""
        if self.device.type != "cuda":
            yield
            return
        with repeatable_kernels(full_float32=self.precision == "float32"):
            yield


def check_tiles(tiles: NDArray[np.uint8]) -> None:
    """Refuse anything but ``(b, px, px, 3)`` uint8."""
    good = tiles.dtype == np.uint8 and tiles.ndim == 4 and tiles.shape[3] == 3 and tiles.shape[1] == tiles.shape[2] > 0
    if not good:
        msg = f"tiles are {tiles.dtype} {tiles.shape}: give uint8 (b, px, px, 3)"
        raise UsageError(msg)


def _tensor(tiles: NDArray[np.uint8]) -> torch.Tensor:
    # torch warns of arrays it could write to; such a tile batch is a small copy
    return torch.from_numpy(tiles if tiles.flags.writeable else tiles.copy())


def _compiled[**P](function: Callable[P, torch.Tensor], backend: str | None) -> Callable[P, torch.Tensor]:
    if backend is None:
        return function
    offered = torch.compiler.list_backends(exclude_tags=())
    if backend not in offered:
        msg = f"torch.compile has no backend '{backend}'{near(backend, offered)}; there are {', '.join(offered)}"
        raise UsageError(msg)
    made: Callable[P, torch.Tensor] = torch.compile(function, backend=backend, dynamic=False)
    return made


def _pooled(tokens: torch.Tensor, pooling: str, prefix: int) -> torch.Tensor:
    """Pool ``(b, n, c)`` tokens: the class token is the first of `prefix`, the others are register tokens."""
    if pooling == "cls":
        return tokens[:, 0]
    mean = tokens[:, prefix:].mean(1)
    return mean if pooling == "mean" else torch.cat([tokens[:, 0], mean], dim=-1)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        msg = f"device is '{name}': use auto, cpu, cuda, cuda:N or mps"
        raise UsageError(msg) from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        msg = f"device '{name}' is not here: torch sees {count['cuda']} CUDA devices; use auto or cpu"
        raise UsageError(msg)
    return device


def _precision(wanted: Precision, device: torch.device) -> str:
    if wanted == "auto":
        if device.type != "cuda":
            return "float32"
        with torch.cuda.device(device):  # cards before Ampere only emulate bfloat16, slowly
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if wanted not in ("float32", "bfloat16", "float16"):
        msg = f"precision is '{wanted}': use auto, float32, bfloat16 or float16"
        raise UsageError(msg)
    if wanted != "float32" and device.type != "cuda":
        msg = f"precision {wanted} is for CUDA devices, this is {device.type}: use float32 or auto"
        raise UsageError(msg)
    return wanted


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch work on so many CPU threads inside."""
    # OpenMP keeps the number per calling thread, so it is set where the work is done and put back
    before = torch.get_num_threads()
    if before == number:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
