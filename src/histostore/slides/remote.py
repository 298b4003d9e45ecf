"""Slides that lie elsewhere: http(s), or a bucket (s3, gs, az), read in place by range requests."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from histostore.errors import UsageError
from histostore.slides.http import HttpRanges, is_url
from histostore.slides.objects import ObjectRanges
from histostore.store.object_address import Address, is_object_address

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.slides.ranges import Ranges

DIGEST_BYTES = 8 << 20
"""Bytes of one request while a whole slide is read for its digest."""

_SECRET = ("sig", "token", "key", "secret", "pass", "pwd", "code", "jwt", "session", "credential", "auth")
"""Parts of the names of fields in an address that let their bearer in."""


def is_remote(source: str | Path) -> bool:
    """Tell an address (http, https, s3, gs, az) from a path."""
    return is_url(source) or is_object_address(source)


def checked_address(text: str) -> str:
    """Return an address that may be written down.

    Raises
    ------
    UsageError
        It holds a password, a key or a signature (which is not repeated), or is no address.
    """
    if not is_url(text):
        return str(Address.parse(text))
    parts = urlsplit(text)
    given = ";".join([*parts.query.split("&"), *parts.path.split(";")[1:]])
    fields = [field.partition("=")[0].lower() for field in given.split(";")]
    if "@" in parts.netloc or parts.fragment or any(part in name for name in fields for part in _SECRET):
        raise UsageError(
            f"the address of a slide on {parts.hostname} holds a password, key or signature, and addresses are "
            "recorded: give one without (a bucket by s3://, gs:// or az:// takes its credentials from the environment)"
        )
    if not parts.hostname:
        raise UsageError(f"{text[:80]!r} is no address of a slide: http(s)://HOST/PATH")
    return text


def open_remote(address: str) -> Ranges:
    """Open the bytes at an address."""
    return HttpRanges(address) if is_url(address) else ObjectRanges(address)


def remote_state(address: str) -> tuple[int, str]:
    """Return the size of what lies at an address, and its version as the server tells it (``""``: it does not)."""
    ranges = open_remote(address)
    try:
        return ranges.size, ranges.version
    finally:
        ranges.close()


def remote_digest(address: str) -> tuple[str, tuple[int, str]]:
    """Return the sha256 of all bytes at an address, and their state; they are read once, in pieces of 8 MiB.

    Raises
    ------
    SlideError
        It cannot be read, or changes meanwhile.
    """
    ranges, digest = open_remote(address), hashlib.sha256()
    try:
        for start in range(0, ranges.size, DIGEST_BYTES):
            (piece,) = ranges.read_ranges([start], [min(DIGEST_BYTES, ranges.size - start)])
            digest.update(piece)
        return digest.hexdigest(), (ranges.size, ranges.version)
    finally:
        ranges.close()
