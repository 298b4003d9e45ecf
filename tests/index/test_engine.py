"""Which FAISS is loaded, and what is said when two are installed."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

import faiss
import pytest

from histostore.errors import MissingDependencyError, UsageError
from histostore.index.engine import faiss_module, uses_gpu, which_faiss

if TYPE_CHECKING:
    from pathlib import Path


def test_the_loaded_faiss_is_told() -> None:
    found = which_faiss()
    assert found.version == faiss.__version__
    assert found.problem is None
    assert len(found.packages) == 1
    assert faiss_module() is faiss


def test_two_packages_are_a_problem_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have = {name for name, _ in which_faiss().packages}
    other = "faiss-gpu" if "faiss-cpu" in have else "faiss-cpu"
    record = tmp_path / f"{other.replace('-', '_')}-1.14.3.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {other}\nVersion: 1.14.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.metadata.version(other) == "1.14.3"
    assert "are both installed" in str(which_faiss().problem)
    faiss_module.cache_clear()
    with pytest.raises(MissingDependencyError, match="uninstall both, install one"):
        faiss_module()


def test_cuda_is_refused_where_faiss_has_none() -> None:
    assert not uses_gpu("cpu")
    if which_faiss().gpus:
        assert uses_gpu("cuda")
        return
    assert not uses_gpu("auto")
    with pytest.raises(UsageError, match="device is 'cuda' and FAISS"):
        uses_gpu("cuda")
