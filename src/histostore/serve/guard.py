"""What is refused before it is looked at: other hosts' names, pages of other origins, strangers, bodies too large."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from histostore.serve.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    type Scope = MutableMapping[str, Any]
    type Message = MutableMapping[str, Any]
    type Receive = Callable[[], Awaitable[Message]]
    type Send = Callable[[Message], Awaitable[None]]
    type App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""On every answer. None allows other origins anything."""


class Guard:
    """ASGI middleware.

    Parameters
    ----------
    hosts
        Names this server may be called by. A page that had its own name point here (DNS rebinding) calls it by another.
    any_address
        Also accept any IP address as the name: those cannot be rebound.
    token
        Demanded of every request, where there is one.
    """

    def __init__(
        self, app: App, *, hosts: frozenset[str], any_address: bool, token: str | None, max_body_bytes: int
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._any_address = any_address
        self._token = token.encode() if token is not None else None
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        problem = self._problem(scope)
        if problem is None:
            await self._app(scope, receive, send_more)
            return
        if problem.status == 413:
            await pass_over(receive, self._max_body_bytes)
        await _refuse(problem, send_more)

    def _problem(self, scope: Scope) -> Problem | None:
        found: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            found.setdefault(name, []).append(value)
        if len(found.get(b"host", [])) != 1 or not self._is_ours(found[b"host"][0].decode("latin-1")):
            return Problem(421, "host", "the Host header is not a name of this server; the server takes --allow-host")
        for origin in found.get(b"origin", []):
            if urlsplit_host(origin.decode("latin-1")) != found[b"host"][0].decode("latin-1").lower():
                return Problem(403, "origin", "pages of other origins may not ask here")
        if self._token is not None and not self._is_known(found.get(b"authorization", [])):
            told = (("WWW-Authenticate", "Bearer"),)
            return Problem(401, "token", "send the server's token as 'Authorization: Bearer …'", told)
        for length in found.get(b"content-length", []):
            if length.isdigit() and int(length[:20]) > self._max_body_bytes:
                return too_large(self._max_body_bytes)
        return None

    def _is_known(self, headers: list[bytes]) -> bool:
        if len(headers) != 1 or self._token is None:
            return False
        scheme, _, given = headers[0].partition(b" ")
        return scheme.lower() == b"bearer" and secrets.compare_digest(given.strip(), self._token)

    def _is_ours(self, host: str) -> bool:
        name = host_name(host)
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._any_address


def too_large(most: int) -> Problem:
    """Return the answer to a body that is too large."""
    return Problem(413, "too_large", f"the body is larger than {most} bytes", (("Connection", "close"),))


async def pass_over(receive: Receive, most: int) -> None:
    """Read the rest of a body that is refused, up to `most` bytes and for a second.

    A client that still sends when the connection is closed may never see the answer.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            while most > 0:
                message = await receive()
                most -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def host_name(host: str) -> str:
    """Return the name of a Host header, without its port, in lower case; ``""`` where it is none."""
    name, colon, port = host.lower().rpartition(":")
    if not colon or "]" in port:
        name, port = host.lower(), ""
    if port and not (port.isascii() and port.isdecimal()):
        return ""
    if name.startswith("[") and name.endswith("]"):
        return name[1:-1]
    return "" if ":" in name else name


def urlsplit_host(origin: str) -> str:
    """Return host and port of an Origin header, in lower case; ``""`` where it is none (``null``, say)."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


async def _refuse(problem: Problem, send: Send) -> None:
    body = json.dumps(problem.to_json()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
