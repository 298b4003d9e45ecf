"""Options of the commands for feature files of other tools: import, export-features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.cli.options import the_store, which_slides

if TYPE_CHECKING:
    import argparse

    from histostore.cli.options import Commands

FORMATS = ("trident", "clam", "slide2vec", "stamp", "parquet")


def _import(p: argparse.ArgumentParser) -> None:
    p.set_defaults(function="import_")  # the command's own name is a word of the language
    the_store(p)
    p.add_argument("--features", required=True, metavar="PLACE", help="a file, or a folder with one per slide")
    p.add_argument("--backbone", required=True, metavar="NAME", help="what to call them")
    p.add_argument("--slide", metavar="ID", help="only this slide (default: all, by their file names)")
    p.add_argument("--image", metavar="PLACE", help="the slide's image, or a folder of them by slide name")
    p.add_argument("--px", type=float, metavar="N", help="edge of a tile in full-resolution pixels, if no file says it")
    p.add_argument("--mpp", type=float, metavar="UM", help="µm per full-resolution pixel, if no file says it")
    p.add_argument("--anchor", choices=("corner", "centre"), help="what coordinates are of, if the file does not say")
    p.add_argument("--tiles", default="imported", metavar="NAME", help="what to call the tile set (imported)")
    p.add_argument("--allow-nan", action="store_true", help="keep rows of NaN, as unreadable tiles")
    p.add_argument("--meta", metavar="KEY=VALUE", action="append", default=[], help="patient=C (repeatable)")
    p.add_argument("--replace", action="store_true", help="let the names move to these features")


def _export_features(p: argparse.ArgumentParser) -> None:
    p.set_defaults(function="export_features")
    the_store(p)
    which_slides(p)
    p.add_argument("--backbone", required=True, metavar="NAME", help="which embeddings")
    p.add_argument("--tiles", metavar="NAME", help="which tile set (may be left out where there is one)")
    p.add_argument("--format", required=True, choices=FORMATS, help="whose files")
    p.add_argument("-o", "--out", required=True, metavar="DIR", help="folder of the files")
    p.add_argument("--overwrite", action="store_true", help="replace files that are there")


COMMANDS: Commands = {
    "import": (
        "features",
        "bring in features that TRIDENT, CLAM, slide2vec or STAMP extracted, or Parquet",
        "histostore import S --features 20x_256px/features_uni_v1 --backbone uni --mpp 0.25",
        _import,
    ),
    "export-features": (
        "features",
        "write embeddings as files of TRIDENT, CLAM, slide2vec or STAMP, or Parquet",
        "histostore export-features S --backbone uni --format trident -o features",
        _export_features,
    ),
}
