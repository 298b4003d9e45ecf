"""Shared by the backbone tests: tiles, and an environment in which nothing is downloaded or cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from histostore.testing.backbone_contract import stained_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE",
             "TRANSFORMERS_OFFLINE", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY")  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    # OpenMP's waiting threads make small batches many times slower on a machine that is shared
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiles() -> NDArray[np.uint8]:
    tiles = stained_tiles(8)
    tiles.flags.writeable = False
    return tiles


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, no token, and a hub address where nothing listens."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path
