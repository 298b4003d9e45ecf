"""Options of the commands for looking after a store: info, verify, repair, gc, delete, doctor, models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.cli.options import hours, on_workers, the_store, which_slides, whole

if TYPE_CHECKING:
    import argparse

    from histostore.cli.options import Commands


def _info(p: argparse.ArgumentParser) -> None:
    the_store(p)
    p.add_argument("--slide", metavar="ID", help="one slide in full")
    p.add_argument("--where", metavar="EXPR", help="list the slides whose metadata pass, like \"organ == 'kidney'\"")
    p.add_argument("--columns", metavar="A,B", help="list slides with these: metadata, or KIND/NAME for its rows")


def _verify(p: argparse.ArgumentParser) -> None:
    the_store(p)
    which_slides(p)
    p.add_argument("--quick", action="store_true", help="sizes only; do not read the bytes")
    on_workers(p)


def _repair(p: argparse.ArgumentParser) -> None:
    the_store(p)
    p.add_argument("--imported", action="store_true", help="also groups that came from files outside the store")


def _gc(p: argparse.ArgumentParser) -> None:
    the_store(p)
    p.add_argument("--run", action="store_true", help="remove; without it nothing is removed, only listed")
    p.add_argument("--grace", type=hours, default=24.0, metavar="HOURS", help="keep what is younger (24)")
    p.add_argument("--history", action="store_true", help="also what only older versions name (as --keep 1)")
    p.add_argument("--keep", type=whole(1), metavar="N", help="also versions before the newest N, and what they name")
    p.add_argument("--paths", action="store_true", help="list every file and folder, not only sums")
    p.add_argument("--erase", action="store_true", help="also the bytes of deleted slides")


def _delete(p: argparse.ArgumentParser) -> None:
    the_store(p)
    p.add_argument("--slide", required=True, metavar="ID")


def _doctor(p: argparse.ArgumentParser) -> None:
    p.add_argument("store", metavar="S", nargs="?", help="a store, or a folder to put one in")


def _models(p: argparse.ArgumentParser) -> None:
    p.add_argument("store", metavar="S", nargs="?", help="also say which are used in this store")


COMMANDS: Commands = {
    "info": ("small", "what a store holds", "histostore info S --slide C2", _info),
    "verify": ("care", "check every byte that was committed", "histostore verify S", _verify),
    "repair": ("care", "put damaged groups aside, and say what makes them again", "histostore repair S", _repair),
    "gc": ("care", "list or remove what nothing names any more", "histostore gc S --run", _gc),
    "delete": ("care", "hide a slide (its bytes stay until gc --erase)", "histostore delete S --slide C2", _delete),
    "doctor": ("care", "check this machine, and a store's file system", "histostore doctor S", _doctor),
    "models": ("care", "which backbones there are, and which are here", "histostore models", _models),
}
