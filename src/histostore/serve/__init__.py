"""A small local HTTP API over one store: search, tile images, overviews of slides, health; ids, never paths.

`operations` is the table that requests are checked by and that the OpenAPI document is made of; `catalog`, `pictures`
and `queries` answer from one snapshot of the store each; `guard`, `lanes` and `limits` bound what a client may do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from histostore.errors import MissingDependencyError

if TYPE_CHECKING:
    from histostore.serve.limits import Limits
    from histostore.serve.server import Server

__all__ = ["Limits", "Server"]

_HOME = {"Limits": "limits", "Server": "server"}


def __getattr__(name: str) -> Any:
    # starlette and uvicorn are for those who serve
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise MissingDependencyError("serve needs starlette and uvicorn: pip install 'histostore[serve]'") from None
