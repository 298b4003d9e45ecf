"""A slide behind http(s), by range requests: a few large ones where the pieces lie close together."""

from __future__ import annotations

import http.client
import queue
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from histostore.errors import SlideError
from histostore.store.object_ranges import coalesce as joined

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GAP_BYTES = 64 << 10
"""Pieces this close are fetched as one: at 50 MB/s the bytes between cost a millisecond, a request costs tens."""

MOST_BYTES = 8 << 20
"""Of one request."""

TRIES = 4
TIMEOUT_S = 30.0
MAX_REDIRECTS = 5
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
EXPIRED = frozenset({401, 403, 410})
"""What a signed address that a redirect gave answers when its time is over."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def is_url(path: object) -> bool:
    """Tell an http(s) address from a path."""
    return str(path).lower().startswith(("http://", "https://"))


def coalesce(
    offsets: Sequence[int], lengths: Sequence[int], *, gap: int = GAP_BYTES, most: int = MOST_BYTES
) -> Iterator[tuple[int, int, list[int]]]:
    """Yield (start, stop, which pieces) of the requests that cover all pieces.

    Pieces are joined while no more than `gap` bytes lie between them and a request stays within `most`; a larger
    piece is a request of its own. Pieces of no bytes are left out.
    """
    some = [i for i, n in enumerate(lengths) if n > 0]
    for start, stop, members in joined([(offsets[i], lengths[i]) for i in some], gap=gap, most=most):
        yield start, stop, [some[m] for m in members]


class HttpRanges:
    """A file on a server that answers range requests; see `histostore.slides.ranges.Ranges`.

    Connections are kept and shared by threads. What fails in passing (a dropped connection, 429, 5xx) is tried four
    times; a file that changes between two requests is an error.

    Raises
    ------
    SlideError
        No such file, no answer, or a server that does not know ranges.
    """

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url
        """As it was given: where it leads to for a while may hold a signature, which is neither kept nor told."""
        self._target = url
        self._timeout_s = timeout_s
        self._idle: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()
        self._version: str | None = None
        self.size = 0
        """Bytes of the file, from the first answer on."""
        try:
            self._get(0, 1)
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> str:
        """What the server calls this state of the file (ETag, else Last-Modified); ``""`` where it says neither."""
        return self._version or ""

    def read_ranges(self, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Return one piece per range, coalesced on the way; see `histostore.slides.ranges.Ranges`."""
        fitting = [max(0, min(n, self.size - at)) for at, n in zip(offsets, lengths, strict=True)]
        found = [b""] * len(fitting)
        for start, stop, members in coalesce(offsets, fitting):
            data = self._get(start, stop)
            for i in members:
                found[i] = data[offsets[i] - start : offsets[i] - start + fitting[i]]
        return found

    def close(self) -> None:
        """Close the connections."""
        while not self._idle.empty():
            self._idle.get().close()

    def _get(self, start: int, stop: int) -> bytes:
        why = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(0.1 * 2**attempt)
            try:
                status, headers, body = self._request(start, stop)
            except (OSError, http.client.HTTPException) as error:
                why = f"{type(error).__name__} {error}".strip()
                continue
            if status in PASSING:
                why = f"status {status}"
                continue
            if (data := self._checked(status, headers, body, start, stop)) is not None:
                return data
            why = f"{len(body):,} of {stop - start:,} bytes"
        msg = f"{self.url}: bytes {start:,}-{stop:,} could not be fetched in {TRIES} tries ({why}); try again later"
        raise SlideError(msg)

    def _request(self, start: int, stop: int) -> tuple[int, http.client.HTTPMessage, bytes]:
        for _ in range(MAX_REDIRECTS):
            parts = urlsplit(self._target)
            connection = self._connection()
            try:
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", target, headers={"Range": f"bytes={start}-{stop - 1}"})
                answer = connection.getresponse()
                if answer.status == 200:
                    # all of the slide would follow
                    connection.close()
                    return 200, answer.headers, b""
                body = answer.read()
            except BaseException:
                connection.close()
                raise
            location = answer.headers.get("Location")
            if answer.status in EXPIRED and self._target != self.url:
                location = self.url  # what it led to has expired: it leads to a new one
            elif answer.status not in REDIRECTS or location is None:
                self._idle.put(connection)
                return answer.status, answer.headers, body
            connection.close()
            self.close()
            self._target = urljoin(self._target, location)
            if not is_url(self._target):
                break
        msg = f"{self.url}: redirected more than {MAX_REDIRECTS} times, or to something that is not http(s)"
        raise SlideError(msg)

    def _connection(self) -> http.client.HTTPConnection:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            parts = urlsplit(self._target)
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            return kind(parts.hostname or "", parts.port, timeout=self._timeout_s)

    def _checked(
        self, status: int, headers: http.client.HTTPMessage, body: bytes, start: int, stop: int
    ) -> bytes | None:
        """Return the bytes of a sound answer, None for one that was cut short."""
        if status == 416 and self._version is None:
            msg = f"{self.url}: not a slide, the file is empty (0 bytes)"
            raise SlideError(msg)
        if status == 200:
            msg = f"{self.url}: the server does not answer range requests; download the slide and give its path"
            raise SlideError(msg)
        said = CONTENT_RANGE.match(headers.get("Content-Range", ""))
        if status != 206 or said is None:
            msg = f"{self.url}: the server answered {status} to a request for bytes {start:,}-{stop:,}"
            raise SlideError(msg)
        version = headers.get("ETag") or headers.get("Last-Modified") or ""
        size = int(said[3])
        if self._version is None:
            self.size, self._version = size, version
        if (size, version) != (self.size, self._version):
            msg = f"{self.url}: the file changed while it was read; open it again"
            raise SlideError(msg)
        return body if int(said[1]) == start and len(body) == stop - start else None
