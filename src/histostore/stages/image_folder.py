"""A folder of images as one slide: every image a point, its subfolder a label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from histostore.errors import SlideError, UsageError
from histostore.tables import Points, Report

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.io.sheet import Sample
    from histostore.slides.folder import FolderSlide

CLASS = "class"
"""Obs column: the subfolder that an image lies in."""

ELSEWHERE = ("st_counts", "st_spots", "visium", "anndata", "points", "geojson")
"""What gives places on a slide; images of a folder have their own."""


def check_folder(sample: Sample, path: Path | str) -> None:
    """Refuse a folder given as a slide: it is taken for a folder of images only where that is said.

    Raises
    ------
    SlideError
        A folder that was not called one.
    UsageError
        No folder that was called one, or one with an assay.
    """
    if isinstance(path, str):
        if sample.image_folder:
            raise UsageError(f"{path}: a folder of images must lie on this machine; download it")
        return
    if path.is_dir() and not sample.image_folder:
        raise SlideError(f"{path}: a folder, not a slide file; images in class-named folders come by --image-folder")
    if not sample.image_folder:
        return
    if not path.is_dir():
        raise UsageError(f"{path} is no folder; a slide file is given with --image")
    given = [name for name in ELSEWHERE if getattr(sample, name) is not None]
    if given:
        raise UsageError(f"slide '{sample.slide}' is a folder of images, {given[0]} cannot belong to it; leave it out")


def points_of_images(image: FolderSlide) -> tuple[Points, pd.DataFrame | None, Report]:
    """Return the images as points on the mosaic, with their class.

    Returns
    -------
    points
        Ids are ``class/name.png``, relative to the folder.
    obs
        The column ``class``, in the order of the points, missing for an image outside all subfolders; None where there
        are no subfolders.
    report
        Counts: images, unreadable ones (their headers; damaged pixels come to light as unreadable tiles), files that
        are none, images without a class.
    """
    found = image.images
    points = Points(ids=found.names, xy=image.centres, assay="images")
    obs = pd.DataFrame({CLASS: list(found.classes)}, index=pd.Index(found.names, name="id"), dtype="str")
    without = found.classes.count(None)
    counts = {
        "images": len(found.names),
        "unreadable images": len(found.unreadable),
        "files that are no images": found.others,
        "images without a class": without,
    }
    notes = [f"image sizes: {image.properties['histostore.sizes']}"]
    if found.unreadable:
        more = ", …" if len(found.unreadable) > 3 else ""
        notes.append(f"unreadable: {', '.join(found.unreadable[:3])}{more}")
    return points, obs if without < len(points) else None, Report(counts, tuple(notes))
