"""Shared by all tests: the real data, where it is to be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real sections; its README says what they are."""
    folder = os.environ.get("HISTOSTORE_REAL_DATA")
    if not folder:
        pytest.skip("HISTOSTORE_REAL_DATA is unset: no real slides here")
    return Path(folder)
