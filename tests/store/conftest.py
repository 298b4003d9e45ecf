"""Stores to test on: an empty one, and a copy of the golden one, which holds every kind of group."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from histostore.store.arrays import ArraySpec
from histostore.store.codecs import RAW
from histostore.store.store import Store, create_store, open_store
from histostore.testing.azure import running_azure
from histostore.testing.s3 import running_s3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from histostore.store.groups import GroupWriter
    from histostore.store.manifest import Ref
    from histostore.testing.azure import AzureServer
    from histostore.testing.s3 import S3Server


RUNNING = {"s3": running_s3, "az": running_azure}


@pytest.fixture(scope="session", params=["s3", pytest.param("az", marks=pytest.mark.clouds)])
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server | AzureServer]:
    """Run a real server for the whole session: S3, and with ``-m clouds`` Azure's."""
    with RUNNING[request.param](tmp_path_factory.mktemp(request.param) / "server") as server:
        yield server


@pytest.fixture
def bucket(cloud: S3Server | AzureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an address of the test's own on that server, which the environment leads to."""
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HISTOSTORE_CACHE", str(tmp_path / "read-cache"))
    return f"{cloud.scheme}://{cloud.bucket}/{tmp_path.name.replace('[', '-').replace(']', '')}-{secrets.token_hex(3)}"


GOLDEN = Path(__file__).parents[2] / "stores" / "golden" / "v1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(tmp_path / "store")


@pytest.fixture
def golden(tmp_path: Path) -> Store:
    return open_store(shutil.copytree(GOLDEN, tmp_path / "golden"))


@pytest.fixture
def seal_meta() -> Callable[..., Ref]:
    """Seal a small group without arrays."""

    def seal(store: Store, slide: str = "S1", name: str = "meta", patient: str = "A", **engine: Any) -> Ref:
        fields = {"patient": patient}
        with store.begin(slide, "meta", name, spec={"fields": fields}, inputs={}, engine=engine) as writer:
            return writer.seal(rows=1, attrs={"fields": fields})

    return seal


VECTORS = ArraySpec(
    shape=(23, 6), dtype="float32", chunk_rows=2, shard_rows=4, pipeline=RAW, fill_value="NaN", dims=("tile", "feature")
)


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(7).normal(size=VECTORS.shape).astype(np.float32)


@pytest.fixture
def begin_vectors() -> Callable[..., GroupWriter]:
    """Begin an embeddings group of six shards."""

    def begin(store: Store, slide: str = "S1", name: str = "toy", **engine: Any) -> GroupWriter:
        writer = store.begin(slide, "embeddings", name, spec={"of": name}, inputs={}, engine=engine)
        if writer.sealed is None:
            writer.create("embedding", VECTORS)
        return writer

    return begin


@pytest.fixture
def seal_vectors(begin_vectors: Callable[..., GroupWriter], vectors: np.ndarray) -> Callable[..., Ref]:
    """Write and seal an embeddings group of six shards."""

    def seal(store: Store, slide: str = "S1", name: str = "toy", **engine: Any) -> Ref:
        with begin_vectors(store, slide, name, **engine) as writer:
            if writer.sealed is not None:
                return writer.sealed
            for shard in writer.pending("embedding"):
                start, stop = VECTORS.shard_range(shard)
                writer.write_rows("embedding", shard, vectors[start:stop])
            writer.put_array("status", np.zeros(len(vectors), np.uint8), dims=("tile",))
            return writer.seal(rows=len(vectors))

    return seal


@pytest.fixture
def python() -> Callable[..., subprocess.Popen[str]]:
    """Start a script in a process of its own."""

    def start(script: str, *args: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", script, *map(str, args)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start
