"""Options of the commands for finding look-alikes: index, search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.cli.options import on_workers, the_store, which_rows, which_slides, whole

if TYPE_CHECKING:
    import argparse

    from histostore.cli.options import Commands


def _index(p: argparse.ArgumentParser) -> None:
    the_store(p)
    which_slides(p)
    p.add_argument("--backbone", metavar="NAME", help="which embeddings (may be left out where there is one)")
    p.add_argument("--tiles", metavar="NAME", help="which tile set (may be left out where there is one)")
    p.add_argument("--kind", metavar="KIND", help="auto (default), exact, ivf-flat, ivf-sq8, ivf-pq, hnsw")
    p.add_argument("--metric", choices=("cosine", "l2", "ip"), help="default cosine")
    p.add_argument("--recall", type=float, metavar="SHARE", help="of the true ten nearest, to be reached (0.95)")
    p.add_argument("--max-bytes", type=whole(1), metavar="N", help="what `auto` may take in memory")
    p.add_argument("--name", help="name of the index (default: TILES/BACKBONE)")
    p.add_argument("--rebuild", action="store_true", help="build everything again")
    p.add_argument("--compact", action="store_true", help="build small and hollow segments again as one")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda")
    p.add_argument("--dry-run", action="store_true", help="write nothing; say which kind, how many bytes and how long")
    on_workers(p)


def _drift(p: argparse.ArgumentParser) -> None:
    the_store(p)
    p.add_argument("backbones", metavar="NAME", nargs=2, help="two backbones of the same tiles")
    p.add_argument("--tiles", metavar="NAME", help="which tile set (may be left out where there is one)")
    p.add_argument("-k", type=whole(1), default=10, help="neighbours that are compared (10)")


def _search(p: argparse.ArgumentParser) -> None:
    the_store(p)
    which_slides(p)
    which_rows(p)
    p.add_argument("--slide", metavar="ID", help="the query's slide")
    p.add_argument("--spot", metavar="IDS", help="the query's barcode, 25x13 or grid id; several by commas")
    p.add_argument("--region", metavar="X0,Y0,X1,Y1|FILE", help="all tiles of a rectangle or GeoJSON polygon, together")
    p.add_argument("--image", metavar="FILE", help="query by an image of one tile")
    p.add_argument("-k", type=whole(1), default=10, help="neighbours (10)")
    p.add_argument("--metric", choices=("cosine", "l2", "ip"), help="default: the index's, else cosine")
    p.add_argument("--exclude-same", metavar="COLUMN", help="leave out tiles with the query's slide, patient, …")
    p.add_argument("--exclude-radius-um", type=float, metavar="UM", help="leave out tiles so near on the same slide")
    p.add_argument("--at-most", metavar="COLUMN:N", help="at most N answers that share a value, like slide:2")
    p.add_argument("--diversity", type=float, default=0.0, metavar="W", help="0 nearest alone, to 1 all different (0)")
    p.add_argument("--max-distance", type=float, metavar="D", help="only answers at most that far")
    p.add_argument(
        "--expressing", metavar="A,B=W", help="looks like it and expresses these genes; W is how much one counts (1)"
    )
    p.add_argument("--expression-weight", type=float, default=0.5, metavar="W", help="share of the expression (0.5)")
    p.add_argument("--index", metavar="NAME", help="which index (default: the one there is)")
    p.add_argument("--exact", action="store_true", help="use no index")
    p.add_argument("--columns", metavar="A,B", help="obs columns or genes to show")
    p.add_argument("--gallery", metavar="PNG", help="draw query and hits")
    p.add_argument("-o", "--output", metavar="FILE", help="write the table (.csv) or the hits as AnnData (.h5ad)")


COMMANDS: Commands = {
    "index": ("find", "build a search index, or bring it up to date", "histostore index S --backbone resnet50", _index),
    "search": (
        "find",
        "find the tiles that look alike",
        "histostore search S --slide C2 --spot 25x13 -k 10 --gallery out.png",
        _search,
    ),
    "drift": ("find", "compare two backbones on the same tiles", "histostore drift S resnet50 uni", _drift),
}
