"""What a stage is asked to do: frozen values that print, compare, hash and have a digest.

A digest is the sha256 of a canonical JSON of the spec's class and fields. Fields that are None are left out, so
that a field added later with the default None changes no old digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Self

from histostore.errors import UsageError, near
from histostore.ids import check_name, check_slug
from histostore.units import check_mpp, mpp_of_magnification, um_to_px

if TYPE_CHECKING:
    from collections.abc import Mapping

DIGEST_CHARS = 32
"""Hex characters of a sha256 kept in names and paths (128 bits)."""


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, shortest round-trip floats, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_of(value: Any) -> str:
    """Return the digest (32 hex characters) of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:DIGEST_CHARS]


class SpecBase:
    """What specs share: a plain-JSON form and a digest."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are not None as plain JSON values."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {k: _plain(v) for k, v in fields.items() if v is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the spec that `to_json` wrote; an unknown field is a `UsageError`."""
        known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key in value:
            if key not in known:
                msg = f"{cls.__name__} has no field '{key}'{near(key, known)}"
                raise UsageError(msg)
        # None is left out of JSON, also where it is no default
        missing = [name for name, f in known.items() if f.default is f.default_factory is dataclasses.MISSING]
        given = {name: None for name in missing if str(known[name].type).endswith("| None")} | dict(value)
        for name, f in known.items():
            made: Any = f.default_factory
            if isinstance(made, type) and issubclass(made, SpecBase) and isinstance(given.get(name), dict):
                given[name] = made.from_json(given[name])  # a spec within
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})

    @property
    def digest(self) -> str:
        """The identity of this spec."""
        return digest_of({"spec": type(self).__name__, **self.to_json()})


def _plain(value: Any) -> Any:
    if isinstance(value, SpecBase):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def require(condition: bool, message: str) -> None:
    """Raise a `UsageError` with the message unless the condition holds."""
    if not condition:
        raise UsageError(message)


def settle_numbers(spec: SpecBase) -> None:
    """Make the numbers of a spec those that its fields are of, so that 112 and 112.0 are one spec with one digest.

    Raises
    ------
    UsageError
        One is no number, or no whole one where the field is of such; a field of yes or no has something else.
    """
    for f in dataclasses.fields(spec):  # type: ignore[arg-type]
        value, kind = getattr(spec, f.name), str(f.type).removesuffix(" | None")
        if value is None and kind != f.type:
            continue
        if kind == "bool":
            require(isinstance(value, bool), f"{f.name} is {value!r}, neither true nor false")
        elif kind in ("int", "float"):
            require(not isinstance(value, bool), f"{f.name} is {value!r}, no number")
            require(isinstance(value, Real) and math.isfinite(value), f"{f.name} is {value!r}, no number")
            require(kind == "float" or value == int(value), f"{f.name} is {value}, no whole number")
            object.__setattr__(spec, f.name, int(value) if kind == "int" else float(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSpec(SpecBase):
    """How tissue is told from glass, on an overview of the slide."""

    method: Literal["otsu-saturation"] = "otsu-saturation"
    mpp: float = 8.0
    """Resolution of the overview in µm per pixel (the overview is never finer than the slide)."""
    max_px: int = 4096
    """Longest edge of the overview."""
    min_area_um2: float = 10_000.0
    """Islands of tissue smaller than this are dropped."""
    max_hole_um2: float = 10_000.0
    """Holes smaller than this are filled."""
    reject_pen: bool = True
    """Blue, green, red and black ink is not tissue."""

    def __post_init__(self) -> None:
        settle_numbers(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TileSpec(SpecBase):
    """Where tiles lie, how large they are and at what resolution.

    Build one with `at_spots`, `grid` or `at_points`; a size is given either in px or in µm.
    """

    at: Literal["spots", "grid", "points"]
    px: int | None = None
    """Edge of a tile in pixels at `mpp`."""
    um: float | None = None
    """Edge of a tile in microns; pixels follow from `mpp`."""
    mpp: float | None = None
    """Microns per pixel of the stored tile; None is native (level 0 as it is)."""
    mag: float | None = None
    """The magnification that `mpp` was given as, if it was."""
    overlap: float = 0.0
    """Grid only: share of the edge that neighbours have in common, 0 <= overlap < 1."""
    min_tissue: float = 0.0
    """Tiles with a smaller share of tissue are left out (counted in the report)."""
    max_tiles: int | None = None
    """Keep a random sample of this many, by `seed`."""
    seed: int = 0
    edge: Literal["pad", "drop"] = "pad"
    """Tiles that stick out of the image: kept with white and the status `padded`, or left out."""
    in_tissue: bool = True
    """Spots only: leave out the spots that the assay calls off tissue."""
    allow_upsample: bool = False
    stain: Literal["macenko", "reinhard"] | None = None
    """Stain normalisation of the stored pixels, against the package's fixed reference."""
    points: str | None = None
    """Name of the points group (spots, points)."""
    regions: str | None = None
    """Keep tiles whose centre lies in the polygons of this labels group."""
    mask: MaskSpec = field(default_factory=MaskSpec)

    def __post_init__(self) -> None:
        if self.mpp is not None:
            check_mpp(self.mpp)
        settle_numbers(self)
        require(self.at in ("spots", "grid", "points"), f"at is {self.at!r}, not spots, grid or points")
        require((self.px is None) != (self.um is None), "give the tile's size as px or as um, one of them")
        if self.px is not None:
            require(
                8 <= self.px <= 8192,
                f"px is {self.px}, not a whole number in 8-8192",
            )
        if self.um is not None:
            require(0 < self.um <= 20_000, f"um is {self.um}, outside 0-20000")
        require(0 <= self.overlap < 1, f"overlap is {self.overlap}, outside 0 <= overlap < 1")
        require(0 <= self.min_tissue <= 1, f"min_tissue is {self.min_tissue}, outside 0-1")
        require(self.max_tiles is None or self.max_tiles > 0, f"max_tiles is {self.max_tiles}, not positive")
        require(self.at == "grid" or self.overlap == 0, "overlap is for grids; spots lie where they lie")
        require(self.stain in (None, "macenko", "reinhard"), f"stain is {self.stain!r}, not macenko or reinhard")
        require(self.edge in ("pad", "drop"), f"edge is {self.edge!r}, not pad or drop")
        if self.points is not None:
            check_name(self.points, "points name")

    @classmethod
    def at_spots(
        cls,
        *,
        px: int | None = None,
        um: float | None = None,
        mpp: float | Literal["native"] | None = "native",
        mag: float | None = None,
        **options: Any,
    ) -> TileSpec:
        """Return the spec of one tile centred on every spot of the slide's `spots` points."""
        points = options.pop("points", "spots")
        return cls(at="spots", px=px, um=um, mpp=_mpp(mpp, mag), mag=mag, points=points, **options)

    @classmethod
    def at_points(
        cls,
        points: str,
        *,
        px: int | None = None,
        um: float | None = None,
        mpp: float | Literal["native"] | None = "native",
        mag: float | None = None,
        **options: Any,
    ) -> TileSpec:
        """Return the spec of one tile centred on every point of the points group `points`."""
        return cls(at="points", px=px, um=um, mpp=_mpp(mpp, mag), mag=mag, points=points, **options)

    @classmethod
    def grid(
        cls,
        *,
        px: int | None = None,
        um: float | None = None,
        mpp: float | Literal["native"] | None = "native",
        mag: float | None = None,
        min_tissue: float = 0.5,
        edge: Literal["pad", "drop"] = "drop",
        **options: Any,
    ) -> TileSpec:
        """Return the spec of a regular grid over the tissue."""
        return cls(at="grid", px=px, um=um, mpp=_mpp(mpp, mag), mag=mag, min_tissue=min_tissue, edge=edge, **options)

    @property
    def default_name(self) -> str:
        """The name a tile set gets when the user gives none: ``spots``, ``grid@0.5``, the points' name."""
        if self.at == "grid":
            return f"grid@{self.mpp:g}" if self.mpp is not None else "grid"
        return self.points or self.at

    def out_px(self, slide_mpp: float) -> int:
        """Return the edge of a stored tile in pixels on a slide of that mpp."""
        if self.px is not None:
            return self.px
        return um_to_px(float(self.um or 0), self.mpp if self.mpp is not None else slide_mpp)


def _mpp(mpp: float | str | None, mag: float | None) -> float | None:
    if mag is not None:
        require(mpp in (None, "native"), "give mpp or mag, one of them")
        return mpp_of_magnification(mag)
    if mpp in (None, "native"):
        return None
    try:
        return float(mpp)
    except ValueError:
        msg = f"mpp is {mpp!r}: give a number of µm per pixel or 'native'"
        raise UsageError(msg) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelSpec(SpecBase):
    """How the pixels of tiles are kept."""

    codec: Literal["jpeg", "lossless", "slide"] = "jpeg"
    """JPEG 4:4:4, zstd, or none copied (read from the slide whenever they are needed)."""
    quality: int | None = 95
    shard_tiles: int | None = None
    """Tiles per shard; None chooses by tile size (a shard is a task and a unit of resume)."""

    def __post_init__(self) -> None:
        require(
            self.codec in ("jpeg", "lossless", "slide"),
            f"codec is {self.codec!r}, not jpeg, lossless or slide",
        )
        if self.codec != "jpeg":
            object.__setattr__(self, "quality", None)
        else:
            require(
                self.quality is not None and 1 <= self.quality <= 100,
                f"quality is {self.quality}, outside 1-100",
            )
        require(self.shard_tiles is None or self.shard_tiles > 0, f"shard_tiles is {self.shard_tiles}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSpec(SpecBase):
    """How embeddings are laid out; the values belong to the backbone."""

    dtype: Literal["float16", "float32"] = "float16"
    shard_rows: int = 2048
    """Rows per shard: a task, a file, a unit of resume."""
    chunk_rows: int = 256
    """Rows per checked chunk; divides `shard_rows`."""

    def __post_init__(self) -> None:
        require(self.dtype in ("float16", "float32"), f"dtype is {self.dtype!r}, not float16 or float32")
        require(
            self.chunk_rows > 0 and self.shard_rows % self.chunk_rows == 0,
            "chunk_rows must divide shard_rows",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSpec(SpecBase):
    """A backbone's identity: weights, preprocessing, pooling, numbers. Its digest is the cache key.

    Two records with the same digest give the same embeddings on one engine; anything that changes a value
    belongs in here.
    """

    name: str
    """How the user calls it, and ``X_<name>`` in obsm."""
    source: str
    """``package:…``, ``timm:…``, ``torchvision:…``, ``hub:…``, ``file:…`` or ``module:…``."""
    weights_sha256: str
    """Of the weights file, or of the state dict in order where there is no one file; of the code's own record
    for a backbone without weights."""
    dim: int
    input_px: int
    """Edge of the image the network sees; tiles of another size are resized."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    pooling: str = "model"
    """``model`` (what the network's own head-less forward gives), ``cls``, ``mean``, ``cls+mean``."""
    dihedral: bool = False
    """Mean over the eight symmetries of the square."""
    mpp: float | None = None
    """Resolution the model was trained at, None where it was no histology model."""
    licence: str | None = None

    def __post_init__(self) -> None:
        check_slug(self.name, "backbone name")
        require(
            self.dim > 0 and self.input_px > 0,
            f"dim {self.dim} and input_px {self.input_px} must be positive",
        )

    @property
    def digest(self) -> str:
        """The identity of the values: name and licence do not count."""
        fields = self.to_json()
        for cosmetic in ("name", "licence", "mpp"):
            fields.pop(cosmetic, None)
        return digest_of({"spec": "BackboneSpec", **fields})
