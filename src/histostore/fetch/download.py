"""One file over http: resumed by range, tried again with limits, checked, and visible only when it is whole."""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histostore._version import __version__
from histostore.errors import CorruptionError, StorageError
from histostore.progress import Silent

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.fetch.catalog import Remote
    from histostore.progress import Progress

CHUNK = 1 << 20
AGENT = {"User-Agent": f"histostore/{__version__}", "Accept-Encoding": "identity"}
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Answers that may be another one next time."""
_CONTENT_RANGE = 206
_NOT_SATISFIABLE = 416


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long to insist."""

    tries: int = 5
    """In a row that bring nothing new; one that gets further than any before begins the count again."""
    wait_s: float = 1.0
    """After the first; twice as long each time."""
    longest_wait_s: float = 60.0
    timeout_s: float = 60.0
    """Without a byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """A file that is here, whole."""

    sha256: str
    md5: str
    size: int
    tries: int
    resumed: int
    """Bytes that the last answer did not have to send."""


class _TryAgainError(Exception):
    """What may go better next time."""

    def __init__(self, text: str, after_s: float | None = None) -> None:
        super().__init__(text)
        self.after_s = after_s


def download(
    remote: Remote, url: str, target: Path, *, limits: Limits | None = None, progress: Progress | None = None
) -> Got:
    """Fetch one file; what was begun before is gone on with, if the server still has the same file.

    Bytes go to ``.NAME.part`` beside the target, which is renamed when size and hashes are right. A part is only gone
    on with where the server's own validator (``ETag``, ``Last-Modified``) says that the file is the same, so no two
    versions are joined; where it offers none, or no ranges, it is fetched from the start.

    Raises
    ------
    StorageError
        The server refuses or stays away (what is here is kept for the next call), or the disk is too small.
    CorruptionError
        What came is not what the catalogue says; the part is removed.
    """
    limits, progress = limits or Limits(), progress or Silent()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    transfer = _Transfer(url=url, part=part, remote=remote, limits=limits, progress=progress)
    resumed = transfer.insist()
    got = _hashes(part)
    if resumed and _wrong(remote, got):  # begin once more before blaming the server
        part.unlink()
        transfer.insist()
        resumed, got = 0, _hashes(part)
    wrong = _wrong(remote, got)
    transfer.forget()
    if wrong:
        part.unlink()
        raise CorruptionError(f"{url}: {wrong}; what came is removed, the catalogue or the server is out of date")
    part.replace(target)
    return Got(sha256=got[0], md5=got[1], size=got[2], tries=transfer.tries, resumed=resumed)


class _Transfer:
    """The tries of one file."""

    def __init__(self, *, url: str, part: Path, remote: Remote, limits: Limits, progress: Progress) -> None:
        self.url, self.part, self.remote, self.limits, self.progress = url, part, remote, limits, progress
        self.tries = 0
        self._notes = part.with_name(f"{part.name}.json")

    def insist(self) -> int:
        """Try until the part is whole; return the bytes that the last answer did not have to send."""
        furthest, fruitless = self._have(), 0
        while True:
            self.tries += 1
            try:
                return self._once()
            except _TryAgainError as error:
                have = self._have()
                furthest, fruitless = (have, 0) if have > furthest else (furthest, fruitless + 1)
                if fruitless >= self.limits.tries:
                    kept = f"{self.tries} tries, {have:,} bytes are kept: run it again to go on"
                    raise StorageError(f"{self.url}: {error}; {kept}") from None
                wait = error.after_s if error.after_s is not None else self.limits.wait_s * 2.0**fruitless
                time.sleep(min(wait, self.limits.longest_wait_s))

    def forget(self) -> None:
        """Remove what was noted about the part."""
        self._notes.unlink(missing_ok=True)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _validator(self) -> str | None:
        try:
            noted: dict[str, Any] = json.loads(self._notes.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return noted.get("validator") if noted.get("url") == self.url else None

    def _once(self) -> int:
        """Ask once; return at which byte the answer began."""
        start, validator = self._have(), self._validator()
        asked = dict(AGENT)
        if start and validator:
            asked |= {"Range": f"bytes={start}-", "If-Range": validator}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url, headers=asked), timeout=self.limits.timeout_s
            ) as answer:
                return self._take(answer, start if "Range" in asked else 0)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == _NOT_SATISFIABLE:  # the part is as long as the file, or longer: begin again
                self.part.unlink(missing_ok=True)
                raise _TryAgainError("the server has no more than the part that is here") from None
            if error.code in _AGAIN:
                raise _TryAgainError(f"the server says {error.code} {error.reason}", _after(error)) from None
            raise StorageError(f"{self.url}: the server says {error.code} {error.reason}") from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            said = getattr(error, "reason", None) or error
            raise _TryAgainError(f"{type(error).__name__}: {said}") from None

    def _take(self, answer: http.client.HTTPResponse, start: int) -> int:
        if answer.status == _CONTENT_RANGE:
            said = answer.headers.get("Content-Range", "")
            if not said.startswith(f"bytes {start}-"):
                self.part.unlink(missing_ok=True)
                raise _TryAgainError(f"asked for bytes from {start}, the server sent {said or 'others'}")
        else:
            start = 0
        length = answer.headers.get("Content-Length")
        coming = int(length) if length is not None and length.isdigit() else None
        total = start + coming if coming is not None else self.remote.size
        if total is not None and self.remote.size is not None and total != self.remote.size:
            raise CorruptionError(f"{self.url}: {total:,} bytes there, the catalogue says {self.remote.size:,}")
        self._room(None if total is None else total - start)
        self._note(answer)
        name = self.part.name[1:-5]
        if total is None:
            self.progress.say(f"{name}: the server does not say how long it is")
        else:
            self.progress.start(name, total, done=start, unit="bytes")
        taken = 0
        with self.part.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            while block := answer.read(CHUNK):
                file.write(block)
                taken += len(block)
                if total is not None:
                    self.progress.advance(len(block))
        self.progress.finish()
        if coming is not None and taken < coming:
            raise _TryAgainError(f"the connection ended after {start + taken:,} of {total:,} bytes")
        return start

    def _note(self, answer: http.client.HTTPResponse) -> None:
        tag = answer.headers.get("ETag")
        strong = tag if tag and not tag.startswith("W/") else None  # a weak one does not promise the same bytes
        validator = strong or answer.headers.get("Last-Modified")
        self._notes.write_text(json.dumps({"url": self.url, "validator": validator}))

    def _room(self, need: int | None) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if need is not None and need > free:
            raise StorageError(f"{self.part.parent}: {need:,} bytes to come, {free:,} free; free some space")


def _after(error: urllib.error.HTTPError) -> float | None:
    text = error.headers.get("Retry-After", "") if error.headers else ""
    return float(text) if text.isdigit() and math.isfinite(float(text)) else None


def hashes_of(path: Path) -> tuple[str, str, int]:
    """Return sha256, md5 and size of a file, in one pass."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return sha256.hexdigest(), md5.hexdigest(), size


_hashes = hashes_of


def _wrong(remote: Remote, got: tuple[str, str, int]) -> str | None:
    known = (remote.sha256, remote.md5, remote.size)
    for name, wanted, found in zip(("sha256", "md5", "size"), known, got, strict=True):
        if wanted is not None and wanted != found:
            return f"{name} is {found}, should be {wanted}"
    return None
