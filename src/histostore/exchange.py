"""Feature files of other tools, many slides at a time: which file is of which slide, and what is to be done with each.

What is done comes back as calls, one per slide, and nothing is done before they are: the command line goes on after one
that fails, Python (`finished`) does not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from histostore.errors import HistostoreError, NotFoundError
from histostore.io.feature_files import check_tool, read_features
from histostore.stages.export_features import export_features
from histostore.stages.import_features import import_features
from histostore.stages.result import StageResult
from histostore.stages.twins import Twins

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from histostore.progress import Progress
    from histostore.stages.imported_tiles import ImportSpec
    from histostore.store.store import Store

type Calls = list[tuple[str, Callable[[], list[StageResult]]]]
"""One call per slide, by its id."""


def imports(
    store: Store,
    found: Sequence[tuple[str, Path]],
    spec: ImportSpec,
    *,
    image: str | Path | None = None,
    meta: Mapping[str, str] | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Calls:
    """Return what brings the features of each slide in.

    Parameters
    ----------
    found
        Slides and their files, as `histostore.io.feature_files.find_features` returns them.
    image
        The image of the one slide there is, or a folder of images that are called what their slides are
        (see `lacks_images`).
    meta, replace, progress
        As of `histostore.stages.import_features.import_features`.
    """
    place, twins = Path(image) if image is not None else None, Twins(store)

    def one(slide: str, file: Path) -> list[StageResult]:
        own = image_of(place, slide) if place is not None else None
        return [
            import_features(
                store, slide, read_features(file, slide), spec, image=own, meta=meta, replace=replace, twins=twins,
                progress=progress,
            )
        ]  # fmt: skip

    return [(slide, partial(one, slide, file)) for slide, file in found]


def exports(
    store: Store,
    slides: Sequence[str],
    folder: str | Path,
    *,
    backbone: str,
    format: str,
    tiles: str | None = None,
    overwrite: bool = False,
) -> Calls:
    """Return what writes the embeddings of each slide as a file of another tool.

    Raises
    ------
    UsageError
        There is no such format.
    """
    tool = check_tool(format)

    def one(slide: str) -> list[StageResult]:
        return [export_features(store, slide, folder, backbone=backbone, format=tool, tiles=tiles, overwrite=overwrite)]

    return [(slide, partial(one, slide)) for slide in slides]


def lacks_images(found: Sequence[tuple[str, Path]], image: str | Path | None) -> bool:
    """Whether `image` is one file for many slides."""
    return image is not None and len(found) > 1 and not Path(image).is_dir()


def image_of(place: Path, slide: str) -> Path:
    """Return the image of a slide: `place` itself, or the one file in that folder that is called what the slide is.

    Raises
    ------
    NotFoundError
        The folder has none, or several.
    """
    if not place.is_dir():
        return place
    images = sorted(p for p in place.iterdir() if p.stem == slide and p.is_file())
    if len(images) != 1:
        said = ", ".join(p.name for p in images) or "none"
        raise NotFoundError(f"{place} must have one image of slide '{slide}', it has {said}")
    return images[0]


def finished(calls: Calls) -> list[StageResult]:
    """Make the calls, one after the other; an error ends them, and is told with the slide it is of."""
    done = []
    for slide, call in calls:
        try:
            done += call()
        except HistostoreError as error:
            error.add_note(f"slide '{slide}', after {len(done)} of {len(calls)} slides")
            raise
    return done
