"""The Starlette application: a route for every operation, and an answer for everything that goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from histostore.errors import CorruptionError, HistostoreError, UsageError, near
from histostore.serve import catalog, pictures, queries
from histostore.serve.checks import checked, from_text, parse_json
from histostore.serve.guard import Guard, pass_over, too_large
from histostore.serve.lanes import Lane
from histostore.serve.openapi import document
from histostore.serve.operations import operations
from histostore.serve.pictures import Picture
from histostore.serve.problems import Problem, problem_of
from histostore.serve.snapshot import Watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from starlette.requests import Request

    from histostore.serve.guard import App
    from histostore.serve.limits import Limits
    from histostore.serve.operations import Operation
    from histostore.serve.snapshot import Snapshot
    from histostore.store.store import Store

    type Answer = Callable[..., dict[str, Any] | Picture]

log = logging.getLogger("histostore.serve")


def build_app(
    store: Store, limits: Limits, *, hosts: frozenset[str], any_address: bool = False, token: str | None = None
) -> App:
    """Return the ASGI application of one store. Options as in `Guard`."""
    service = _Service(store, limits)
    table = operations(limits)
    described = _json(document(table, token=token is not None))

    async def describe(request: Request) -> Response:
        del request
        return described

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        yield
        service.close()

    routes = [Route("/openapi.json", describe)]
    routes += [Route(op.path, partial(service.answer, op), methods=[op.method]) for op in table]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_problem, Problem: _problem, Exception: _surprise},
    )
    app.router.redirect_slashes = False
    return Guard(app, hosts=hosts, any_address=any_address, token=token, max_body_bytes=limits.max_body_bytes)


class _Service:
    """The store, the threads that read it, and what stays in memory."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._limits = limits
        self._uri = store.uri
        self._watched = Watched(store, refresh_s=limits.refresh_s)
        self._lanes = {
            name: Lane(f"histostore-{name}", workers=n, waiting=limits.waiting, timeout_s=limits.timeout_s)
            for name, n in (("reads", limits.reads), ("searches", limits.searches))
        }
        search = partial(queries.search, embedders=queries.Embedders(), limits=limits)
        self._answers: Mapping[str, Answer] = {
            "health": catalog.health,
            "slides": catalog.slides,
            "slide": catalog.slide,
            "thumbnail": pictures.thumbnail,
            "tile": pictures.tile,
            "search": lambda store, **asked: search(store, asked),
        }

    def close(self) -> None:
        """Let the threads end."""
        for lane in self._lanes.values():
            lane.close()

    async def answer(self, op: Operation, request: Request) -> Response:
        """Answer one request: read its body, then check and work in a thread."""
        body = None
        if op.body is not None:
            body = await self._body(request)
        path, query = dict(request.path_params), request.query_params.multi_items()
        seen = request.headers.get("if-none-match", "")
        return await self._lanes[op.lane].run(lambda: self._work(op, path, query, body, seen))

    async def _body(self, request: Request) -> bytes:
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            raise Problem(415, "media", "send the body as application/json")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                async for part in request.stream():
                    size += len(part)
                    if size > self._limits.max_body_bytes:
                        await pass_over(request.receive, self._limits.max_body_bytes)
                        raise too_large(self._limits.max_body_bytes)
                    parts.append(part)
        except TimeoutError:
            raise Problem(408, "slow", "the body took too long to come", (("Connection", "close"),)) from None
        except ClientDisconnect:
            raise Problem(400, "gone", "the client went away before its body was there") from None
        return b"".join(parts)

    def _work(
        self, op: Operation, path: dict[str, str], query: list[tuple[str, str]], body: bytes | None, seen: str
    ) -> Response:
        try:
            asked = _asked(op, path, query, body)
            made = self._read(self._answers[op.name], asked, now=op.lane == "searches")
        except HistostoreError as error:
            problem = problem_of(error, self._uri)
            if problem.status >= 500:
                log.error("%s %s: %s", op.method, op.path, error)
            raise problem from error
        if not isinstance(made, Picture):
            return _json(made)
        headers = {"ETag": made.etag, "Cache-Control": "private, no-cache"}
        if made.etag in (tag.strip() for tag in seen.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(made.data, media_type=made.media, headers=headers)

    def _read(self, answer: Answer, asked: dict[str, Any], *, now: bool) -> dict[str, Any] | Picture:
        """Answer from one snapshot; once more where that one is no longer there to be read."""
        snapshot: Snapshot = self._watched.snapshot(now=now)
        try:
            return answer(snapshot, **asked)
        except CorruptionError:
            newer = self._watched.snapshot(now=True)
            if newer is snapshot:
                raise
            return answer(newer, **asked)


def _asked(op: Operation, path: dict[str, str], query: list[tuple[str, str]], body: bytes | None) -> dict[str, Any]:
    """Return a request's values, checked by the table."""
    asked = {name: from_text(schema, path[name], name) for name, schema in op.path_fields.items()}
    given = dict(query)
    if len(given) != len(query):
        raise UsageError("a parameter is given twice")
    for name in given:
        if name not in op.query_fields:
            have = ", ".join(op.query_fields) or "none"
            raise UsageError(f"no parameter {name[:60]!a}{near(name[:60], op.query_fields)}; there is {have}")
    for name, schema in op.query_fields.items():
        asked[name] = from_text(schema, given[name], name) if name in given else schema["default"]
    if op.body is not None:
        asked |= checked(op.body, parse_json(body or b""), "body")
    return asked


def _json(value: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    # ASCII, so that no text that came in can fail to go out
    data = json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    return Response(data, status, {"Cache-Control": "no-store", **(headers or {})}, media_type="application/json")


async def _problem(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, Problem)
    return _json(error.to_json(), error.status, dict(error.headers))


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {404: ("not_found", "there is nothing at this address; /openapi.json tells what there is")}
    kinds[405] = ("method", f"{request.method} is not for this address")
    kind, text = kinds.get(error.status_code, ("http", str(error.detail)))
    return _json({"error": {"kind": kind, "message": text}}, error.status_code, error.headers)


async def _surprise(request: Request, error: Exception) -> Response:
    del request, error  # uvicorn logs the traceback
    told = {"error": {"kind": "internal", "message": "a mistake of the server; its keeper finds more in the log"}}
    return _json(told, 500)
