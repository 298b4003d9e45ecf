"""Which FAISS is loaded, and whether it sees a GPU."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from histostore.errors import MissingDependencyError, UsageError
from histostore.index.spec import check_device

if TYPE_CHECKING:
    from histostore.index.spec import Device

PACKAGES = (
    "faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cu13", "faiss-gpu-cuvs",
    "faiss-gpu-cu12-cuvs", "faiss-gpu-cu13-cuvs", "faiss-cuda",
)  # fmt: skip
"""What installs a folder ``faiss/``. Two of them overwrite each other's files, and pip does not notice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaissFound:
    """What `which_faiss` found."""

    packages: tuple[tuple[str, str], ...]
    """Installed packages that own the folder ``faiss/``: (name, version)."""
    version: str | None
    """Of the module that loads; None where none does."""
    gpus: int
    options: str
    """Instruction sets and the like, as FAISS was compiled."""
    problem: str | None
    """What is wrong, and what to do."""


def which_faiss() -> FaissFound:
    """Tell which FAISS is loaded; loads it."""
    packages = tuple((name, v) for name in PACKAGES if (v := _version(name)) is not None)
    problem = None
    try:
        module = importlib.import_module("faiss")
    except ImportError as error:
        problem = f"faiss does not load ({error}); pip install 'histostore[cpu]' or 'histostore[gpu]'"
        return FaissFound(packages=packages, version=None, gpus=0, options="", problem=_both(packages) or problem)
    if not hasattr(module, "IndexFlat"):  # the folder outlives its package when one of two is removed
        problem = "the folder faiss/ is empty or broken: uninstall every faiss package, then install one"
        return FaissFound(packages=packages, version=None, gpus=0, options="", problem=problem)
    gpus = int(module.get_num_gpus()) if hasattr(module, "StandardGpuResources") else 0
    options = str(module.get_compile_options()).strip()
    return FaissFound(
        packages=packages, version=str(module.__version__), gpus=gpus, options=options, problem=_both(packages)
    )


@functools.cache
def faiss_module() -> Any:
    """Return the FAISS module; what is installed is looked at once.

    Raises
    ------
    MissingDependencyError
        None is installed, or two packages share its folder.
    """
    try:
        module = importlib.import_module("faiss")
    except ImportError as error:
        msg = "this index needs FAISS: pip install 'histostore[cpu]', or 'histostore[gpu]' beside a GPU"
        raise MissingDependencyError(msg) from error
    problem = _both(tuple((name, v) for name in PACKAGES if (v := _version(name)) is not None))
    if problem:
        raise MissingDependencyError(problem)
    return module


def uses_gpu(device: Device) -> bool:
    """Return whether FAISS shall work on a GPU: with ``auto`` where it can.

    Raises
    ------
    UsageError
        ``cuda``, and this FAISS has no GPU code or sees no GPU.
    """
    check_device(device)
    if device == "cpu":
        return False
    module = faiss_module()
    gpus = int(module.get_num_gpus()) if hasattr(module, "StandardGpuResources") else 0
    if device == "cuda" and not gpus:
        what = "sees no GPU" if hasattr(module, "StandardGpuResources") else "is built without GPU code"
        raise UsageError(f"device is 'cuda' and FAISS {module.__version__} {what}; use 'cpu', or install faiss-gpu")
    return gpus > 0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _both(packages: tuple[tuple[str, str], ...]) -> str | None:
    if len(packages) < 2:
        return None
    names = " and ".join(name for name, _ in packages)
    return f"{names} are both installed and share one folder: uninstall both, install one"
