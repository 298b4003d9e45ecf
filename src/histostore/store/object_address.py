"""``s3://bucket/prefix``: which service, which bucket, and what the environment says of how it is asked."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from histostore.errors import UsageError
from histostore.store.azure_account import azure_endpoint, azure_settings

if TYPE_CHECKING:
    from pathlib import Path

SCHEMES = ("s3", "gs", "az")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}
_YES = {"1", "true", "yes", "on"}

TIMEOUT = "HISTOSTORE_OBJECT_TIMEOUT"
"""Seconds that one request may take, answer and all."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a store lies in an object store. Holds no secret, and refuses to be made from one."""

    scheme: str
    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address that a text gives.

        Raises
        ------
        UsageError
            Another scheme, no bucket, a prefix that leaves it, or an address with keys in it (which are not repeated).
        """
        scheme, _, rest = text.partition("://")
        scheme = scheme.lower()
        if scheme not in SCHEMES:
            raise UsageError(f"a store is a folder or begins with {', '.join(s + '://' for s in SCHEMES)}")
        bucket, _, prefix = rest.partition("/")
        if "@" in bucket or "?" in rest or "#" in rest or "\\" in rest:
            raise UsageError(
                f"an address is {scheme}://BUCKET/PREFIX and nothing more: no keys, tokens or options; "
                "credentials come from the environment"
            )
        if not _BUCKET.fullmatch(bucket):
            raise UsageError(f"{scheme}:// is followed by the name of a bucket, got {bucket[:80]!r}")
        prefix = prefix.rstrip("/")
        if prefix and (any(p in ("", ".", "..") for p in prefix.split("/")) or "\0" in prefix):
            raise UsageError(f"{scheme}://{bucket} is followed by a plain prefix: no empty part, no '.' or '..'")
        return cls(scheme, bucket, prefix)


def is_object_address(path: str | Path) -> bool:
    """Tell ``s3://…`` from a path.

    Raises
    ------
    UsageError
        An address that went through `pathlib.Path`, which makes ``s3:/`` of ``s3://``.
    """
    text = str(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        return True
    scheme, colon, rest = text.partition(":/")
    if colon and scheme.lower() in SCHEMES and not isinstance(path, str):
        raise UsageError(f"give {scheme}://{rest.split('/')[0]}/… as text: a Path loses a slash of it")
    return False


def endpoint(address: Address) -> str:
    """Return the endpoint that the environment names, or ``""`` for the service's own.

    Raises
    ------
    UsageError
        It is plain http and AWS_ALLOW_HTTP (GOOGLE_, AZURE_) does not allow that, it has keys in it, or an address of
        az:// comes without a storage account.
    """
    names = _ENDPOINTS[address.scheme]
    if address.scheme == "az":
        settings = azure_settings()
        url = azure_endpoint(settings)
        if settings.get("use_emulator"):  # asked for by name, and it has no https
            return url
    else:
        url = next((os.environ[name] for name in names if os.environ.get(name)), "")
    if "@" in url or "?" in url:
        raise UsageError(f"the endpoint in {names[-1]} must hold no keys; give them in variables of their own")
    if url.lower().startswith("http://") and not allows_http(address):
        raise UsageError(
            f"the endpoint {url} is plain http: what you send can be read on the way; "
            f"use https, or set {_ALLOW_HTTP[address.scheme]}=true if you mean it"
        )
    return url


def identity_of(address: Address) -> str:
    """Return what tells an address from the same one elsewhere: another endpoint's, another account's."""
    account = azure_settings()["account_name"] + " " if address.scheme == "az" else ""
    return f"{endpoint(address)} {account}{address}"


def request_seconds() -> float:
    """Return how long one request may take.

    Raises
    ------
    UsageError
        HISTOSTORE_OBJECT_TIMEOUT is not a number of seconds.
    """
    text = os.environ.get(TIMEOUT, "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise UsageError(f"{TIMEOUT} is {text!r}; give seconds, more than 0 and less than 3600")
    return seconds


def allows_http(address: Address) -> bool:
    """Whether the environment permits endpoints that are plain http."""
    return os.environ.get(_ALLOW_HTTP[address.scheme], "").lower() in _YES
