"""Listen, say where, serve until SIGINT or SIGTERM."""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from histostore.errors import UsageError
from histostore.serve.app import build_app
from histostore.serve.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from histostore.store.store import Store

TOKEN = "HISTOSTORE_TOKEN"
"""The environment variable a token may come from."""
MIN_TOKEN_CHARS = 16
LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRACE_S = 5
"""For answers that are on their way when the server is told to end."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens, and what it asks of clients."""

    address: str
    """``http://127.0.0.1:8765``"""
    token: str | None
    token_is_new: bool
    """It was made for this server, and nobody else has it."""


class Server:
    """One store behind one socket. It listens from the start; `run` answers.

    Parameters
    ----------
    host
        Anything but this machine alone demands a token: that of ``HISTOSTORE_TOKEN``, or a new one. Where the variable
        is set the token is demanded always.
    port
        0 takes any that is free.
    allow_hosts
        More names that clients may call this server by.

    Raises
    ------
    UsageError
        The address cannot be listened on, or the token is too short.
    """

    def __init__(
        self,
        store: Store,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        allow_hosts: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> None:
        bounds = limits or Limits()
        self._socket = _listening(host, port)
        name, port = self._socket.getsockname()[:2]
        address = ipaddress.ip_address(name.partition("%")[0])
        try:
            token, new = _token(needed=not address.is_loopback)
        except UsageError:
            self._socket.close()
            raise
        names = {*LOOPBACK, *(h.lower() for h in allow_hosts)}
        if not address.is_loopback:
            names |= {host.lower(), socket.gethostname().lower()}
        app = build_app(store, bounds, hosts=frozenset(names), any_address=not address.is_loopback, token=token)
        self.place = Place(f"http://{f'[{name}]' if address.version == 6 else name}:{port}", token, new)
        config = uvicorn.Config(
            app, http="h11", ws="none", loop="asyncio", lifespan="on", access_log=False, log_level="warning",
            server_header=False, proxy_headers=False, limit_concurrency=bounds.connections,
            timeout_keep_alive=15, timeout_graceful_shutdown=GRACE_S,
        )  # fmt: skip
        self._server = _Uvicorn(config)

    def run(self, announce: Callable[[Place], None] | None = None) -> None:
        """Serve until told to stop; `announce` is called once requests are answered."""
        self._server.announce = (lambda: announce(self.place)) if announce is not None else None
        signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        # uvicorn raises a signal once more after it has ended; this end is no failure
        before = {s: signal.signal(s, lambda *_: self.stop()) for s in signals}
        try:
            self._server.run(sockets=[self._socket])
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)
            self._socket.close()

    def stop(self) -> None:
        """Have `run` return, from any thread."""
        self._server.should_exit = True


class _Uvicorn(uvicorn.Server):
    announce: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.announce is not None:
            self.announce()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, proto)
    except (OSError, UnicodeError, OverflowError) as error:
        raise UsageError(f"no host {host!r} here: {error}") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(2048)
    except OSError as error:
        found.close()
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror}; give another --port, or 0 for any"
        ) from None
    return found


def _token(*, needed: bool) -> tuple[str | None, bool]:
    given = os.environ.get(TOKEN, "")
    if given:
        if len(given) < MIN_TOKEN_CHARS or not given.isascii() or not given.isprintable() or " " in given:
            raise UsageError(f"{TOKEN} must be {MIN_TOKEN_CHARS} or more printable ASCII characters without spaces")
        return given, False
    return (secrets.token_urlsafe(32), True) if needed else (None, False)
