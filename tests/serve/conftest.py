"""A real server on a free port of this machine, and a plain client."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from histostore.serve.server import Server
from histostore.store.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from histostore.serve.server import Place


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    data: bytes

    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> dict[str, str]:
        return self.json()["error"]


@dataclass
class Client:
    place: Place

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """Send one request over a connection of its own; `body` as JSON unless it is bytes."""
        given = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            given.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection(urlsplit(self.place.address).netloc, timeout=60)
        try:
            connection.request(method, path, body, given)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def search(self, **asked: Any) -> Reply:
        return self.ask("POST", "/v1/search", asked)


@contextlib.contextmanager
def running(store: Path, **options: Any) -> Iterator[Client]:
    server = Server(open_store(store), **options)
    up = threading.Event()
    thread = threading.Thread(target=server.run, args=(lambda _: up.set(),), daemon=True)
    thread.start()
    try:
        assert up.wait(30), "the server did not come up"
        yield Client(server.place)
    finally:
        server.stop()
        thread.join(30)
    assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="session")
def serve() -> Callable[..., contextlib.AbstractContextManager[Client]]:
    """Serve a store while the block runs. Options as in `Server`."""
    return running


@pytest.fixture(scope="session")
def api(embedded: Path) -> Iterator[Client]:
    """Serve the embedded store to all tests."""
    with running(embedded) as client:
        yield client


@pytest.fixture(scope="session")
def spot(api: Client) -> dict[str, str]:
    """Return a query by a spot that is there."""
    dim = api.get("/v1/slides/A1").json()["tiles"][0]["embeddings"][0]["dim"]
    found = api.search(query={"vector": [1.0] * dim}, slides=["A1"], k=1).json()["hits"][0]
    return {"slide": "A1", "spot": found["spot"]}
