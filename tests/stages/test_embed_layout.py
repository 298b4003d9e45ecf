"""Rows per shard and chunk are no content: what is there in another layout is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from histostore.backbones import load_backbone
from histostore.errors import ConflictError
from histostore.specs import EmbeddingSpec
from histostore.stages.embed import embed
from histostore.store.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_rows_in_another_layout_are_there_unless_a_layout_or_replace_is_asked_for(
    embedded: Path, copy_of: Callable[[Path], Path]
) -> None:
    store, backbone = open_store(copy_of(embedded)), load_backbone("testing")  # in shards of 16 rows
    (found,) = embed(store, "A1", [backbone])
    assert found.done == "already there"
    assert found.refs == (store.slide("A1").find("embeddings"),)
    for spec in (EmbeddingSpec(dtype="float32"), EmbeddingSpec(shard_rows=32, chunk_rows=32)):
        with pytest.raises(ConflictError, match="another backbone, layout or other pixels"):
            embed(store, "A1", [backbone], spec=spec)
    (made,) = embed(store, "A1", [backbone], replace=True)
    assert made.refs != found.refs
