"""Backbones: networks that turn tiles into embeddings, with the record that identifies them.

`load_backbone` takes a name and gives a `histostore.protocols.Backbone`; `known` and `availability` list what there
is. Importing this package imports neither torch nor numpy.
"""

from histostore.backbones.catalog import availability, known
from histostore.backbones.load import load_backbone, preflight
from histostore.backbones.records import ModelRecord

__all__ = ["ModelRecord", "availability", "known", "load_backbone", "preflight"]
