"""A real small http server on this machine that can be told to misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from histostore.fetch.download import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = Limits(tries=3, wait_s=0.001, longest_wait_s=0.01, timeout_s=2.0)


@dataclass
class Served:
    """What the server has, how it behaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    """The next answers end after so many bytes of their body."""
    statuses: list[int] = field(default_factory=list)
    """The next answers are these instead."""
    ranges: bool = True
    validators: bool = True
    lying_range: bool = False
    hits: list[dict[str, Any]] = field(default_factory=list)
    """Of the GDC's /files."""
    drop_from_page: bool = False
    totals: list[int] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of every request."""
    bodies: list[dict[str, Any]] = field(default_factory=list)


def handler_of(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.bodies.append(body)
            if served.statuses:
                self.send_error(served.statuses.pop(0))
                return
            start, size = body["from"], body["size"]
            page = served.hits[start : start + size]
            page = page[:-1] if served.drop_from_page else page
            total = served.totals.pop(0) if served.totals else len(served.hits)
            answer = {"data": {"hits": page, "pagination": {"total": total, "from": start, "count": len(page)}}}
            self.answer(json.dumps(answer).encode())

        def do_GET(self) -> None:
            served.asked.append((self.path, self.headers.get("Range")))
            if served.statuses:
                self.send_response(served.statuses.pop(0))
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = served.files.get(self.path)
            if data is None:
                self.send_error(404)
                return
            tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            asked, start = self.headers.get("Range"), 0
            if asked and served.ranges and self.headers.get("If-Range") == tag:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(data):
                    self.send_error(416)
                    return
            self.answer(data[start:], start=start, total=len(data), tag=tag)

        def answer(self, body: bytes, *, start: int = 0, total: int | None = None, tag: str = "") -> None:
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if tag and served.validators:
                self.send_header("ETag", tag)
            if start:
                first = start + 1 if served.lying_range else start
                self.send_header("Content-Range", f"bytes {first}-{(total or 0) - 1}/{total}")
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body[: served.cuts.pop(0)] if served.cuts else body)

    return Handler


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Serve on a free port of 127.0.0.1."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Served()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(state))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def quick() -> Limits:
    """Return limits that do not keep a test waiting."""
    return QUICK
