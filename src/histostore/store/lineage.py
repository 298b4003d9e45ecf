"""Which groups of a slide still belong together: rows are joined by number, so they must be of the same tiles.

Embedding i is of tile i, prediction i of embedding i, label i of point i, and a tile knows its point by number. Each
group keeps in its inputs the digest of what its rows are of. When a name moves (``tile --replace``), the groups of the
old one stay under theirs until they are made again: nothing may be joined to them meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from histostore.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store

ROWS_OF = {
    "tiles": "points",
    "labels": "points",
    "pixels": "tiles",
    "embeddings": "tiles",
    "predictions": "embeddings",
}
"""Kind of group -> kind that its rows are of, which is also the key of that one's digest in its inputs."""

_SAID = {
    "tiles": ("were cut at other points", "tile --replace"),
    "labels": ("are of other points", "annotate --replace"),
    "pixels": ("are of other tiles", "tile --replace"),
    "embeddings": ("were made of other tiles", "embed --replace"),
    "predictions": ("were made of other embeddings or tiles", "predict --replace"),
}


class LeftBehind(NamedTuple):
    """A group whose rows are of something else than what there is now under that name."""

    ref: Ref

    @property
    def what(self) -> str:
        """What is wrong with it, to be said after its name."""
        return f"{_SAID[self.ref.kind][0]} than those there now"

    @property
    def command(self) -> str:
        """What makes it anew."""
        return _SAID[self.ref.kind][1]

    def __str__(self) -> str:
        return f"{self.ref.kind} '{self.ref.name}' {self.what}; run {self.command}"


class Told(NamedTuple):
    """What a header tells of its rows."""

    rows_of: str | None
    """Digest of the group that they are of; None where it does not tell (a grid brings its own points)."""
    points: str | None
    """Of tiles and labels: the name of their points."""


def rows_of(header: Mapping[str, Any]) -> str | None:
    """Return the digest of the group that the rows of a group are of, by its header; None where it does not tell."""
    found = header["inputs"].get(ROWS_OF.get(header["kind"], ""))
    return found if isinstance(found, str) else None


def left_behind(ref: Ref, manifest: Manifest, told_of: Callable[[Ref], Told]) -> LeftBehind | None:
    """Return what to say of a group that belongs to others than those of the manifest, None where it fits.

    Parameters
    ----------
    told_of
        Returns what the header of a group of this manifest tells.
    """
    of, points = told_of(ref)
    if of is None:
        return None
    tiles = ref.name.rpartition("/")[0]
    match ref.kind:
        case "tiles" | "labels":
            now = manifest.get("points", str(points))
        case "pixels":
            now = manifest.get("tiles", ref.name)
            if now is None:
                return None  # under a name of its own there are no tiles to be taken for its own
        case "embeddings":
            now = manifest.get("tiles", tiles)
        case "predictions":
            made = [r for r in manifest.of_kind("embeddings") if r.digest == of and r.name.rpartition("/")[0] == tiles]
            now = made[0] if made and left_behind(made[0], manifest, told_of) is None else None
        case _:
            return None
    return None if now is not None and now.digest == of else LeftBehind(ref)


def all_left_behind(store: Store, manifest: Manifest) -> list[LeftBehind]:
    """Return all groups of a manifest that are left behind, by kind and name.

    Their headers are read; of a damaged one nothing is told, which is for `histostore verify` to say.
    """
    headers: dict[str, Told] = {}

    def told_of(ref: Ref) -> Told:
        if ref.key not in headers:
            try:
                header = store.header(ref)
                headers[ref.key] = Told(rows_of(header), header["attrs"].get("points"))
            except CorruptionError:
                headers[ref.key] = Told(None, None)
        return headers[ref.key]

    refs = [ref for kind in ROWS_OF for ref in manifest.of_kind(kind)]
    return [found for ref in refs if (found := left_behind(ref, manifest, told_of)) is not None]
