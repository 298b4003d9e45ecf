"""Options of the commands for what is made of it: fit, predict, review, search, export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.cli.options import on_workers, the_store, which_rows, which_slides, whole

if TYPE_CHECKING:
    import argparse

    from histostore.cli.options import Commands


def _fit(p: argparse.ArgumentParser) -> None:
    the_store(p)
    which_slides(p)
    which_rows(p)
    p.add_argument("--head", default="ridge", help="which head (ridge)")
    p.add_argument(
        "--genes", default="top-variance:50", metavar="PANEL", help="top-variance:K, top-mean:K, hvg:K, all:SHARE, A,B"
    )
    p.add_argument(
        "--target", default="log1p-cp10k", metavar="UNIT|COLS",
        help="unit of the genes (log1p-cp10k, log1p, log-share, counts), or numeric columns to predict instead",
    )  # fmt: skip
    p.add_argument("--label", metavar="COL", help="predict the classes of an obs column (cluster, region_NAME, organ)")
    p.add_argument("--positive", metavar="A,B", help="values of --label that are the positive class")
    p.add_argument("--negative", metavar="A,B", help="the only values that are negative (default: all others)")
    p.add_argument("--ignore", metavar="A,B", help="values of --label that say nothing")
    p.add_argument("--negatives-per-positive", type=float, metavar="N", help="draw so many negatives per slide")
    p.add_argument("--region-share", type=float, metavar="SHARE", help="polygons label tiles they cover so far")
    p.add_argument("--groups", metavar="COLS", help="columns of the random effects (renn)")
    p.add_argument("--per", choices=("tile", "slide"), help="rows (default: slide where --target is metadata)")
    p.add_argument("--tiles-per-slide", type=whole(1), metavar="N", help="draw so many tiles per slide, by --seed")
    p.add_argument("--pool", choices=("mean", "tiles"), default="mean", help="how tiles become a row per slide")
    p.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="an option of the head")
    p.add_argument(
        "--split", default="leave-one-out:patient", metavar="SPLIT",
        help="leave-one-out:COL, group-kfold:N:COL, stratified-kfold:N:COL, spatial-block:N:UM[:BUFFER]",
    )  # fmt: skip
    p.add_argument("--allow-same-patient", action="store_true", help="permit one patient on both sides (it is said)")
    p.add_argument("--min-counts", type=whole(0), default=0, metavar="N", help="leave out spots with fewer counts")
    p.add_argument("--min-genes", type=int, default=0, metavar="N", help="leave out spots with fewer genes seen")
    p.add_argument("--context-um", metavar="A,B", help="join Gaussian means of neighbours at these sigmas")
    p.add_argument("--standardise", choices=("none", "slide"), default="none", help="per-slide z-scores")
    p.add_argument("--tune-features", action="store_true", help="let inner folds choose context and standardisation")
    p.add_argument("--seed", type=whole(0), default=0)
    p.add_argument("--save", nargs="?", const="", metavar="NAME", help="keep the head (default name: HEAD-BACKBONE)")
    p.add_argument("--report", metavar="HTML", help="write a one-file report")
    p.add_argument("--protocol", metavar="JSON", help="write what must be known to believe the numbers")
    p.add_argument("--replace", action="store_true", help="let the name move to the new head")


def _predict(p: argparse.ArgumentParser) -> None:
    the_store(p)
    which_slides(p)
    p.add_argument("--head", required=True, metavar="NAME", help="a saved head")
    p.add_argument("--tiles", metavar="NAME", help="which tile set")
    p.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="also as .h5ad, .zarr, .csv, .geojson (QuPath), .loupe.csv; {slide} in it: one file each",
    )
    p.add_argument("--overwrite", action="store_true", help="replace the file")
    p.add_argument("--picture", metavar="DIR", help="write predicted (beside true) maps per slide")
    p.add_argument(
        "--genes",
        metavar="A,B",
        help="which genes to draw (default: the first four) and to write into the file (default: all)",
    )
    p.add_argument("--replace", action="store_true", help="let the name move to the new predictions")
    on_workers(p, gpu=True)


def _review(p: argparse.ArgumentParser) -> None:
    the_store(p)
    which_slides(p)
    p.add_argument("--head", required=True, metavar="NAME", help="a saved classifier, applied by `predict`")
    p.add_argument("-k", type=whole(1), default=50, metavar="N", help="how many tiles (50)")
    p.add_argument("--per-slide", action="store_true", help="so many of each slide, and a sheet for each")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--uncertain", action="store_true", help="the tiles nearest to the threshold, not the surest")
    which.add_argument("--of", metavar="CLASS", help="the class whose probability counts (default: the positive)")
    p.add_argument("--tiles", metavar="NAME", help="predictions of which tile set")
    p.add_argument("--again", action="store_true", help="also tiles that were reviewed before")
    p.add_argument("--name", default="review", help="the labels that say so (review)")
    p.add_argument("-o", "--output", required=True, metavar="DIR", help="where review.csv, .html and .png go")
    p.add_argument("--overwrite", action="store_true", help="replace a table that is there")


def _export(p: argparse.ArgumentParser) -> None:
    the_store(p)
    which_slides(p)
    which_rows(p)
    p.add_argument("-o", "--output", required=True, metavar="FILE", help="*.h5ad or *.zarr")
    p.add_argument("--genes", default="outer", choices=("outer", "inner"), help="how genes of slides are joined")
    p.add_argument("--no-counts", action="store_true", help="all tiles, without counts")
    p.add_argument("--no-images", action="store_true", help="without the overview images")
    p.add_argument("--overwrite", action="store_true", help="replace the file")


COMMANDS: Commands = {
    "fit": (
        "use",
        "train and score a head on cached embeddings",
        "histostore fit S --genes top-variance:50 --split leave-one-out:patient --save",
        _fit,
    ),
    "predict": ("use", "apply a saved head", "histostore predict S --head ridge-efficientnet_lite0", _predict),
    "review": (
        "use",
        "show the tiles a classifier is surest or least sure of, with a table to fill in",
        "histostore review S --head tumour -k 50 -o round1",
        _review,
    ),
    "export": (
        "use",
        "write a cohort as AnnData",
        "histostore export S --backbone efficientnet_lite0 -o her2st.h5ad",
        _export,
    ),
}
