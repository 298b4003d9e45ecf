"""The commands for feature files of other tools: import, export-features."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from histostore.cli.common import chosen_slides, each, pairs, the_store
from histostore.cli.progress import Line
from histostore.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from histostore.stages.result import StageResult


def import_(args: argparse.Namespace) -> int:
    """Bring feature files in."""
    from histostore.io.feature_files import find_features, read_features
    from histostore.stages.import_features import import_features
    from histostore.stages.imported_tiles import ImportSpec
    from histostore.stages.twins import Twins

    store, line = the_store(args, writing=True), Line()
    spec = ImportSpec(
        backbone=args.backbone, tiles=args.tiles, px=args.px, mpp=args.mpp, anchor=args.anchor,
        allow_nan=args.allow_nan,
    )  # fmt: skip
    meta = pairs(args.meta, "--meta")
    found = find_features(args.features, args.slide)
    if args.image is not None and len(found) > 1 and not Path(args.image).is_dir():
        raise UsageError(f"--image is one file for {len(found)} slides: give --slide, or a folder of images")

    twins = Twins(store)

    def one(slide: str, file: Path) -> Iterable[StageResult]:
        image = _image(Path(args.image), slide) if args.image is not None else None
        features = read_features(file, slide)
        yield import_features(
            store, slide, features, spec, image=image, meta=meta, replace=args.replace, twins=twins, progress=line
        )  # fmt: skip

    return each([(slide, partial(one, slide, file)) for slide, file in found], args, own_inputs=True)


def _image(place: Path, slide: str) -> Path:
    if not place.is_dir():
        return place
    images = sorted(p for p in place.iterdir() if p.stem == slide and p.is_file())
    if len(images) != 1:
        said = ", ".join(p.name for p in images) or "none"
        raise NotFoundError(f"{place} must have one image of slide '{slide}', it has {said}")
    return images[0]


def export_features(args: argparse.Namespace) -> int:
    """Write embeddings as files of another tool."""
    from histostore.io.feature_files import check_tool
    from histostore.stages.export_features import export_features as run

    store, tool = the_store(args), check_tool(args.format)

    def one(slide: str) -> Iterable[StageResult]:
        yield run(
            store, slide, args.out, backbone=args.backbone, format=tool, tiles=args.tiles, overwrite=args.overwrite
        )  # fmt: skip

    return each([(slide, partial(one, slide)) for slide in chosen_slides(store, args)], args)
