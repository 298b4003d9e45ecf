"""histostore: a streaming feature store and embedding database for spatial histology."""

from histostore._version import __version__

__all__ = ["__version__"]
