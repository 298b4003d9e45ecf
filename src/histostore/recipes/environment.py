"""With what something was computed: versions and platform. No host, no user, no paths, no environment variables."""

from __future__ import annotations

import functools
import os
import platform
import sys
from importlib import metadata
from typing import Any

from histostore._version import __version__

LIBRARIES = (
    "numpy", "scipy", "pandas", "scikit-learn", "torch", "torchvision", "timm", "zarr", "anndata", "scanpy",
    "safetensors", "imagecodecs", "tifffile", "openslide-python", "openslide-bin", "faiss-cpu", "faiss-gpu",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Return what may touch the bits of a result: Python, platform, library versions, threads, accelerator."""
    return {
        "histostore": __version__,
        "python": platform.python_version(),
        "platform": {"system": platform.system(), "machine": platform.machine(), "libc": " ".join(platform.libc_ver())},
        "cpus": os.cpu_count(),
        "libraries": _libraries(),
        "torch": _torch(),
    }


@functools.cache
def _libraries() -> dict[str, str]:
    found = {name: _version(name) for name in LIBRARIES}
    return {name: version for name, version in found.items() if version is not None}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> dict[str, Any] | None:
    """Return threads and accelerator, where torch was imported at all: asking must not import it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"threads": torch.get_num_threads(), "cuda_device": gpu}
