"""Which public data there is: one TOML file each, with addresses, licence and citation."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from histostore.errors import DataError, NotFoundError, UsageError, near
from histostore.ids import check_slug

if TYPE_CHECKING:
    from collections.abc import Mapping

PER_CASE = ("all", "newest", "single")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """One file to be had; what is not known of it is None."""

    path: str
    """Where it goes, relative to the data set's folder."""
    url: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GdcQuery:
    """A question to the Genomic Data Commons: which files."""

    name: str
    """Also the folder of its files and the stem of its table."""
    filters: Mapping[str, tuple[str, ...]]
    """Field to the values it may have; all must hold."""
    sample_types: tuple[str, ...]
    """Every sample a file was made from must be of one of these."""
    per_case: str
    """``all`` files of a case, its ``newest``, or only cases with a ``single`` one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Public data under one name."""

    name: str
    title: str
    licence: str
    licence_url: str
    citation: str
    homepage: str
    note: str = ""
    next: str = ""
    """What to do with the files."""
    files: tuple[Remote, ...] = ()
    endpoint: str = ""
    """Of the GDC's API, where there are queries."""
    gdc: tuple[GdcQuery, ...] = ()


def datasets() -> list[Dataset]:
    """Return the catalogue, by name."""
    folder = resources.files("histostore.fetch") / "data"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return [read_dataset(f.name.removesuffix(".toml"), f.read_text(encoding="utf-8")) for f in files]


def find(name: str) -> Dataset:
    """Return the data set of that name; near names are suggested where there is none."""
    known = {d.name: d for d in datasets()}
    if name not in known:
        hint = near(name, known) or "; there are " + ", ".join(known)
        raise NotFoundError(f"no public data set '{name}'{hint}")
    return known[name]


def read_dataset(name: str, text: str) -> Dataset:
    """Return the data set that a TOML text describes.

    Raises
    ------
    DataError
        Not TOML, a field missing or unknown, a path that leads out of the folder, an address that is no http.
    """
    try:
        value: dict[str, Any] = tomllib.loads(text)
        files = tuple(one for entry in value.pop("files", []) for one in _files(entry, name))
        gdc = tuple(_query(entry, name) for entry in value.pop("gdc", []))
        found = Dataset(name=check_slug(name, "data set name"), files=files, gdc=gdc, **value)
    except (tomllib.TOMLDecodeError, TypeError, KeyError, UsageError) as error:
        raise DataError(f"data set '{name}': {error}") from None
    if not files and not gdc:
        raise DataError(f"data set '{name}' names no files")
    if gdc:
        check_url(found.endpoint)
    return found


def _files(entry: dict[str, Any], name: str) -> list[Remote]:
    each = entry.pop("each", None)
    if each is None:
        made = [Remote(**entry)]
    else:
        made = [Remote(path=entry["path"].format(one), url=entry["url"].format(one)) for one in each]
    for remote in made:
        check_path(remote.path, name)
        check_url(remote.url)
    return made


def _query(entry: dict[str, Any], name: str) -> GdcQuery:
    filters = {k: tuple(v) for k, v in entry.pop("filters").items()}
    query = GdcQuery(filters=filters, sample_types=tuple(entry.pop("sample_types")), **entry)
    if query.per_case not in PER_CASE:
        raise DataError(f"data set '{name}': per_case is '{query.per_case}', not {', '.join(PER_CASE)}")
    return query


def check_path(path: str, what: str) -> str:
    """Return a relative path that stays inside its folder, else raise `DataError`."""
    parts = PurePosixPath(path).parts
    bad = not parts or path.startswith("/") or any(p in ("..", ".") or p.startswith(".") for p in parts)
    if bad or "\\" in path or "\0" in path:
        raise DataError(f"{what}: file name {path!r} leads out of its folder or is hidden; it is not fetched")
    return path


def check_url(url: str) -> str:
    """Return an http(s) address, else raise `UsageError`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"{url!r} is no http or https address")
    return url


def at_mirror(url: str, base_url: str | None) -> str:
    """Return the address on a mirror that keeps the paths: scheme and host are replaced by `base_url`."""
    if base_url is None:
        return url
    parts = urlsplit(url)
    return check_url(base_url).rstrip("/") + parts.path + (f"?{parts.query}" if parts.query else "")
