"""What a client is told when something goes wrong: a status, a kind, one line; never a place on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histostore.errors import HistostoreError

_STATUS = {
    "usage": 400,
    "not_found": 404,
    "data": 422,
    "slide": 422,
    "alignment": 422,
    "spec_mismatch": 422,
    "conflict": 409,
    "missing_dependency": 503,
    "storage": 503,
}
"""By kind of error; the others are damage."""
_UNTOLD = {
    500: "the store cannot be read as it should; its keeper finds more in the server's log",
    503: "the store cannot be read now; its keeper finds more in the server's log",
}


class Problem(Exception):
    """An answer that is none."""

    def __init__(self, status: int, kind: str, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.headers = headers

    def to_json(self) -> dict[str, Any]:
        """Return the body."""
        return {"error": {"kind": self.kind, "message": self.message}}


def busy(message: str) -> Problem:
    """Return the answer to those who should come again."""
    return Problem(503, "busy", message, (("Retry-After", "1"),))


def problem_of(error: HistostoreError, *uris: str) -> Problem:
    """Return what a client is told of an error; `uris`, where the store lies, is left out."""
    status = _STATUS.get(error.kind, 500)
    if status in _UNTOLD:
        return Problem(status, error.kind, _UNTOLD[status])
    text = " ".join(str(error).split())
    for uri in uris:
        text = text.replace(f" in {uri}", "").replace(uri, "the store")
    return Problem(status, error.kind, text)
