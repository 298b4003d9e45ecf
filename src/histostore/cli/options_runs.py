"""Options of the commands for whole jobs: run, runs, fetch, demo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.cli.options import whole

if TYPE_CHECKING:
    import argparse

    from histostore.cli.options import Commands


def _run(p: argparse.ArgumentParser) -> None:
    p.add_argument("pipeline", metavar="FILE", help="a pipeline, like pipelines/st_net.py")
    p.add_argument("--store", metavar="S", help="the store's folder, or s3://bucket/prefix")
    p.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one setting (repeatable)")
    p.add_argument(
        "--sweep", metavar="KEY=A,B", action="append", default=[], help="a grid (repeatable; values with commas: A;B)"
    )
    p.add_argument("--name", metavar="N", help="name of the run (default: the recipe's, and a digest)")
    p.add_argument("--out", metavar="DIR", help="folder of runs (default: runs/ beside the store; of a bucket, here)")
    p.add_argument("--again", action="store_true", help="redo what is there, and replace another run of that name")
    p.add_argument("--describe", action="store_true", help="print citation and settings; run nothing")


def _runs(p: argparse.ArgumentParser) -> None:
    p.add_argument("names", metavar="RUN", nargs="*", help="one to show, several to compare (default: list all)")
    p.add_argument("--store", metavar="S", help="the store beside which runs/ lies")
    p.add_argument("--out", metavar="DIR", help="folder of runs (default: runs/ beside the store, or here)")
    p.add_argument("--compare", action="store_true", help="settings that differ and metrics, side by side")


def _fetch(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="DATA", nargs="?", help="a data set (default: list them)")
    p.add_argument("-o", "--output", metavar="DIR", help="where it goes (default: a folder of its name)")
    p.add_argument("--only", metavar="PATTERN", help="only files whose path matches, like 'images/C?.jpg'")
    p.add_argument("--limit", type=whole(1), metavar="N", help="of a query: only the first N cases")
    p.add_argument("--base-url", metavar="URL", help="a mirror that keeps the paths")
    p.add_argument("--list", action="store_true", help="what there is, with licence and citation")
    p.add_argument("--dry-run", action="store_true", help="what would be fetched; nothing is")


def _demo(p: argparse.ArgumentParser) -> None:
    p.add_argument("-o", "--output", default="demo_out", metavar="DIR", help="where it all goes (demo_out)")
    p.add_argument("--backbone", default="efficientnet_lite0", help="efficientnet_lite0, or testing (no torch)")
    p.add_argument("--seed", type=whole(0), default=0)


COMMANDS: Commands = {
    "run": (
        "runs",
        "run a published system, or a sweep over its settings",
        "histostore run pipelines/st_net.py --store S --name first",
        _run,
    ),
    "runs": ("runs", "list runs, or compare some", "histostore runs --store S first second", _runs),
    "fetch": (
        "runs",
        "fetch public data, checked, with its licence and citation",
        "histostore fetch her2st --only '*/C2.*'",
        _fetch,
    ),
    "demo": ("demo", "the whole job on a synthetic cohort with known truth", "histostore demo -o demo_out", _demo),
}
