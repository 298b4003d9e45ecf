"""Every command and option, declared in one place. Imports argparse alone, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, NoReturn

from histostore._version import __version__
from histostore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

type Add = Callable[..., argparse.Action]


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="histostore",
        formatter_class=_Help,
        description="A streaming feature store and embedding database for spatial histology.",
        epilog="Start with `histostore demo`, or `histostore init S` and `histostore ingest S --help`.",
    )
    parser.add_argument("--version", action="version", version=f"histostore {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, (module, about, example, declare) in COMMANDS.items():
        sub = commands.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + ".",
            epilog=f"example:\n  {example}", formatter_class=_Help,
        )  # fmt: skip
        sub.set_defaults(module=module, function=name, json=False)
        declare(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object per result on stdout")
    return parser


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return value

    return read


def _hours(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of hours, 0 or more")
    return value


def _store(p: argparse.ArgumentParser) -> None:
    p.add_argument("store", metavar="S", help="the store's folder")


def _slides(p: argparse.ArgumentParser) -> None:
    p.add_argument("--slides", metavar="A,B", help="only these slides (default: all)")


def _reading(p: argparse.ArgumentParser) -> None:
    p.add_argument("--read-batch", type=_whole(1), default=64, metavar="N", help="tiles per read (default 64)")
    p.add_argument("--workers", type=_whole(1), default=1, metavar="N", help="reading threads (default 1)")


def _choice(p: argparse.ArgumentParser) -> None:
    p.add_argument("--backbone", metavar="NAME", help="which embeddings (may be left out where there is one)")
    p.add_argument("--tiles", metavar="NAME", help="which tile set (may be left out where there is one)")
    p.add_argument("--where", metavar="EXPR", help="a filter, like \"patient != 'C' and n_counts >= 500\"")


def _init(p: argparse.ArgumentParser) -> None:
    _store(p)
    p.add_argument("--name", help="name of the store (default: the folder's)")


def _ingest(p: argparse.ArgumentParser) -> None:
    _store(p)
    p.add_argument("--sheet", metavar="CSV", help="sample sheet: slide, image, mpp, st_counts, st_spots, visium, …")
    p.add_argument("--slide", metavar="ID", help="id of the slide")
    p.add_argument("--image", metavar="FILE", help="SVS, NDPI, TIFF, JPG, PNG, …")
    p.add_argument("--mpp", type=float, metavar="UM", help="µm per full-resolution pixel")
    p.add_argument("--mag", type=float, metavar="X", help="magnification, as another way to say mpp (20 is 0.5)")
    p.add_argument("--st-counts", metavar="TSV", help="ST v1 counts (rows XxY, columns genes)")
    p.add_argument("--st-spots", metavar="TSV", help="ST v1 spot file (x, y, pixel_x, pixel_y)")
    p.add_argument("--visium", metavar="DIR", help="a Space Ranger outs folder")
    p.add_argument("--anndata", metavar="FILE", help="h5ad or zarr with obsm['spatial']")
    p.add_argument("--points", metavar="CSV", help="points of your own (id, x, y)")
    p.add_argument("--obs", metavar="TSV", help="labels per spot, joined by id or position")
    p.add_argument("--geojson", metavar="FILE", help="annotated polygons (more by `annotate`)")
    p.add_argument("--meta", metavar="KEY=VALUE", action="append", default=[], help="patient=C (repeatable)")
    p.add_argument("--min-match", type=float, default=0.9, help="share of count rows that must have a spot (0.9)")
    p.add_argument("--drop-off-image", action="store_true", help="leave out spots outside the image")
    p.add_argument("--allow-normalised", action="store_true", help="take values that are not counts")
    p.add_argument("--allow-off-tissue", action="store_true", help="take spots that lie off the tissue")
    p.add_argument("--targeted", action="store_true", help="a targeted panel: absent genes were not measured")
    p.add_argument("--force-mpp", action="store_true", help="believe --mpp against the file and the spot pitch")
    p.add_argument("--embed", metavar="BACKBONES", help="tile at spots and embed in the same pass (needs --px)")
    p.add_argument("--px", type=int, metavar="N", help="edge of those tiles in native pixels")


def _annotate(p: argparse.ArgumentParser) -> None:
    _store(p)
    p.add_argument("--table", metavar="CSV", help="metadata by slide or patient")
    p.add_argument("--by", metavar="COLUMN", help="the column that says whose row it is (slide, patient)")
    p.add_argument("--slide", metavar="ID", help="the slide of --geojson, --obs or --set")
    p.add_argument("--geojson", metavar="FILE", help="polygons in full-resolution pixels")
    p.add_argument("--obs", metavar="TSV", help="labels per spot")
    p.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one metadata field (repeatable)")
    p.add_argument("--name", help="name of the labels (default: the file's)")
    p.add_argument("--replace", action="store_true", help="let the name move to the new version")


def _tile(p: argparse.ArgumentParser) -> None:
    _store(p)
    _slides(p)
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--at", metavar="POINTS", help="one tile at every spot (`spots`) or other named points")
    where.add_argument("--grid", action="store_true", help="a regular grid over the tissue")
    p.add_argument("--px", type=int, metavar="N", help="edge in pixels at --mpp")
    p.add_argument("--um", type=float, metavar="UM", help="edge in microns")
    p.add_argument("--mpp", default=None, metavar="UM", help="µm per pixel of the tiles, or native (default)")
    p.add_argument("--mag", type=float, metavar="X", help="magnification, as another way to say mpp (20 is 0.5)")
    p.add_argument("--overlap", type=float, default=0.0, help="share of the edge that grid neighbours share (0)")
    p.add_argument("--min-tissue", type=float, metavar="SHARE", help="leave out tiles with less tissue (grid: 0.5)")
    p.add_argument("--max-tiles", type=int, metavar="N", help="a random sample of N tiles, by --seed")
    p.add_argument("--seed", type=_whole(0), default=0)
    p.add_argument("--edge", choices=("pad", "drop"), help="tiles that stick out: padded with white, or left out")
    p.add_argument("--region", metavar="LABELS", help="only tiles with their centre in these polygons")
    p.add_argument("--all-spots", action="store_true", help="also spots that the assay calls off tissue")
    p.add_argument("--allow-upsample", action="store_true", help="permit tiles finer than the slide")
    p.add_argument("--stain", choices=("macenko", "reinhard"), help="normalise the stain of the stored pixels")
    p.add_argument("--codec", choices=("jpeg", "lossless", "slide"), default="jpeg", help="how pixels are kept")
    p.add_argument("--quality", type=int, default=95, help="JPEG quality (95)")
    p.add_argument("--shard-tiles", type=_whole(1), metavar="N", help="tiles per shard (default: by size)")
    p.add_argument("--name", help="name of the tile set (default: spots, grid@MPP)")
    p.add_argument("--replace", action="store_true", help="let the name move to this spec")
    p.add_argument("--picture", metavar="DIR", help="write a picture of mask and tiles per slide")
    _reading(p)


def _embed(p: argparse.ArgumentParser) -> None:
    _store(p)
    _slides(p)
    p.add_argument("--backbone", required=True, metavar="NAMES", help="one or more, by commas; see `histostore models`")
    p.add_argument("--tiles", metavar="NAME", help="which tile set")
    p.add_argument(
        "--batch", type=_whole(1), metavar="N", help="tiles per forward pass (part of the engine; default 32)"
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda")
    p.add_argument("--threads", type=_whole(1), metavar="N", help="threads of the forward pass (part of the engine)")
    p.add_argument("--precision", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    p.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="how embeddings are kept")
    p.add_argument("--dihedral", action="store_true", help="average over the eight symmetries")
    p.add_argument("--checkpoint", metavar="FILE", help="local weights for the named architecture")
    p.add_argument("--allow-pickle", action="store_true", help="load a .pt pickle (it can run code: only if trusted)")
    p.add_argument("--allow-mpp", action="store_true", help="permit tiles of another resolution than the model's")
    p.add_argument("--shard-rows", type=_whole(1), default=2048, metavar="N", help="rows per shard (2048)")
    p.add_argument("--replace", action="store_true", help="let the name move to this spec")
    _reading(p)


def _fit(p: argparse.ArgumentParser) -> None:
    _store(p)
    _slides(p)
    _choice(p)
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
    p.add_argument("--tiles-per-slide", type=_whole(1), metavar="N", help="draw so many tiles per slide, by --seed")
    p.add_argument("--pool", choices=("mean", "tiles"), default="mean", help="how tiles become a row per slide")
    p.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="an option of the head")
    p.add_argument(
        "--split", default="leave-one-out:patient", metavar="SPLIT",
        help="leave-one-out:COL, group-kfold:N:COL, stratified-kfold:N:COL, spatial-block:N:UM[:BUFFER]",
    )  # fmt: skip
    p.add_argument("--allow-same-patient", action="store_true", help="permit one patient on both sides (it is said)")
    p.add_argument("--min-counts", type=_whole(0), default=0, metavar="N", help="leave out spots with fewer counts")
    p.add_argument("--min-genes", type=int, default=0, metavar="N", help="leave out spots with fewer genes seen")
    p.add_argument("--context-um", default="", metavar="A,B", help="join Gaussian means of neighbours at these sigmas")
    p.add_argument("--standardise", choices=("none", "slide"), default="none", help="per-slide z-scores")
    p.add_argument("--tune-features", action="store_true", help="let inner folds choose context and standardisation")
    p.add_argument("--seed", type=_whole(0), default=0)
    p.add_argument("--save", nargs="?", const="", metavar="NAME", help="keep the head (default name: HEAD-BACKBONE)")
    p.add_argument("--report", metavar="HTML", help="write a one-file report")
    p.add_argument("--replace", action="store_true", help="let the name move to the new head")


def _predict(p: argparse.ArgumentParser) -> None:
    _store(p)
    _slides(p)
    p.add_argument("--head", required=True, metavar="NAME", help="a saved head")
    p.add_argument("--tiles", metavar="NAME", help="which tile set")
    p.add_argument("-o", "--output", metavar="FILE", help="also as .h5ad, .zarr or .csv")
    p.add_argument("--overwrite", action="store_true", help="replace the file")
    p.add_argument("--picture", metavar="DIR", help="write predicted (beside true) maps per slide")
    p.add_argument("--genes", metavar="A,B", help="which genes to draw (default: the first four)")
    p.add_argument("--replace", action="store_true", help="let the name move to the new predictions")


def _search(p: argparse.ArgumentParser) -> None:
    _store(p)
    _slides(p)
    _choice(p)
    p.add_argument("--slide", metavar="ID", help="the query's slide")
    p.add_argument("--spot", metavar="ID", help="the query's barcode, 25x13 or grid id")
    p.add_argument("--image", metavar="FILE", help="query by an image of one tile")
    p.add_argument("-k", type=_whole(1), default=10, help="neighbours (10)")
    p.add_argument("--metric", choices=("cosine", "l2", "ip"), default="cosine")
    p.add_argument("--exclude-same", metavar="COLUMN", help="leave out tiles with the query's slide, patient, …")
    p.add_argument("--columns", default="", metavar="A,B", help="obs columns to show")
    p.add_argument("--gallery", metavar="PNG", help="draw query and hits")
    p.add_argument("-o", "--output", metavar="CSV", help="write the table")


def _export(p: argparse.ArgumentParser) -> None:
    _store(p)
    _slides(p)
    _choice(p)
    p.add_argument("-o", "--output", required=True, metavar="FILE", help="*.h5ad or *.zarr")
    p.add_argument("--genes", default="outer", choices=("outer", "inner"), help="how genes of slides are joined")
    p.add_argument("--no-counts", action="store_true", help="all tiles, without counts")
    p.add_argument("--no-images", action="store_true", help="without the overview images")
    p.add_argument("--overwrite", action="store_true", help="replace the file")


def _info(p: argparse.ArgumentParser) -> None:
    _store(p)
    p.add_argument("--slide", metavar="ID", help="one slide in full")


def _verify(p: argparse.ArgumentParser) -> None:
    _store(p)
    _slides(p)
    p.add_argument("--quick", action="store_true", help="sizes only; do not read the bytes")
    p.add_argument(
        "--repair", action="store_true", help="take damaged groups out, so that their stage makes them again"
    )


def _repair(p: argparse.ArgumentParser) -> None:
    _store(p)
    p.add_argument("--imported", action="store_true", help="also groups that came from files outside the store")


def _gc(p: argparse.ArgumentParser) -> None:
    _store(p)
    p.add_argument("--run", action="store_true", help="remove; without it nothing is removed, only listed")
    p.add_argument("--grace", type=_hours, default=24.0, metavar="HOURS", help="keep what is younger (24)")
    p.add_argument("--history", action="store_true", help="also what only older versions name")
    p.add_argument("--erase", action="store_true", help="also the bytes of deleted slides")


def _doctor(p: argparse.ArgumentParser) -> None:
    p.add_argument("store", metavar="S", nargs="?", help="a store, or a folder to put one in")


def _models(p: argparse.ArgumentParser) -> None:
    p.add_argument("store", metavar="S", nargs="?", help="also say which are used in this store")


def _delete(p: argparse.ArgumentParser) -> None:
    _store(p)
    p.add_argument("--slide", required=True, metavar="ID")


def _demo(p: argparse.ArgumentParser) -> None:
    p.add_argument("-o", "--output", default="demo_out", metavar="DIR", help="where it all goes (demo_out)")
    p.add_argument("--backbone", default="efficientnet_lite0", help="efficientnet_lite0, or testing (no torch)")
    p.add_argument("--seed", type=_whole(0), default=0)


type _Declare = Callable[[argparse.ArgumentParser], None]

COMMANDS: dict[str, tuple[str, str, str, _Declare]] = {
    "init": ("small", "make an empty store", "histostore init stores/her2st", _init),
    "ingest": (
        "build",
        "bring slides in: image, spots, counts, labels",
        "histostore ingest S --sheet samples.csv",
        _ingest,
    ),
    "annotate": (
        "build",
        "add labels and metadata that arrive later",
        "histostore annotate S --table clinical.csv",
        _annotate,
    ),
    "tile": ("build", "cut tiles at spots or on a grid", "histostore tile S --at spots --px 224 --mpp native", _tile),
    "embed": ("build", "embed tiles with a backbone", "histostore embed S --backbone efficientnet_lite0", _embed),
    "fit": (
        "use",
        "train and score a head on cached embeddings",
        "histostore fit S --genes top-variance:50 --split leave-one-out:patient --save",
        _fit,
    ),
    "predict": ("use", "apply a saved head", "histostore predict S --head ridge-efficientnet_lite0", _predict),
    "search": (
        "use",
        "find the tiles that look alike",
        "histostore search S --slide C2 --spot 25x13 -k 10 --gallery out.png",
        _search,
    ),
    "export": (
        "use",
        "write a cohort as AnnData",
        "histostore export S --backbone efficientnet_lite0 -o her2st.h5ad",
        _export,
    ),
    "info": ("small", "what a store holds", "histostore info S --slide C2", _info),
    "verify": ("care", "check every byte that was committed", "histostore verify S", _verify),
    "repair": ("care", "put damaged groups aside, and say what makes them again", "histostore repair S", _repair),
    "gc": ("care", "list or remove what nothing names any more", "histostore gc S --run", _gc),
    "delete": ("care", "hide a slide (its bytes stay until gc --erase)", "histostore delete S --slide C2", _delete),
    "doctor": ("care", "check this machine, and a store's file system", "histostore doctor S", _doctor),
    "models": ("care", "which backbones there are, and which are here", "histostore models", _models),
    "demo": ("demo", "the whole job on a synthetic cohort with known truth", "histostore demo -o demo_out", _demo),
}
