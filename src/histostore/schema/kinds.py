"""The kinds of group a store may hold; ``stores/SPEC.md`` says what each array means."""

from __future__ import annotations

from dataclasses import dataclass

from histostore.errors import FormatError

FORMAT_MAJOR = 1
FORMAT_MINOR = 0
FORMAT = f"{FORMAT_MAJOR}.{FORMAT_MINOR}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of group at one version."""

    name: str
    version: int
    arrays: tuple[str, ...]
    """Arrays that every group of the kind has."""
    optional: tuple[str, ...] = ()
    owner: str = "slide"
    """``slide``, or ``@heads`` / ``@backbones`` / ``@indexes`` for groups of the whole store."""


_ALL = (
    Kind(name="source", version=1, arrays=("thumbnail",)),
    Kind(name="meta", version=1, arrays=()),
    Kind(name="points", version=1, arrays=("ids", "xy"), optional=("in_tissue", "array_row", "array_col")),
    Kind(name="expression", version=1, arrays=("X", "obs", "var")),
    Kind(name="labels", version=1, arrays=(), optional=("numeric", "codes")),
    Kind(name="regions", version=1, arrays=()),
    Kind(name="tiles", version=1, arrays=("geometry", "ids"), optional=("mask",)),
    Kind(name="pixels", version=1, arrays=("pixels", "status")),
    Kind(name="embeddings", version=1, arrays=("embedding", "status")),
    Kind(name="predictions", version=1, arrays=("prediction",)),
    Kind(name="heads", version=1, arrays=(), owner="@heads"),
    Kind(name="backbones", version=1, arrays=(), owner="@backbones"),
    Kind(name="indexes", version=1, arrays=(), owner="@indexes"),
)

KINDS: dict[tuple[str, int], Kind] = {(k.name, k.version): k for k in _ALL}
NEWEST: dict[str, Kind] = {k.name: k for k in sorted(_ALL, key=lambda k: k.version)}
STORE_LEVEL = tuple(dict.fromkeys(k.owner for k in _ALL if k.owner != "slide"))
"""Owners that are no slide: their groups belong to the whole store."""


def kind_of(name: str, version: int) -> Kind:
    """Return the kind that a group's header names.

    Raises
    ------
    FormatError
        The kind or its version is newer than this package.
    """
    try:
        return KINDS[name, version]
    except KeyError:
        have = NEWEST.get(name)
        got = f"knows version {have.version}" if have else "does not know that kind"
        raise FormatError(f"group of kind '{name}' version {version}: this histostore {got}; use a newer one") from None


def check_format(text: str, *, where: str, writing: bool = False) -> None:
    """Refuse a store of a newer format: a newer major for all, a newer minor for writing.

    Raises
    ------
    FormatError
        Naming both versions.
    """
    try:
        major, minor = (int(part) for part in str(text).split("."))
    except ValueError:
        raise FormatError(f"{where}: format '{text}' is no version like {FORMAT}") from None
    if major > FORMAT_MAJOR:
        raise FormatError(f"{where} is of format {text}; this histostore reads up to {FORMAT_MAJOR}.x: use a newer one")
    if writing and (major, minor) > (FORMAT_MAJOR, FORMAT_MINOR):
        raise FormatError(
            f"{where} is of format {text}; this histostore writes {FORMAT} and may only read it: use a newer one"
        )
