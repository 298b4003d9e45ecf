"""Whether this machine is fit for work: its libraries, FAISS and device, and whether a place can hold a store."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from histostore._version import __version__
from histostore.index.engine import which_faiss
from histostore.store.catalog import look, worth_it
from histostore.store.files import LocalFiles
from histostore.store.object_address import is_object_address
from histostore.store.store import HEADER, open_store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.store.store import Store

LIBRARIES = (
    "numpy", "zarr", "anndata", "scanpy", "torch", "torchvision", "timm", "openslide-python", "openslide-bin",
    "tifffile", "imagecodecs", "scikit-learn", "faiss-cpu", "faiss-gpu", "obstore",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What was found of a machine, and what is wrong with it; as text, one line each."""

    found: Mapping[str, str]
    """Versions by library (``-`` where it is not installed), ``faiss``, ``device``; of a place ``publish``, how its
    files are made safely, and of a store ``store`` and ``catalog``."""
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{key:<18} {value}" for key, value in self.found.items()]
        return "\n".join([*lines, *(f"problem: {p}" for p in self.problems)])


def doctor(place: str | Path | None = None) -> Health:
    """Check this machine, and a store's file system.

    Parameters
    ----------
    place
        A store, a folder to put one in, or ``s3://bucket/prefix`` and its like. A damaged catalog of a store is made
        anew by looking at it.

    Raises
    ------
    StorageError
        The place cannot be written, or cannot publish safely.
    NotFoundError
        There is no store at an address of a bucket.
    """
    found: dict[str, str] = {"histostore": __version__, "python": platform.python_version()}
    found |= {library: _version(library) for library in LIBRARIES}
    faiss = which_faiss()
    found["faiss"] = f"{faiss.version or '-'} ({faiss.options or 'not loaded'}; {faiss.gpus} GPUs)"
    found["device"] = _device()
    if place is not None:
        found |= _place(place)
    return Health(found=found, problems=(faiss.problem,) if faiss.problem is not None else ())


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "-"


def _device() -> str:
    try:
        import torch  # seconds, and it may be absent
    except ImportError:
        return "torch is not installed"
    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name(0)}"
    return f"cpu, {torch.get_num_threads()} threads"


def _place(place: str | Path) -> dict[str, str]:
    if is_object_address(place):
        return {**_store_health(open_store(place)), "publish": "put if absent"}
    folder, about = Path(place), {}
    if (folder / HEADER).exists():
        about = _store_health(open_store(folder))
    elif not folder.exists():
        folder = folder.parent
    return {**about, "publish": LocalFiles(folder).probe_publish()}


def _store_health(store: Store) -> dict[str, str]:
    """Say what a store is and how its catalog is."""
    catalog = look(store, keep=worth_it(store))
    kept = f"{len(catalog.owners):,} owners, {catalog.refreshed:,} read again" if catalog.kept else "none kept"
    if catalog.problem:
        kept += f"; {catalog.problem}"
    about = f"'{store.name}', format {store.format}, {len(catalog.slides())} slides"
    return {"store": about, "catalog": kept}
