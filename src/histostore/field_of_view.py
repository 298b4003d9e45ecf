"""Fields of view: how much tissue a tile shows, and which tiles may be taken as one set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from histostore.errors import SpecMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MPP_TOLERANCE = 0.10
"""Resolutions that differ by no more are one: scanners say 0.23 and 0.25 of the same magnification."""


class FieldOfView(NamedTuple):
    """What the tiles of a slide show."""

    px: int | None
    """Edge of a tile in its own pixels; None where it is not told."""
    mpp: float | None
    """µm per such pixel, as read; None where the slide has no resolution."""

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> FieldOfView:
        """Return the field of a tile set from its attributes."""
        px, mpp = attrs.get("out_px"), attrs.get("mpp")
        return cls(None if px is None else round(px), None if mpp is None else float(mpp))

    def is_like(self, other: FieldOfView) -> bool:
        """Whether tiles of both may be taken as one set; what one does not tell is not compared."""
        if None not in (self.px, other.px) and self.px != other.px:
            return False
        if self.mpp is None or other.mpp is None:
            return True
        return max(self.mpp, other.mpp) <= (1 + MPP_TOLERANCE) * min(self.mpp, other.mpp)

    def __str__(self) -> str:
        px = "unknown size" if self.px is None else f"{self.px} px"
        return px if self.mpp is None else f"{px} at {self.mpp:.4g} µm"


def refuse_mixed(fields: Iterable[tuple[str, FieldOfView]]) -> None:
    """Refuse tiles of several slides, by (slide, field), that are not one set.

    Raises
    ------
    SpecMismatchError
        Tiles of two slides differ in size, or in resolution by more than `MPP_TOLERANCE`.
    """
    first: dict[FieldOfView, str] = {}
    for slide, field in fields:
        first.setdefault(field, slide)
    told = [(slide, field) for field, slide in first.items()]
    sized = [(slide, field) for slide, field in told if field.px is not None]
    scaled = sorted(((s, f) for s, f in told if f.mpp is not None), key=lambda one: one[1].mpp or 0.0)
    pairs = [(sized[0], one) for one in sized[1:]]
    pairs += [(scaled[0], scaled[-1])] if scaled else []
    for (slide, field), (other, its) in pairs:
        if not field.is_like(its):
            raise SpecMismatchError(
                f"tiles of slide '{slide}' are {field} and those of slide '{other}' are {its}: embeddings of both are "
                "no one set; give slides of one kind (--slides, slides=), or tile and embed some again alike "
                "(tile --px --mpp --replace)"
            )
