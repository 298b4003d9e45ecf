"""Slides: open an image of whatever format and read tiles of it.

`open_slide` chooses the reader, after `histostore.slides.check` has looked at the file's own tables:

=========================================  ==================================================
JPEG, PNG                                  `histostore.slides.flat`: decoded once, whole
a folder of images in class folders        `histostore.slides.folder`: a mosaic, each image decoded when it is read
SVS, tiled or stripped TIFF, OME-TIFF      `histostore.slides.tiff`: each segment decoded once
the same behind http(s)                    `histostore.slides.http`: by range requests
the same in a bucket (s3, gs, az)          `histostore.slides.objects`: by range requests
NDPI, MRXS, SCN, SVS with YCbCr JPEG 2000  `histostore.slides.wsi`: whatever openslide opens
=========================================  ==================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.protocols import Slide

__all__ = ["open_slide"]


def open_slide(path: str | Path, *, max_pixels: int | None = None, workers: int = 1) -> Slide:
    """Open a slide with the reader its format needs.

    Parameters
    ----------
    path
        SVS, NDPI, MRXS, SCN, OME-TIFF, tiled or stripped TIFF, JPEG, PNG, …; or the address of an SVS or TIFF,
        http(s) on a server that answers range requests, or s3, gs, az.
    max_pixels
        Refuse an image that claims more. None takes `histostore.slides.check.MAX_PIXELS` (2**36) for formats read
        by segment and `MAX_WHOLE_PIXELS` (2**28) for what can only be decoded whole (JPEG, PNG, one strip).
    workers
        Threads that one `read` decodes with. The pixels do not depend on it.

    Raises
    ------
    SlideError
        The file is missing, empty, truncated, no slide, or claims what it cannot hold; one line that names the
        file, the field and the limit.
    """
    from histostore.slides.choose import open_checked

    return open_checked(path, max_pixels=max_pixels, workers=workers)
