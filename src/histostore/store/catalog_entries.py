"""What the catalog has of one owner's groups: lines of text, made into entries and headers when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from histostore.specs import canonical_json
from histostore.store.lineage import rows_of
from histostore.store.manifest import Manifest, Ref

if TYPE_CHECKING:
    from collections.abc import Iterator

_ATTRS_BYTES = 4096
"""Longer attributes (categories of labels, properties of images) are left to the header itself."""


class Header(NamedTuple):
    """What GROUP.json says, in short."""

    rows: int
    bytes: int
    files: int
    rows_of: str | None
    """Digest of the group that its rows are of; None where it does not tell."""
    text: str | None
    """JSON of its attributes; None where they are long: then the header itself is to be read."""

    @property
    def attrs(self) -> Mapping[str, Any] | None:
        """Its attributes, parsed when asked for: most slides share those of their tiles and embeddings."""
        return _attributes(self.text) if self.text is not None else None


@lru_cache(1024)
def _attributes(text: str) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Entries(Mapping[str, Ref]):
    """Entries of a manifest, made when asked for: of many slides most are not."""

    owner: str
    lines: Mapping[str, str]

    def __getitem__(self, key: str) -> Ref:
        digest, attempt, sha256, _ = self.lines[key].split("\t", 3)
        kind, _, name = key.partition("/")
        return Ref(self.owner, kind, name, digest, attempt, sha256)

    def __contains__(self, key: object) -> bool:
        return key in self.lines

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True, slots=True, eq=False)
class _Headers(Mapping[str, Header]):
    """Headers by ``kind/name``, made when asked for."""

    lines: Mapping[str, str]

    def __getitem__(self, key: str) -> Header:
        *_, rows, size, files, of, text = self.lines[key].split("\t", 7)
        if not rows:
            raise KeyError(key)
        return Header(int(rows), int(size), int(files), of or None, text or None)

    def __iter__(self) -> Iterator[str]:
        return (key for key, line in self.lines.items() if "\t\t\t\t" not in line)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Known(NamedTuple):
    """A slide's newest manifest with the headers that are known of its groups, by ``kind/name``."""

    manifest: Manifest
    headers: Mapping[str, Header]


_TABS = 8


def _line(ref: Ref, header: Mapping[str, Any] | None) -> str:
    about = ["", "", "", "", ""]
    if header is not None:
        sizes, text = [int(size) for size, _ in header["files"].values()], canonical_json(header["attrs"])
        about = [f"{header['rows']:d}", f"{sum(sizes)}", f"{len(sizes)}", rows_of(header) or ""]
        about.append(text if len(text) <= _ATTRS_BYTES else "")
    return "\t".join([ref.key, ref.digest, ref.attempt, ref.sha256, *about])


def written_lines(identity: str, manifest: Manifest, headers: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return what is kept of a manifest and its headers; None where a name has a tab or line end: none of ours has."""
    about = canonical_json([identity, manifest.write_id, manifest.parent_id, manifest.written])
    lines = [_line(ref, headers.get(key)) for key, ref in sorted(manifest.entries.items())]
    if any("\n" in line or line.count("\t") != _TABS for line in lines):
        return None
    return "\n".join([about, *lines])


def read_lines(owner: str, number: int, text: str, *, deleted: bool) -> Known:
    """Return what `written_lines` kept."""
    about, *lines = text.split("\n")
    plain = about[2:-2].split('","')  # a list of four texts, as JSON: where no character is escaped
    _, write_id, parent, written = plain if len(plain) == 4 and "\\" not in about else json.loads(about)
    groups = dict(line.split("\t", 1) for line in lines)
    return Known(Manifest(owner, number, _Entries(owner, groups), deleted, write_id, parent, written), _Headers(groups))


def is_of(text: str, identity: str) -> bool:
    """Whether kept lines are of that manifest."""
    return text.startswith(f'["{identity}"')
