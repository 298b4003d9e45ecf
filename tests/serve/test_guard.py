"""Who may ask: this machine by its own names, pages of no other origin, others with the token alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from histostore.errors import UsageError
from histostore.serve.guard import host_name
from histostore.serve.server import Server
from histostore.store.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = "a-token-of-some-length"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.0.7", "", "a:b:c"]
)
def test_a_host_header_that_is_not_ours_is_refused(api: Any, host: str) -> None:
    found = api.get("/v1/health", Host=host)
    assert (found.status, found.error["kind"]) == (421, "host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:80", "[::1]"])
def test_this_machines_names_are_taken(api: Any, host: str) -> None:
    assert api.get("/v1/health", Host=host).status == 200


@pytest.mark.parametrize(
    ("host", "name"), [("A.b:80", "a.b"), ("[::1]:8", "::1"), ("::1", ""), ("a:x", ""), ("a:", "a"), ("", "")]
)
def test_the_name_of_a_host_header(host: str, name: str) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://["])
def test_pages_of_other_origins_are_refused_and_none_is_allowed_anything(api: Any, origin: str) -> None:
    found = api.get("/v1/health", Origin=origin)
    assert (found.status, found.error["kind"]) == (403, "origin")
    assert api.get("/v1/health", Origin=api.place.address).status == 200
    asked = api.ask("OPTIONS", "/v1/search", headers={"Access-Control-Request-Method": "POST"})
    assert asked.status == 405
    assert not [h for h in {**found.headers, **asked.headers} if h.startswith("access-control")]


def test_every_answer_keeps_browsers_from_guessing_and_embedding(api: Any) -> None:
    for path in ("/v1/health", "/nowhere", "/v1/slides/A1/thumbnail"):
        headers = api.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers


def test_another_host_demands_a_new_token_of_every_request(
    embedded: Path, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HISTOSTORE_TOKEN", raising=False)
    with serve(embedded, host="0.0.0.0") as wide:
        token = wide.place.token
        assert wide.place.token_is_new
        assert len(token) >= 40
        for path in ("/v1/health", "/openapi.json", "/nowhere"):
            found = wide.get(path)
            assert (found.status, found.headers["www-authenticate"]) == (401, "Bearer")
        for wrong in (f"Bearer {token}x", f"Bearer {token[:-1]}", token, f"Basic {token}", "Bearer é", "Bearer "):
            assert wide.get("/v1/health", Authorization=wrong).status == 401
        assert wide.get("/v1/health", Authorization=f"Bearer {token}").status == 200
        assert wide.get("/v1/health", Authorization=f"Bearer {token}", Host="evil.example").status == 421
        assert "securitySchemes" in wide.get("/openapi.json", Authorization=f"Bearer {token}").json()["components"]


def test_a_token_of_the_environment_is_demanded_on_this_machine_too(
    embedded: Path, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTOSTORE_TOKEN", SECRET)
    with serve(embedded, allow_hosts=["Slides.Lab"]) as ours:
        assert (ours.place.token, ours.place.token_is_new) == (SECRET, False)
        assert ours.get("/v1/health").status == 401
        assert ours.get("/v1/health", Authorization=f"Bearer {SECRET}", Host="slides.lab:80").status == 200


@pytest.mark.parametrize("token", ["short", "x" * 20 + " y", "é" * 20])
def test_a_poor_token_is_refused(embedded: Path, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HISTOSTORE_TOKEN", token)
    with pytest.raises(UsageError, match="16 or more"):
        Server(open_store(embedded))


def test_a_port_that_is_taken_is_said(api: Any, embedded: Path) -> None:
    port = int(api.place.address.rpartition(":")[2])
    with pytest.raises(UsageError, match=f"port {port}"):
        Server(open_store(embedded), port=port)


def test_a_host_that_is_not_there_is_said(embedded: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        Server(open_store(embedded), host="192.0.2.1")
