"""Options of the commands for what goes into a store: init, ingest, annotate, tile, embed, finetune."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.cli.options import on_workers, reading, the_store, which_slides, whole

if TYPE_CHECKING:
    import argparse

    from histostore.cli.options import Commands


def _init(p: argparse.ArgumentParser) -> None:
    the_store(p)
    p.add_argument("--name", help="name of the store (default: the folder's)")


def _ingest(p: argparse.ArgumentParser) -> None:
    the_store(p)
    p.add_argument("--sheet", metavar="CSV", help="sample sheet: slide, image, mpp, st_counts, st_spots, visium, …")
    p.add_argument("--slide", metavar="ID", help="id of the slide")
    p.add_argument("--image", metavar="FILE", help="SVS, NDPI, TIFF, JPG, PNG, …; or a TIFF's address (http, s3, …)")
    p.add_argument("--image-folder", metavar="DIR", help="images in class-named subfolders, as one slide of patches")
    p.add_argument("--mpp", type=float, metavar="UM", help="µm per full-resolution pixel")
    p.add_argument("--mag", type=float, metavar="X", help="magnification, as another way to say mpp (20 is 0.5)")
    p.add_argument("--st-counts", metavar="TSV", help="ST v1 counts (rows XxY, columns genes)")
    p.add_argument(
        "--st-spots", metavar="TSV", help="ST v1 spot file (x, y, pixel_x, pixel_y); alone: a slide to predict"
    )
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
    the_store(p)
    p.add_argument("--table", metavar="CSV", help="metadata by slide or patient")
    p.add_argument("--by", metavar="COLUMN", help="the column that says whose row it is (slide, patient)")
    p.add_argument("--slide", metavar="ID", help="the slide of --geojson, --obs or --set")
    p.add_argument("--geojson", metavar="FILE", help="polygons in full-resolution pixels")
    p.add_argument("--obs", metavar="TSV", help="labels per spot")
    p.add_argument("--review", metavar="CSV", help="a table of `review` with its labels filled in, of any slides")
    p.add_argument("--classes", metavar="A,B", help="labels that --review may hold (default: the head's classes)")
    p.add_argument("--min-match", type=float, default=0.9, help="share of --review's rows that must be known (0.9)")
    p.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one metadata field (repeatable)")
    p.add_argument("--name", help="name of the labels (default: the file's; review)")
    p.add_argument("--replace", action="store_true", help="let the name move to the new version")


def _tile(p: argparse.ArgumentParser) -> None:
    the_store(p)
    which_slides(p)
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
    p.add_argument("--seed", type=whole(0), default=0)
    p.add_argument("--edge", choices=("pad", "drop"), help="tiles that stick out: padded with white, or left out")
    p.add_argument("--region", metavar="LABELS", help="only tiles with their centre in these polygons")
    p.add_argument("--all-spots", action="store_true", help="also spots that the assay calls off tissue")
    p.add_argument("--allow-upsample", action="store_true", help="permit tiles finer than the slide")
    p.add_argument("--stain", choices=("macenko", "reinhard"), help="normalise the stain of the stored pixels")
    p.add_argument("--codec", choices=("jpeg", "lossless", "slide"), default="jpeg", help="how pixels are kept")
    p.add_argument("--quality", type=int, default=95, help="JPEG quality (95)")
    p.add_argument("--shard-tiles", type=whole(1), metavar="N", help="tiles per shard (default: by size)")
    p.add_argument("--name", help="name of the tile set (default: spots, grid@MPP)")
    p.add_argument("--replace", action="store_true", help="let the name move to this spec")
    p.add_argument("--picture", metavar="DIR", help="write a picture of mask and tiles per slide")
    p.add_argument("--dry-run", action="store_true", help="write nothing; say how many tiles, bytes and how long")
    reading(p)
    on_workers(p)


def _embed(p: argparse.ArgumentParser) -> None:
    the_store(p)
    which_slides(p)
    p.add_argument("--backbone", required=True, metavar="NAMES", help="one or more, by commas; see `histostore models`")
    p.add_argument("--tiles", metavar="NAME", help="which tile set")
    p.add_argument(
        "--batch", type=whole(1), metavar="N",
        help="tiles per forward pass (part of the engine; default 32, on CUDA measured)",
    )  # fmt: skip
    p.add_argument("--device", default="auto", help="auto, cpu, cuda")
    p.add_argument("--threads", type=whole(1), metavar="N", help="threads of the forward pass (part of the engine)")
    p.add_argument("--precision", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    p.add_argument(
        "--engine", choices=("torch", "openvino"), default="torch",
        help="what runs the network (torch); openvino's embeddings are NAME+openvino",
    )  # fmt: skip
    p.add_argument("--compile", metavar="BACKEND", help="torch.compile: inductor, cudagraphs (part of the engine)")
    p.add_argument("--profile", action="store_true", help="tell how busy each part was, and which one binds")
    p.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="how embeddings are kept")
    p.add_argument("--dihedral", action="store_true", help="average over the eight symmetries")
    p.add_argument("--checkpoint", metavar="FILE", help="local weights for the named architecture")
    p.add_argument("--allow-pickle", action="store_true", help="load a .pt pickle (it can run code: only if trusted)")
    p.add_argument("--allow-mpp", action="store_true", help="permit tiles of another resolution than the model's")
    p.add_argument("--shard-rows", type=whole(1), default=2048, metavar="N", help="rows per shard (2048)")
    p.add_argument("--dry-run", action="store_true", help="write nothing; say how many tiles, bytes and how long")
    p.add_argument("--replace", action="store_true", help="let the name move to this spec")
    reading(p, threads=None, told="1; up to 16 for CUDA")
    on_workers(p, gpu=True)


def _finetune(p: argparse.ArgumentParser) -> None:
    the_store(p)
    which_slides(p)
    p.add_argument("--backbone", required=True, metavar="NAME", help="the parent; see `histostore models`")
    p.add_argument("--target", required=True, metavar="COLS", help="an obs column of classes, or columns of numbers")
    p.add_argument("--save", required=True, metavar="NAME", help="name of the new backbone")
    p.add_argument("--tiles", metavar="NAME", help="which tile set")
    p.add_argument("--where", metavar="EXPR", help="which tiles may be used at all")
    p.add_argument("--blocks", default="1", metavar="N|all", help="how many of the last blocks learn (1)")
    p.add_argument("--by", default="patient", metavar="COL", help="validation holds out whole values of it (patient)")
    p.add_argument("--test", metavar="A,B", help="values of --by whose tiles are not read at all")
    p.add_argument("--allow-same-patient", action="store_true", help="permit one patient on both sides (it is said)")
    p.add_argument("--leave-out-missing", action="store_true", help="leave out tiles without a target (counted)")
    p.add_argument("--class-weight", choices=("none", "balanced"), default="none")
    p.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="lr, max_epochs, batch, blur, …")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda")
    p.add_argument("--read-threads", type=whole(1), default=1, metavar="N", help="threads that decode (1)")
    p.add_argument("--seed", type=whole(0), default=0)
    p.add_argument("--allow-mpp", action="store_true", help="permit tiles of another resolution than the model's")
    p.add_argument("--replace", action="store_true", help="let the name move to the new backbone")


COMMANDS: Commands = {
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
    "finetune": (
        "build",
        "tune a backbone on stored tiles: a new backbone",
        "histostore finetune S --backbone resnet50 --target region_annotations --save resnet50-kidney",
        _finetune,
    ),
}
