"""Which pages of a TIFF are the slide and its levels, and what its metadata says of resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree as ET

from histostore.errors import SlideError
from histostore.slides.resolution import UM_PER_CM, UM_PER_INCH, settle_mpp

if TYPE_CHECKING:
    import tifffile

type Form = Literal["plain", "openslide", "aperio"]
"""Whose rules a TIFF follows; see `histostore.slides.tiff.TiffSlide`."""

AXES = ("YXS", "YX", "SYX")
PHOTOMETRICS = {"RGB": (3, 4), "YCBCR": (3,), "MINISBLACK": (1,)}
MAX_ASPECT_ERROR = 0.02
UM = {
    "pm": 1e-6,
    "nm": 1e-3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": UM_PER_INCH,
}
UM_PER_UNIT = {2: UM_PER_INCH, 3: UM_PER_CM}
"""By the code of tag ResolutionUnit; 1 is no unit."""


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages of a slide, level 0 first (each a `tifffile.TiffPage`)."""

    pages: tuple[Any, ...]
    is_ome: bool = False
    is_aperio: bool = False


def find_pages(file: tifffile.TiffFile, uri: str, *, form: Form = "plain") -> Pages:
    """Return the pages of the first image and of its levels.

    Of ``"aperio"`` these are all tiled pages, of ``"openslide"`` (its generic-tiff) the first and the reduced ones.

    Raises
    ------
    SlideError
        The first image is a stack, or its pixels are not uint8 RGB, RGBA or grey.
    """
    if form != "plain":
        tiled: list[Any] = [page for page in map(_whole, file.pages) if page.is_tiled]
        levels = [page for i, page in enumerate(tiled) if i == 0 or page.is_reduced or form == "aperio"]
        for page in levels:
            _check_pixels(page, uri)
        return Pages(tuple(sorted(levels, key=lambda page: -page.imagewidth)), is_aperio=form == "aperio")
    series = file.series[0]
    if series.axes not in AXES:
        msg = f"{uri}: the first image has axes {series.axes} {series.shape}; give one plane of RGB (YXS)"
        raise SlideError(msg)
    pages: list[Any] = [_whole(level.pages[0]) for level in series.levels]
    first = pages[0]
    _check_pixels(first, uri)
    if not file.is_ome:
        # tifffile takes only some of a plain file's reduced pages for levels
        known = {page.offset for page in pages}
        others: list[Any] = [_whole(page) for page in file.pages[1:]]
        pages += [page for page in others if page.offset not in known and _is_level_of(page, first)]
    pages.sort(key=lambda page: -page.imagewidth)
    return Pages(tuple(pages), is_ome=bool(file.is_ome))


def _whole(page: Any) -> Any:
    """Return a page with its own tags, also where tifffile keeps a light one."""
    return page.aspage()


def _check_pixels(page: Any, uri: str) -> None:
    if page.dtype is None or page.dtype.name != "uint8" or page.bitspersample != 8:
        what = page.dtype.name if page.dtype is not None else f"{page.bitspersample}-bit"
        msg = f"{uri}: pixels are {what}, only uint8 is read; convert it to 8-bit RGB"
        raise SlideError(msg)
    photometric, compression = code_name(page.photometric), code_name(page.compression)
    if compression.isdigit():
        msg = f"{uri}: compression {compression} is not known; convert it to JPEG, LZW or deflate"
        raise SlideError(msg)
    if page.samplesperpixel not in PHOTOMETRICS.get(photometric, ()):
        msg = f"{uri}: pixels are {page.samplesperpixel} channels of {photometric}, not RGB; convert it to 8-bit RGB"
        raise SlideError(msg)
    if photometric == "YCBCR" and "JPEG" not in compression:
        msg = f"{uri}: YCbCr pixels that are not JPEG ({compression}); convert it to 8-bit RGB"
        raise SlideError(msg)


def code_name(code: Any) -> str:
    """Return the name of a TIFF code, its number where tifffile knows none."""
    return str(getattr(code, "name", code))


def _is_level_of(page: Any, first: Any) -> bool:
    """Tell a reduced copy of the first page from labels, macros and other images."""
    if not page.is_reduced or not 0 < page.imagewidth < first.imagewidth or page.imagelength <= 0:
        return False
    ratio = (first.imagewidth / page.imagewidth) / (first.imagelength / page.imagelength)
    same_pixels = bool(page.dtype == first.dtype and page.samplesperpixel == first.samplesperpixel)
    return same_pixels and abs(ratio - 1) < MAX_ASPECT_ERROR


def tiff_mpp(file: tifffile.TiffFile, found: Pages, uri: str) -> tuple[float | None, str]:
    """Return microns per pixel and their origin: OME's PhysicalSize, else the resolution tags, else None."""
    if found.is_ome and file.ome_metadata:
        size = ome_physical_size(file.ome_metadata)
        if size is not None:
            return settle_mpp(*size, "OME PhysicalSizeX/Y", uri)
    first = found.pages[0]
    if found.is_aperio:
        return _aperio_mpp(first.description, uri)
    um = UM_PER_UNIT.get(int(first.resolutionunit))
    x, y = first.resolution
    if um is None or not (x > 0 and y > 0) or "XResolution" not in first.tags:
        return None, "none: the file does not say (no PhysicalSize, no resolution tags with a unit)"
    return settle_mpp(um / x, um / y, "tiff.XResolution/YResolution", uri)


def _aperio_mpp(description: str, uri: str) -> tuple[float | None, str]:
    said = aperio_properties(description).get("aperio.MPP")
    if said is None:
        return None, "none: the file does not say"
    try:
        value = float(said)
    except ValueError:
        return None, f"none: aperio.MPP says {said!r}"
    return settle_mpp(value, value, "aperio.MPP", uri)


def aperio_properties(description: str) -> dict[str, str]:
    """Return what Aperio's description says (``|AppMag = 20|MPP = 0.499``), under the names openslide gives it."""
    said = {}
    for part in description.split("|")[1:]:
        key, equals, value = part.partition("=")
        if equals:
            said[f"aperio.{key.strip()}"] = value.strip()
    common = {"openslide.objective-power": "AppMag", "openslide.mpp-x": "MPP", "openslide.mpp-y": "MPP"}
    found = {}
    for name, key in common.items():
        try:
            found[name] = f"{float(said[f'aperio.{key}']):.17g}"
        except (KeyError, ValueError):
            continue
    return {"openslide.vendor": "aperio", **found, **said}


def tiff_properties(found: Pages) -> dict[str, str]:
    """Return what the first page says of itself."""
    first = found.pages[0]
    return {
        "histostore.format": "OME-TIFF" if found.is_ome else "SVS" if found.is_aperio else "TIFF",
        "tiff.Compression": code_name(first.compression),
        "tiff.Photometric": code_name(first.photometric),
        **({"tiff.ImageDescription": first.description} if first.description else {}),
        **({"tiff.Software": first.software} if first.software else {}),
    }


def ome_physical_size(xml: str) -> tuple[float, float] | None:
    """Return the pixel size (x, y) in µm of the first image in OME-XML, None where it is not given in a length."""
    try:
        root = ET.fromstring(xml)
    except ET.ParseError:
        return None
    pixels = next((node for node in root.iter() if node.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return None
    sizes = []
    for axis in "XY":
        unit = UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            value = float(pixels.get(f"PhysicalSize{axis}", ""))
        except ValueError:
            return None
        if unit is None:
            return None
        sizes.append(value * unit)
    return sizes[0], sizes[1]
