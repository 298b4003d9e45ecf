"""Every wrong request ends in one line of JSON with a 4xx, and names no place on the machine."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from histostore.serve.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VECTOR = {"vector": [1.0] * 8}


def png(*size: int, mode: str = "RGB") -> str:
    out = io.BytesIO()
    Image.fromarray(np.zeros((*size, 3), dtype=np.uint8)).convert(mode).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/v1/slides/A2", 404, "no slide 'A2'; there are A1, B1"),
        ("/v1/slides/..%2f..%2fetc", 404, "nothing at this address"),
        ("/v1/slides/%2e%2e", 400, "invalid slide id"),
        ("/v1/slides/@heads", 400, "invalid slide id"),
        ("/v1/slides/A1%00", 400, "invalid slide id"),
        ("/v1/slides/" + "a" * 5_000, 400, "5000 characters"),
        ("/v1/slides?limit=0", 400, "limit is 0, not in 1-1000"),
        ("/v1/slides?limit=1e3", 400, "limit is '1e3', not a whole number"),
        ("/v1/slides?offset=-1", 400, "offset is -1"),
        ("/v1/slides?limit=1&limit=2", 400, "given twice"),
        ("/v1/slides?limits=1", 400, "did you mean 'limit'"),
        ("/v1/slides/A1/thumbnail?max_px=100000", 400, "max_px is 100000"),
        ("/v1/slides/A1/thumbnail?format=gif", 400, "not one of png, jpeg"),
        ("/v1/slides/A1/tiles/nope/x/image", 404, "has no tiles 'nope'"),
        ("/v1/slides/A1/tiles/spots-96/nope/image", 404, ""),
        ("/v1/slides/A1/tiles/..%2f..%2fSTORE.json/x/image", 404, ""),
        ("/v2/health", 404, "/openapi.json"),
        ("/", 404, "/openapi.json"),
    ],
)
def test_a_wrong_address_is_told_in_one_line(api: Any, embedded: Path, path: str, status: int, told: str) -> None:
    found = api.get(path)
    assert (found.status, found.headers["content-type"]) == (status, "application/json")
    assert told in found.error["message"]
    assert "\n" not in found.error["message"]
    assert str(embedded.parent) not in found.data.decode()


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({}, 400, "body needs query"),
        ({"query": {}}, 400, "give one of slide with spot or slide with spots or slide with box"),
        ({"query": {"slide": "A1"}}, 400, "give one of slide with spot"),
        ({"query": {"slide": "A1", "spot": "a", "box": [0, 0, 1, 1]}}, 400, "give one of slide with spot"),
        ({"query": {"slide": "A1", "spot": "a", "vector": [1]}}, 400, "give one of slide with spot"),
        ({"query": {"slide": "A1", "box": [9, 9, 1, 1]}}, 400, "x0 < x1"),
        ({"query": {"slide": "A1", "box": [0, 0, 1]}}, 400, "3 values"),
        ({"query": {"slide": "A1", "box": [-9, -9, -1, -1]}}, 404, "has its centre in the region"),
        ({"query": {"slide": "A1", "polygon": [[0, 0], [9, 9], [9, 0], [0, 9]]}}, 400, "cross itself"),
        ({"query": {"slide": "A1", "spots": []}}, 400, "0 values"),
        ({"query": {"vectors": [[1, 2], [1]]}}, 400, "differ in length"),
        ({"query": VECTOR, "diversity": 1.5}, 400, "diversity is 1.5"),
        ({"query": VECTOR, "at_most": 0}, 400, "at_most is 0"),
        ({"query": VECTOR, "expressing": "EPCAM"}, 400, "expressing is 'EPCAM', not a list or an object"),
        ({"query": VECTOR, "expressing": {}}, 400, "expressing has 0 names"),
        ({"query": VECTOR, "expressing": {"EPCAM": "2"}}, 400, "expressing.EPCAM is '2', not a number"),
        ({"query": VECTOR, "expressing": {"g" * 201: 2}}, 400, "a name in expressing has 201 characters"),
        ({"query": VECTOR, "expressing": {f"g{i}": 1 for i in range(33)}}, 400, "expressing has 33 names, not 1-32"),
        ({"query": VECTOR, "expressing": {"EPCAM": 0, "VIM": 0}}, 400, "all weights are 0"),
        ({"query": VECTOR, "exact": 1}, 400, "exact is 1, not true or false"),
        ({"query": VECTOR, "exact": True, "index": "x"}, 400, "give one of exact and index"),
        ({"query": {**VECTOR, "image": "aaaa"}}, 400, "give one of"),
        ({"query": VECTOR, "limit": 3}, 400, "body has no field 'limit'"),
        ({"query": VECTOR, "k": 0}, 400, "k is 0, not in 1-1000"),
        ({"query": VECTOR, "k": 1001}, 400, "k is 1001"),
        ({"query": VECTOR, "k": True}, 400, "k is True, not a number"),
        ({"query": VECTOR, "k": 2.5}, 400, "k is 2.5, not a whole number"),
        ({"query": VECTOR, "metric": "cosin"}, 400, "not one of cosine, l2, ip"),
        ({"query": VECTOR, "columns": "slide"}, 400, "columns is 'slide', not a list"),
        ({"query": VECTOR, "columns": ["a"] * 33}, 400, "33 values"),
        ({"query": VECTOR}, 422, "8 features"),
        ({"query": {"vector": []}}, 400, "0 values"),
        ({"query": {"vector": [1e300]}}, 400, "query.vector[0]"),
        ({"query": {"vector": [None]}}, 400, "not a number"),
        ({"query": {"slide": "A1", "spot": "nope"}}, 404, "no tile 'nope'"),
        ({"query": {"slide": "../B1", "spot": "x"}}, 400, "invalid slide id"),
        ({"query": {"slide": "C9", "spot": "x"}}, 404, "no slide 'C9'"),
        ({"query": {"slide": "A1", "spot": "\ud800"}}, 400, "surrogate"),
        ({"query": {"image": "?"}}, 400, "not base64"),
        ({"query": {"image": base64.b64encode(b"GIF89a" * 9).decode()}}, 422, "no PNG or JPEG"),
        ({"query": {"image": base64.b64encode(base64.b64decode(png(96, 96))[:60]).decode()}}, 422, "no PNG or JPEG"),
        ({"query": {"image": png(8, 96)}}, 400, "edges must be in 16-2048"),
        ({"query": {"image": png(16, 3000)}}, 400, "3000 x 16"),
        ({"query": {"image": png(96, 96, mode="L")}}, 422, "mode L"),
    ],
)
def test_a_wrong_search_is_told_in_one_line(
    api: Any, embedded: Path, asked: dict[str, Any], status: int, told: str
) -> None:
    found = api.search(**asked)
    assert (found.status, told in found.error["message"]) == (status, True), found.data
    assert str(embedded.parent) not in found.data.decode()


@pytest.mark.parametrize(
    ("where", "status", "told"),
    [
        ("patient = 'A'", 400, "cannot be read"),
        ("__import__('os').system('id')", 400, "not allowed"),
        ("patien == 'A'", 404, "did you mean 'patient'"),
        ("patient == 3", 400, "compares"),
        ("x" * 4001, 400, "4001 characters"),
        ("patient == 'nobody'", 200, ""),
    ],
)
def test_a_wrong_filter_is_told(api: Any, spot: dict[str, str], where: str, status: int, told: str) -> None:
    found = api.search(query=spot, where=where)
    assert found.status == status
    assert told in found.data.decode()
    if status == 200:
        assert found.json()["hits"] == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"query": NaN}', "NaN"),
        (b'{"k": 1, "k": 2}', "twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"k": ' + b"9" * 5_000 + b"}", "not JSON"),
        (b'{"k": 1e999}', "body needs query"),
        (b"[]", "not an object"),
    ],
)
def test_a_body_that_is_no_proper_json_is_refused(api: Any, body: bytes, told: str) -> None:
    found = api.ask("POST", "/v1/search", body)
    assert (found.status, told in found.error["message"]) == (400, True), found.data


def test_a_body_of_another_type_is_refused(api: Any) -> None:
    found = api.ask("POST", "/v1/search", b"{}", {"Content-Type": "text/plain"})
    assert (found.status, found.error["kind"]) == (415, "media")


def test_a_method_that_is_not_offered_is_refused_and_says_which_are(api: Any) -> None:
    found = api.ask("DELETE", "/v1/slides/A1")
    assert (found.status, found.error["kind"]) == (405, "method")
    assert "GET" in found.headers["allow"]


def test_a_body_too_large_is_refused_by_its_length_and_by_its_bytes(embedded: Path, serve: Callable[..., Any]) -> None:
    import http.client

    with serve(embedded, limits=Limits(max_image_bytes=1000)) as small:
        told = small.ask("POST", "/v1/search", b" " * 1_100_000)
        assert (told.status, told.error["kind"]) == (413, "too_large")
        connection = http.client.HTTPConnection(small.place.address.removeprefix("http://"), timeout=30)
        parts = (b" " * 60_000 for _ in range(18))
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/search", parts, headers, encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, answer.read()[:10]) == (413, b'{"error":{')
        connection.close()


def test_a_body_that_does_not_come_is_not_waited_for(embedded: Path, serve: Callable[..., Any]) -> None:
    import socket
    from urllib.parse import urlsplit

    with serve(embedded, limits=Limits(body_s=0.3)) as hasty:
        to = urlsplit(hasty.place.address)
        with socket.create_connection((to.hostname, to.port), timeout=30) as slow:
            head = f"POST /v1/search HTTP/1.1\r\nHost: {to.netloc}\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")


def test_damage_is_a_plain_500_and_the_server_goes_on(
    embedded: Path, copy_of: Callable[[Path], Path], serve: Callable[..., Any]
) -> None:
    store = copy_of(embedded)
    for path in store.rglob("GROUP.json"):
        if "source" in path.as_posix():
            path.write_bytes(path.read_bytes()[:-20])
    with serve(store) as damaged:
        found = damaged.get("/v1/slides/A1")
        assert (found.status, found.error["kind"]) == (500, "corruption")
        assert str(store) not in found.data.decode()
        assert damaged.get("/v1/health").status == 200
