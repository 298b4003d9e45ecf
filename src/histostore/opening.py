"""Which groups of each slide a view reads: its embeddings, their tile set, the points and the counts."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from histostore.errors import DataError, NotFoundError, SpecMismatchError, UsageError, near
from histostore.field_of_view import refuse_mixed
from histostore.part import Part
from histostore.store.lineage import LeftBehind, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from histostore.store.catalog_entries import Known
    from histostore.store.groups import Group
    from histostore.store.manifest import Manifest, Ref
    from histostore.store.store import Store

SPOTS = "spots"
"""The points that a slide's counts are of."""
NAMED = 5
"""Slides that a line names."""


class Opened(NamedTuple):
    """What a view takes from slides."""

    parts: tuple[Part, ...]
    left_out: Mapping[str, str]
    """Slides that were not asked for by name and lack what is read, or have it of other tiles; and why."""


def open_parts(
    store: Store,
    known: Iterable[Known],
    *,
    backbones: Sequence[str] = (),
    tiles: str | None = None,
    region_share: float | None = None,
    named: bool = True,
) -> Opened:
    """Return what a view takes from each slide, in their order; groups are opened where no catalog knows them.

    Parameters
    ----------
    known
        Manifests of the slides, with the headers that are known of them.
    backbones, tiles, region_share
        As of `histostore.view.view`.
    named
        Each of these slides was asked for by name: one without the embeddings is an error, and not left out.

    Raises
    ------
    NotFoundError
        There is no slide, or one that is named (or each) lacks the tile set or embeddings; what there is, is listed.
    SpecMismatchError
        The embeddings of one that is named (or of each) were made of other tiles than those there now under that name,
        or its tiles were cut at other points.
    DataError
        Embeddings of one name are of different backbones.
    """
    if region_share is not None and not 0 < region_share <= 1:
        raise UsageError(f"region_share is {region_share}, outside 0-1")
    known = list(known)
    if not known:
        raise NotFoundError(f"no slides in {store.uri}; ingest one first")
    left_out = {} if named else _lacking(known, backbones, tiles)
    if len(left_out) == len(known):
        left_out = {}  # the first of them says what it has
    chosen = [one for one in known if one.manifest.owner not in left_out]
    parts: list[Part] = []
    unfit: dict[str, LeftBehind] = {}
    for one in chosen:
        part, why = _part(store, one, backbones, tiles, region_share)
        if why is None:
            parts.append(part)
        elif named:
            raise SpecMismatchError(f"slide '{part.slide}': {why}")
        else:
            unfit[part.slide] = why
    if not parts:
        slide, first = next(iter(unfit.items()))
        raise SpecMismatchError(f"slide '{slide}': {first}")
    for slide, why in unfit.items():
        short = why.ref.name.rpartition("/")[2]  # these become keys of AnnData's uns, which have no slash
        left_out[slide] = f"whose {why.ref.kind} '{short}' {why.what} (run {why.command})"
    for name in parts[0].embeddings:
        _same_backbone(parts, name)
    return Opened(tuple(parts), left_out)


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python from looking for garbage while many slides are opened: there is none, for a fifth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def left_out_text(left_out: Mapping[str, str], n: int) -> str:
    """Return a line that names the slides that were left out of `n`, by what they are without."""
    by_reason: dict[str, list[str]] = {}
    for slide, reason in left_out.items():
        by_reason.setdefault(reason, []).append(slide)
    said = []
    for reason, slides in by_reason.items():
        some = ", ".join(slides[:NAMED]) + (" …" if len(slides) > NAMED else "")
        said.append(f"left out {len(slides)} of {n} slides {reason}: {some}")
    return "; ".join(said)


def check_alike(parts: Iterable[Part]) -> None:
    """Refuse slides whose tiles show fields of view that differ, where rows of them are left.

    Raises
    ------
    SpecMismatchError
        As of `histostore.field_of_view.refuse_mixed`.
    """
    refuse_mixed([(p.slide, p.field) for p in parts if p.rows is None or len(p.rows)])


def _lacking(known: Iterable[Known], backbones: Sequence[str], tiles: str | None) -> dict[str, str]:
    """Return the slides without one of these embeddings, and which."""
    found: dict[str, str] = {}
    reasons = {}
    for name in backbones:
        of, _, short = name.rpartition("/")
        reasons[name] = f"without embeddings of {short}" + (f" on '{tiles or of}'" if tiles or of else "")
    for manifest, _ in known:
        for name, reason in reasons.items():
            if not _hits(manifest, name, tiles):
                found.setdefault(manifest.owner, reason)
    return found


def _hits(manifest: Manifest, backbone: str, tiles: str | None) -> list[str]:
    names = manifest.names("embeddings")
    hits = [name for name in names if name == backbone or name.rpartition("/")[2] == backbone]
    return hits if tiles is None else [name for name in hits if name.rpartition("/")[0] == tiles]


def _part(
    store: Store, known: Known, wanted: Sequence[str], tiles: str | None, region_share: float | None
) -> tuple[Part, LeftBehind | None]:
    """Return what a view takes from a slide, and what of it is of other tiles or points than those there now."""
    manifest, headers = known
    embeddings: dict[str, Ref] = {}
    for name in wanted:
        ref = _embedding(manifest, name, tiles)
        tiles, _, short = ref.name.rpartition("/")
        embeddings[short] = ref
    tiles_ref = manifest.find("tiles", tiles) if tiles is not None else None
    points, cut_at = SPOTS, None
    groups: dict[str, Group] = {}
    if tiles_ref is not None:
        about = headers.get(tiles_ref.key)
        if about is not None and about.attrs is not None:
            attrs, cut_at = about.attrs, about.rows_of
        else:
            groups[tiles_ref.key] = group = store.group(tiles_ref)
            attrs, cut_at = group.attrs, rows_of(group.header)
        points = str(attrs["points"])
    part = Part(
        store=store,
        manifest=manifest,
        tiles=tiles_ref,
        points=manifest.find("points", points),
        embeddings=embeddings,
        # counts are of the assay's own spots: the id of a grid cell ("7x12") may be that of a spot elsewhere
        expression=manifest.get("expression", "counts") if points == SPOTS else None,
        region_share=region_share,
        headers=headers,
        _groups=groups,
    )
    if tiles_ref is None:
        return part, None
    if cut_at not in (None, part.points.digest):
        return part, LeftBehind(tiles_ref)
    for ref in embeddings.values():
        if part.rows_of(ref) not in (None, tiles_ref.digest):
            return part, LeftBehind(ref)
    return part, None


def _embedding(manifest: Manifest, backbone: str, tiles: str | None) -> Ref:
    hits = _hits(manifest, backbone, tiles)
    if len(hits) == 1:
        return manifest.find("embeddings", hits[0])
    names = manifest.names("embeddings")
    if hits:
        sets = ", ".join(sorted(name.rpartition("/")[0] for name in hits))
        raise NotFoundError(
            f"slide '{manifest.owner}' has '{backbone}' on several tile sets: give tiles, one of {sets}"
        )
    have = f"it has {', '.join(names)}" if names else "it has none; run embed"
    raise NotFoundError(f"slide '{manifest.owner}' has no embeddings '{backbone}'{near(backbone, names)}; {have}")


def _same_backbone(parts: Sequence[Part], name: str) -> None:
    digests: Mapping[str, str] = {p.slide: p.attrs(p.embeddings[name])["backbone_digest"] for p in parts}
    if len(set(digests.values())) > 1:
        listed = ", ".join(f"{s} {d[:8]}" for s, d in digests.items())
        raise DataError(f"'{name}' is not the same backbone on all slides ({listed}); embed them again with one")
