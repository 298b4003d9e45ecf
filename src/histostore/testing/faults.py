"""A proxy on 127.0.0.1 that passes requests on, and fails a share of them as networks and servers do."""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = {"500": 3, "503": 3, "hang": 1, "cut": 3, "lost": 3}
"""How often each failure is drawn, relative to the others.

``500`` and ``503`` are answered without asking the server, ``hang`` is never answered, ``cut`` ends amid the
answer's body, ``lost`` reaches the server and its answer does not reach the client.
"""
_HEADERS_LEFT_OUT = {"connection", "transfer-encoding", "keep-alive"}


class FaultyProxy(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1.

    Parameters
    ----------
    upstream
        Port of the server that requests are passed on to.
    rate
        Share of requests that fail.
    hang_s
        How long a request hangs before its connection is closed.
    """

    daemon_threads = True

    def __init__(self, upstream: int, *, rate: float = 0.0, hang_s: float = 2.0, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.rate = rate
        self.hang_s = hang_s
        self.answer: tuple[int, str] | None = None
        """Given to every request instead of passing it on: status and error code."""
        self.lose_next = ""
        """The next request of this method reaches the server, and its answer is lost."""
        self.faults: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def draw(self, method: str) -> str:
        """Return how the next request fails; empty where it does not."""
        with self._lock:
            self.requests[method] += 1
            kind = ""
            if self.lose_next == method:
                self.lose_next, kind = "", "lost"
            elif self._random.random() < self.rate:
                kind = self._random.choices(list(KINDS), weights=list(KINDS.values()))[0]
            if kind:
                self.faults[f"{kind} {method}"] += 1
            return kind

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""


@contextlib.contextmanager
def faulty_proxy(upstream: int, *, rate: float = 0.0, hang_s: float = 2.0, seed: int = 0) -> Iterator[FaultyProxy]:
    """Run a proxy until the context is left."""
    proxy = FaultyProxy(upstream, rate=rate, hang_s=hang_s, seed=seed)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet
    server: FaultyProxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.server
        kind = proxy.draw(self.command)
        if proxy.answer is not None:
            self._error(*proxy.answer)
        elif kind in ("500", "503"):
            self._error(int(kind), {"500": "InternalError", "503": "SlowDown"}[kind])
        elif kind == "hang":
            time.sleep(proxy.hang_s)
            self.close_connection = True
        else:
            status, headers, data = self._ask(body)
            if kind == "lost" or (kind == "cut" and not data):
                self.close_connection = True
            else:
                self._answer(status, headers, data[: len(data) // 2] if kind == "cut" else data)
                self.close_connection = self.close_connection or kind == "cut"

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HEADERS_LEFT_OUT:
                self.send_header(name, value)
        if data and not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(data)))  # it came in chunks, and goes on whole
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, code: str) -> None:
        keys = f"<AWSAccessKeyId>{self.headers.get('Authorization')}</AWSAccessKeyId>"
        data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message>{keys}</Error>".encode()
        length = ("Content-Length", str(len(data)))
        self._answer(status, [length, ("Content-Type", "application/xml")], b"" if self.command == "HEAD" else data)
