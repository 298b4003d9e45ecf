"""Do client and workers run the same libraries? Other ones may make other bytes, or not understand each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore._version import __version__
from histostore.errors import SpecMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LIBRARIES = (
    "numpy", "zarr", "torch", "torchvision", "timm", "imagecodecs", "tifffile", "openslide-bin", "scikit-learn",
    "openvino", "dask", "distributed",
)  # fmt: skip


def looker() -> Callable[[], dict[str, str]]:
    """Return a function that tells the versions where it runs.

    It is made here, so that it travels as code: a worker whose histostore is another one, or has none, can run it.
    """
    libraries = LIBRARIES

    def look() -> dict[str, str]:
        import importlib.metadata
        import platform

        def version(library: str) -> str:
            try:
                return importlib.metadata.version(library)
            except importlib.metadata.PackageNotFoundError:
                return "-"

        try:
            from histostore._version import __version__ as ours
        except ImportError:
            ours = "-"
        python = ".".join(platform.python_version_tuple()[:2])
        return {"histostore": ours, "python": python, **{name: version(name) for name in libraries}}

    return look


def own_versions() -> dict[str, str]:
    """Return the versions here."""
    return {**looker()(), "histostore": __version__}


def require_equal(theirs: Mapping[str, str], ours: Mapping[str, str], *, worker: str) -> None:
    """Refuse a worker with other versions.

    Raises
    ------
    SpecMismatchError
        They differ; each is named with both versions.
    """
    differ = [f"{name} {theirs.get(name, '-')} (here {v})" for name, v in ours.items() if theirs.get(name, "-") != v]
    if differ:
        raise SpecMismatchError(
            f"worker {worker} has {', '.join(differ)}; start the workers from the same environment as this command"
        )
