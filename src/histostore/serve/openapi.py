"""The OpenAPI 3.1 document, made of the table of operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore._version import __version__
from histostore.serve.operations import ANSWERS, FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from histostore.serve.operations import Operation

PROBLEMS = {
    400: "the request is not what this document says",
    401: "a token is needed, or this is another one",
    403: "asked from a page of another origin",
    404: "a slide, tile, column or embedding of that name is not there",
    405: "not asked for in this way",
    408: "the body took too long to come",
    409: "it disagrees with what is there",
    413: "the body is too large",
    415: "the body is not application/json",
    421: "the Host header is not this server's",
    422: "a value that cannot be used, like a vector of another width",
    500: "the store is damaged",
    503: "busy, or the store cannot be read now; try again",
}


def document(operations: Sequence[Operation], *, token: bool) -> dict[str, Any]:
    """Return the document; `token` says whether a bearer token is demanded."""
    paths: dict[str, Any] = {}
    for op in operations:
        paths.setdefault(op.path, {})[op.method.lower()] = _operation(op)
    components: dict[str, Any] = {"schemas": dict(ANSWERS)}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "histostore",
            "version": __version__,
            "summary": "Search over the tiles of one store.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": components,
    }
    if token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
    return found


def _operation(op: Operation) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": schema} for name, schema in op.path_fields.items()
    ] + [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in op.query_fields.items()]
    found: dict[str, Any] = {
        "operationId": op.name,
        "summary": op.about,
        "parameters": parameters,
        "responses": {"200": _answer(op), **{str(code): _problem(text) for code, text in _problems(op).items()}},
    }
    if op.answer == "picture":
        found["responses"]["304"] = {"description": "the picture is still the one of If-None-Match"}
    if op.body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": op.body}}}
    return found


def _problems(op: Operation) -> dict[int, str]:
    only_with_body = {408, 413, 415}
    return {code: text for code, text in PROBLEMS.items() if op.body is not None or code not in only_with_body}


def _answer(op: Operation) -> dict[str, Any]:
    if op.answer == "picture":
        content: dict[str, Any] = {media: {} for media in FORMATS.values()}
    else:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{op.answer}"}}}
    return {"description": op.about, "content": content}


def _problem(text: str) -> dict[str, Any]:
    return {
        "description": text,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
