"""Files behind a real server on this machine that answers range requests, or answers them badly."""

from __future__ import annotations

import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class RangeServer(ThreadingHTTPServer):
    """A folder, and what was asked of it."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[tuple[int, int]] = []
        self.failures = 0
        """Answers to spoil before the next sound one."""
        self.how = 503
        self.tag = '"one"'
        self.knows_ranges = True
        self.lasts = 1 << 30
        """Requests that a signed address, which ``moved/`` leads to, is good for."""
        self.signed = 0
        self.used: Counter[str] = Counter()

    def url(self, name: str) -> str:
        """Return the address of a file."""
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.split("?")[0].lstrip("/")
        if name.startswith("moved/"):
            self.server.signed += 1
            return self.answer(302, b"", {"Location": f"/{name.removeprefix('moved/')}?signed={self.server.signed}"})
        self.server.used[self.path] += 1
        if "signed" in self.path and self.server.used[self.path] > self.server.lasts:
            return self.answer(403, b"expired", {})
        path = self.server.folder / name
        if not path.is_file():
            return self.answer(404, b"no such thing", {})
        data = path.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not self.server.knows_ranges or match is None:
            return self.answer(200, data, {})
        start, last = int(match[1]), min(int(match[2]), len(data) - 1)
        self.server.asked.append((start, last + 1))
        if start >= len(data):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        if self.server.failures > 0:
            self.server.failures -= 1
            if self.server.how == 0:
                self.close_connection = True
                return None
            return self.answer(self.server.how, b"busy", {})
        headers = {"Content-Range": f"bytes {start}-{last}/{len(data)}", "ETag": self.server.tag}
        return self.answer(206, data[start : last + 1], headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """Serve the files of a folder while the block runs."""
    with RangeServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
