"""histostore: a streaming feature store and embedding database for spatial histology.

>>> import histostore as hs
>>> store = hs.open("stores/her2st")                                      # doctest: +SKIP
>>> hs.pp.tile(store, "C2", hs.TileSpec.at_spots(px=224))                 # doctest: +SKIP
>>> hs.tl.embed(store, "efficientnet_lite0")                              # doctest: +SKIP
>>> adata = store.view(backbone="efficientnet_lite0").to_adata()          # doctest: +SKIP

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from histostore._version import __version__

if TYPE_CHECKING:
    from histostore import fetch, get, heads, io, pl, pp, recipes, report, serve, tl
    from histostore.errors import HistostoreError
    from histostore.face import Store, create, open
    from histostore.head_specs import (
        FeatureSpec,
        GroupKFold,
        LabelSpec,
        LeaveOneOut,
        PanelSpec,
        SpatialBlocks,
        SplitSpec,
        StratifiedKFold,
    )
    from histostore.health import doctor
    from histostore.specs import EmbeddingSpec, MaskSpec, PixelSpec, TileSpec

_HOMES = {
    "Store": "face",
    "create": "face",
    "doctor": "health",
    "open": "face",
    "HistostoreError": "errors",
    "EmbeddingSpec": "specs",
    "FeatureSpec": "head_specs",
    "GroupKFold": "head_specs",
    "LeaveOneOut": "head_specs",
    "MaskSpec": "specs",
    "LabelSpec": "head_specs",
    "SpatialBlocks": "head_specs",
    "StratifiedKFold": "head_specs",
    "PanelSpec": "head_specs",
    "PixelSpec": "specs",
    "SplitSpec": "head_specs",
    "TileSpec": "specs",
}
_MODULES = ("fetch", "get", "heads", "io", "pl", "pp", "recipes", "report", "serve", "tl")

__all__ = [
    "EmbeddingSpec",
    "FeatureSpec",
    "GroupKFold",
    "HistostoreError",
    "LabelSpec",
    "LeaveOneOut",
    "MaskSpec",
    "PanelSpec",
    "PixelSpec",
    "SpatialBlocks",
    "SplitSpec",
    "Store",
    "StratifiedKFold",
    "TileSpec",
    "__version__",
    "create",
    "doctor",
    "fetch",
    "get",
    "heads",
    "io",
    "open",
    "pl",
    "pp",
    "recipes",
    "report",
    "serve",
    "tl",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"histostore.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"histostore.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'histostore' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
