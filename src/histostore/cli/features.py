"""The commands for feature files of other tools: import, export-features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.cli.common import chosen_slides, each, pairs, the_store
from histostore.cli.progress import Line
from histostore.errors import UsageError

if TYPE_CHECKING:
    import argparse


def import_(args: argparse.Namespace) -> int:
    """Bring feature files in."""
    from histostore.exchange import imports, lacks_images
    from histostore.io.feature_files import find_features
    from histostore.stages.imported_tiles import ImportSpec

    store, line = the_store(args, writing=True), Line()
    spec = ImportSpec(
        backbone=args.backbone, tiles=args.tiles, px=args.px, mpp=args.mpp, anchor=args.anchor,
        allow_nan=args.allow_nan,
    )  # fmt: skip
    meta = pairs(args.meta, "--meta")
    found = find_features(args.features, args.slide)
    if lacks_images(found, args.image):
        raise UsageError(f"--image is one file for {len(found)} slides: give --slide, or a folder of images")
    calls = imports(store, found, spec, image=args.image, meta=meta, replace=args.replace, progress=line)
    return each(calls, args, own_inputs=True)


def export_features(args: argparse.Namespace) -> int:
    """Write embeddings as files of another tool."""
    from histostore.exchange import exports

    store = the_store(args)
    calls = exports(
        store, chosen_slides(store, args), args.out, backbone=args.backbone, format=args.format, tiles=args.tiles,
        overwrite=args.overwrite,
    )  # fmt: skip
    return each(calls, args)
