"""Bad input, one table: the exit code, one line that names file, field and limit, and not a byte written."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

import histostore as hs
from histostore.store.manifest import with_check
from histostore.store.store import open_store
from histostore.testing.slides import synthetic_histology, write_pyramid_tiff

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from histostore.testing.cohort import Cohort

USAGE, DATA = 2, 3


@dataclass
class Bench:
    """Where a case does its damage."""

    cohort: Cohort
    store: Path
    """The built store, shared: nothing may change in it."""
    folder: Path
    """Empty, the case's own."""

    def good(self) -> dict[str, str]:
        """Return the options that ingest slide A1 as it should be, under another id."""
        a1 = self.cohort.slides[0]
        return {"slide": "X1", "image": str(a1.image), "st-counts": str(a1.counts), "st-spots": str(a1.spots)}

    def svs(self) -> Path:
        """Return the SVS of slide B1."""
        return self.cohort.slides[1].image

    def path(self, name: str, content: bytes | str = b"") -> str:
        """Write a file of the case."""
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def counts(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> str:
        """Write the counts of A1, changed."""
        table = pd.read_csv(self.cohort.slides[0].counts, sep="\t", index_col=0)
        path = self.folder / "bad.counts.tsv"
        change(table).to_csv(path, sep="\t")
        return str(path)

    def spots(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> str:
        """Write the spots of A1, changed."""
        table = pd.read_csv(self.cohort.slides[0].spots, sep="\t")
        path = self.folder / "bad.spots.tsv"
        change(table).to_csv(path, sep="\t", index=False)
        return str(path)

    def own_store(self) -> Path:
        """Return a copy of the store that the case may damage before the command runs."""
        self.store = shutil.copytree(self.store, self.folder / "own")
        return self.store

    def header(self, **changes: str) -> None:
        """Change the header of the case's own store."""
        path = self.own_store() / "STORE.json"
        header = json.loads(path.read_text()) | changes
        header.pop("check")
        path.write_text(json.dumps(with_check(header)))


@dataclass(frozen=True)
class Case:
    """One bad input."""

    id: str
    says: tuple[str, ...]
    """Regular expressions, all in the one error line."""
    argv: Callable[[Bench], list[Any]] | None = None
    """Breaks something and returns the command; {S} stands for the store."""
    slide: Callable[[Bench], dict[str, str | None]] | None = None
    """Breaks one of a slide's files or options and returns those that differ; None leaves one out."""
    code: int = DATA
    apart: bool = False
    """In a process of its own: a decoder reads this."""

    def command(self, bench: Bench) -> list[Any]:
        """Return the command."""
        if self.slide is not None:
            fields = {k: v for k, v in (bench.good() | self.slide(bench)).items() if v is not None}
            return ["ingest", bench.store, *(part for k, v in fields.items() for part in (f"--{k}", v))]
        assert self.argv is not None
        return [bench.store if part == "S" else part for part in self.argv(bench)]


def _half(bench: Bench, source: Path, name: str) -> str:
    data = source.read_bytes()
    return bench.path(name, data[: len(data) // 2])


def _plain_tiff(bench: Bench) -> str:
    image, _ = synthetic_histology(700, 600, seed=5)
    whole = write_pyramid_tiff(bench.folder / "whole.tif", image, mpp=2.0, levels=(1,), compression="deflate")
    return _half(bench, whole, "half.tif")


def _png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def _huge_jpeg(bench: Bench) -> str:
    data = bytearray(bench.cohort.slides[0].image.read_bytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 40_000, 50_000)
    return bench.path("huge.jpg", bytes(data))


def _huge_tiff(bench: Bench) -> str:
    data = bytearray(bench.svs().read_bytes())
    (at,) = struct.unpack_from("<I", data, 4)
    (n,) = struct.unpack_from("<H", data, at)
    for i in range(n):
        entry = at + 2 + 12 * i
        if struct.unpack_from("<H", data, entry)[0] in (256, 257):
            struct.pack_into("<HII", data, entry + 2, 4, 1, 44_800)
    return bench.path("huge.svs", bytes(data))


def _white(bench: Bench) -> str:
    from PIL import Image

    path = bench.folder / "white.png"
    Image.fromarray(np.full((1200, 1200, 3), 245, np.uint8)).save(path)
    return str(path)


def _points(bench: Bench, *rows: str) -> dict[str, str | None]:
    return {"points": bench.path("points.csv", "\n".join(["id,x,y", *rows])), "st-counts": None, "st-spots": None}


def _one(bench: Bench, value: Any, where: tuple[int, int] = (3, 2)) -> str:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table = table.astype(object)
        table.iloc[where] = value
        return table

    return bench.counts(change)


def _renamed(bench: Bench, share: float) -> str:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        names = list(table.index)
        n = round(share * len(names))
        return table.set_axis([*names[:n], *(f"9{name}" for name in names[n:])])

    return bench.counts(change)


def _polygon(*rings: str) -> str:
    feature = '{"type":"Feature","properties":{"name":"a"},"geometry":{"type":"Polygon","coordinates":[%s]}}'
    return '{"type":"FeatureCollection","features":[' + feature % ",".join(rings) + "]}"


BOW_TIE = _polygon("[[0,0],[400,400],[400,0],[0,400],[0,0]]")
NAN_POLYGON = _polygon("[[0,0],[NaN,400],[400,0],[0,0]]")

SLIDES = (
    # images
    Case("empty svs", ("empty.svs", "empty", "0 bytes"), slide=lambda b: {"image": b.path("empty.svs")}),
    Case("text svs", ("text.svs", "not a slide|no format"),
         slide=lambda b: {"image": b.path("text.svs", "hello\n" * 99)}),
    Case("folder", ("a folder",), slide=lambda b: {"image": str(b.folder)}),
    Case("no image", ("gone.svs", "no such file"), slide=lambda b: {"image": str(b.folder / "gone.svs")}),
    Case("cut jpeg", ("half.jpg", "truncated|cut"), apart=True,
         slide=lambda b: {"image": _half(b, b.cohort.slides[0].image, "half.jpg")}),
    Case("cut tiff", ("half.tif", "truncated|outside"), slide=lambda b: {"image": _plain_tiff(b)}),
    Case("cut svs", ("half.svs", "truncated|outside"),
         slide=lambda b: {"image": _half(b, b.svs(), "half.svs")}),
    Case("2e9 px png", ("huge.png", "2,000,000,000", "limit"),
         slide=lambda b: {"image": b.path("huge.png", _png_of(50_000, 40_000))}),
    Case("2e9 px jpeg", ("huge.jpg", "2,000,000,000", "limit"), slide=lambda b: {"image": _huge_jpeg(b)}),
    Case("2e9 px svs", ("huge.svs", "44,800", "lists|limit"), slide=lambda b: {"image": _huge_tiff(b)}),
    # resolution
    Case("no mpp", ("A1.jpg", "mpp is unknown", "--mpp"), slide=lambda b: _points(b, "a,500,500")),
    Case("zero mpp", ("mpp", "0.0", "outside|positive"), slide=lambda b: {"mpp": "0"}),
    Case("negative mpp", ("mpp", "-0.5", "outside|positive"), slide=lambda b: {"mpp": "-0.5"}),
    Case("nan mpp", ("mpp", "nan", "outside|positive"), slide=lambda b: {"mpp": "nan"}),
    Case("mpp against the file", ("B1.svs", "mpp given is 1", "file's mpp is 2", "5%"),
         slide=lambda b: {"image": str(b.svs()), "mpp": "1", "st-counts": None, "st-spots": None}),
    Case("mpp against the spots", ("A1.jpg", "mpp given is 1.5", "spot pitch", "5%"), slide=lambda b: {"mpp": "1.5"}),
    Case("zero magnification", ("magnification", "0.0"), code=USAGE, slide=lambda b: {"mag": "0"}),
    Case("mpp and mag", ("mpp", "mag", "one of them"), code=USAGE, slide=lambda b: {"mpp": "2", "mag": "5"}),
    # counts and spots
    Case("duplicate barcodes", ("bad.counts.tsv", "1 duplicate barcodes", r"'\d+x\d+'"),
         slide=lambda b: {"st-counts": b.counts(lambda t: pd.concat([t, t.iloc[:1]]))}),
    Case("duplicate spots", ("bad.spots.tsv", "1 duplicate barcodes"),
         slide=lambda b: {"st-spots": b.spots(lambda t: pd.concat([t, t.iloc[:1]]))}),
    Case("duplicate genes", ("bad.counts.tsv", "1 duplicate gene ids", "'MORPH000'"),
         slide=lambda b: {"st-counts": b.counts(lambda t: t.set_axis(["MORPH000", *t.columns[:-1]], axis=1))}),
    Case("0 % match", ("bad.counts.tsv", "0 of ", "0%", "90%"), slide=lambda b: {"st-counts": _renamed(b, 0.0)}),
    Case("60 % match", ("bad.counts.tsv", "(59|60|61)%", "90%"), slide=lambda b: {"st-counts": _renamed(b, 0.6)}),
    Case("nan coordinates", ("bad.spots.tsv", "pixel_x", "no finite number", "line 4"),
         slide=lambda b: {"st-spots": b.spots(lambda t: t.assign(pixel_x=[*t["pixel_x"][:2], "nan",
         *t["pixel_x"][3:]]))}),
    Case("spots off the image", ("bad.spots.tsv", "1200 x 1200", "outside|off"),
         slide=lambda b: {"st-spots": b.spots(lambda t: t.assign(pixel_x=t["pixel_x"] + 400))}),
    Case("x and y swapped", ("bad.spots.tsv", "swapping x and y"),
         slide=lambda b: {"image": _tall(b), "st-counts": None, "st-spots": None, **_swapped(b)}),
    Case("negative counts", ("bad.counts.tsv", "1 counts are negative", "row 4"),
         slide=lambda b: {"st-counts": _one(b, -3)}),
    Case("fractional counts", ("bad.counts.tsv", "not whole", "1.5", "row 4", "--allow-normalised"),
         slide=lambda b: {"st-counts": _one(b, 1.5)}),
    Case("nan counts", ("bad.counts.tsv", "NaN|no finite|nan"), slide=lambda b: {"st-counts": _one(b, "nan")}),
    Case("text in counts", ("bad.counts.tsv", "many"), slide=lambda b: {"st-counts": _one(b, "many")}),
    Case("no spots", ("bad.spots.tsv", "0 spots"), slide=lambda b: {"st-spots": b.spots(lambda t: t[:0])}),
    Case("no count rows", ("bad.counts.tsv", "0 spots"), slide=lambda b: {"st-counts": b.counts(lambda t: t[:0])}),
    Case("empty counts", ("e.tsv", "0 spots"), slide=lambda b: {"st-counts": b.path("e.tsv")}),
    Case("cut gzip", ("half.tsv.gz", "truncated"),
         slide=lambda b: {"st-counts": _half(b, b.cohort.slides[0].counts, "half.tsv.gz")}),
    Case("no counts file", ("gone.tsv", "does not exist"), slide=lambda b: {"st-counts": str(b.folder / "gone.tsv")}),
    Case("no tissue", ("white.png", r"(\d+) of \1 ", "off the tissue"), slide=lambda b: {"image": _white(b)}),
    Case("long point id", ("points.csv", "300 characters", "128"),
         slide=lambda b: _points(b, "a,500,500", "b" * 300 + ",500,500") | {"mpp": "2"}),
    Case("nul in a point id", ("points.csv", "row 1", "control character"),
         slide=lambda b: _points(b, "a\0b,500,500") | {"mpp": "2"}),
    Case("no such Visium folder", ("outs",),
         slide=lambda b: {"visium": str(b.folder / "outs"), "st-counts": None, "st-spots": None}),
    Case("counts without spots", ("--st-counts", "--st-spots"), code=USAGE, slide=lambda b: {"st-spots": None}),
    # what goes with a slide
    Case("crossing polygon", ("x.geojson", "features.0", "crosses itself", "redraw"),
         slide=lambda b: {"geojson": b.path("x.geojson", BOW_TIE)}),
    Case("labels of other spots", ("obs.tsv", "0 of 2 rows", "90%"),
         slide=lambda b: {"obs": b.path("obs.tsv", "id\tlabel\n1x1\ta\n9x99\tb\n")}),
    Case("reserved metadata", ("X1", "'x'", "rename"), code=USAGE, slide=lambda b: {"meta": "x=1"}),
    Case("slide id leaves the store", ("slide id '../../x'", "80"), code=USAGE, slide=lambda b: {"slide": "../../x"}),
    Case("slide id with nul", (r"slide id 'a\\x00b'",), code=USAGE, slide=lambda b: {"slide": "a\0b"}),
    Case("slide id of 300", ("300 characters", "80"), code=USAGE, slide=lambda b: {"slide": "a" * 300}),
)  # fmt: skip


def _tall(bench: Bench) -> str:
    """Write tissue in a narrow upright band of a square image: swapped, few spots would lie on it."""
    from PIL import Image

    image, _ = synthetic_histology(400, 1000, seed=4, tissue_share=0.9)
    glass = np.full((1000, 1000, 3), 244, np.uint8)
    glass[:, 100:500] = image
    path = bench.folder / "tall.png"
    Image.fromarray(glass).save(path)
    return str(path)


def _swapped(bench: Bench) -> dict[str, str]:
    places = [(x, y) for y in range(100, 1000, 100) for x in (200, 300, 400)]
    names = [f"{x // 100}x{y // 100}" for x, y in places]
    spots = [f"{name}\t{y}\t{x}" for name, (x, y) in zip(names, places, strict=True)]
    return {
        "st-spots": bench.path("bad.spots.tsv", "\n".join(["id\tx\ty", *spots])),
        "st-counts": bench.path("swapped.tsv", "\n".join(["\tG1\tG2", *(f"{name}\t1\t2" for name in names)])),
    }


class _Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (self.path,)


def _checkpoint(bench: Bench, kind: str) -> str:
    import torch
    from safetensors.torch import save_file

    from histostore.backbones import load_backbone

    state = {
        k: v.clone().contiguous() for k, v in load_backbone("timm/resnet10t@random:0")._network.state_dict().items()
    }  # type: ignore[attr-defined]
    first = next(iter(state))
    path = bench.folder / f"{kind}.safetensors"
    if kind == "shape":
        state[first] = torch.zeros(2, 2)
    elif kind == "missing":
        del state[first]
    elif kind == "nan":
        state[first][:] = torch.nan
    save_file(state, path)
    return str(path)


def _embed(*more: Any) -> list[Any]:
    return ["embed", "S", "--tiles", "spots", "--backbone", *more]


def _tile(*more: Any) -> list[Any]:
    return ["tile", "S", "--at", "spots", "--name", "new", "--px", 64, *more]


def _search(*more: Any) -> list[Any]:
    return ["search", "S", "--backbone", "testing", *more]


def _where(text: str) -> list[Any]:
    return ["export", "S", "-o", "never.h5ad", "--where", text]


def _sheet(bench: Bench, text: str) -> list[Any]:
    return ["ingest", "S", "--sheet", bench.path("sheet.csv", text)]


def _stranger(bench: Bench) -> list[Any]:
    """Embed with another backbone under the same name, in the case's own store."""
    store = open_store(bench.own_store())
    from histostore.backbones.testing_backbone import TestingBackbone
    from histostore.stages.embed import embed

    other = TestingBackbone()
    other.spec = replace(other.spec, weights_sha256="0" * 64)
    embed(store, "A1", [other], tiles="spots", replace=True)
    return ["predict", "S", "--slides", "A1", "--head", "ridge-testing"]


COMMANDS = (
    # the call itself
    Case("no command", ("COMMAND",), lambda b: [], code=USAGE),
    Case("unknown command", ("invalid choice: 'imbed'",), lambda b: ["imbed", "S"], code=USAGE),
    Case("unknown option", ("--pixels",), lambda b: _tile("--pixels", 5), code=USAGE),
    Case("text for a number", ("--px", "'big'"), lambda b: ["tile", "S", "--at", "spots", "--px", "big"], code=USAGE),
    # stores
    Case("no store", ("none", "histostore init"), lambda b: ["info", b.folder / "none"], code=USAGE),
    Case("a file as store", ("file", "no store"), lambda b: ["info", b.path("file", "x")], code=USAGE),
    Case("store name leaves", ("store name '../x'", "80"),
         lambda b: ["init", b.folder / "n", "--name", "../x"], code=USAGE),
    Case("store name of 300", ("store name", "300 characters"),
         lambda b: ["init", b.folder / "n", "--name", "a" * 300], code=USAGE),
    Case("store in a store", ("is a store already",), lambda b: ["init", "S"]),
    Case("store in a full folder", ("not an empty folder",), lambda b: [b.path("x"), ["init", b.folder]][1]),
    Case("store below a file", ("x",), lambda b: ["init", b.path("x") + "/S"]),
    Case("newer major format", ("format 2.0", "newer"), lambda b: [b.header(format="2.0"), ["info", "S"]][1]),
    Case("newer minor format, written to", ("format 1.9", "only read"),
         lambda b: [b.header(format="1.9"), ["tile", "S", "--at", "spots", "--px", 32, "--name", "n"]][1]),
    Case("newer minor format, ingested to", ("format 1.9", "only read"),
         lambda b: [b.header(format="1.9"), ["ingest", "S", "--slide", "X1", "--image", b.svs()]][1]),
    Case("newer minor format, slide deleted", ("format 1.9", "only read"),
         lambda b: [b.header(format="1.9"), ["delete", "S", "--slide", "A1"]][1]),
    Case("damaged header", ("STORE.json", "checksum|damaged"),
         lambda b: [(b.own_store() / "STORE.json").write_text('{"format": "1.0"}'), ["info", "S"]][1]),
    # names
    Case("unknown slide", ("no slide 'A2'", "there are A1, B1"),
         lambda b: ["info", "S", "--slide", "A2"], code=USAGE),
    Case("unknown slide to tile", ("no slide 'A11'", "'A1'"), lambda b: _tile("--slides", "B1,A11"), code=USAGE),
    Case("unknown slide to delete", ("no slide 'A2'", "A1, B1"),
         lambda b: ["delete", "S", "--slide", "A2"], code=USAGE),
    Case("slide name leaves", (r"slide id '\.\./A1'",), lambda b: ["delete", "S", "--slide", "../A1"], code=USAGE),
    Case("unknown points", ("no points 'spot'", "spots"),
         lambda b: ["tile", "S", "--at", "spot", "--px", 64, "--slides", "A1"], code=USAGE),
    Case("unknown regions", ("no regions 'tumor'", "A1"),
         lambda b: _tile("--region", "tumor", "--slides", "A1"), code=USAGE),
    Case("unknown tiles", ("'spot'", "spots"),
         lambda b: ["embed", "S", "--backbone", "testing", "--tiles", "spot", "--slides", "A1"], code=USAGE),
    Case("tiles name leaves", ("tiles name", r"'\.\.'|\.\./x"),
         lambda b: _tile("--name", "../x", "--slides", "A1"), code=USAGE),
    Case("tiles name of 300", ("tiles name", "300 characters"),
         lambda b: _tile("--name", "a" * 300, "--slides", "A1"), code=USAGE),
    Case("tiles name with nul", ("tiles name", r"\\x00"),
         lambda b: _tile("--name", "a\0", "--slides", "A1"), code=USAGE),
    Case("head name leaves", ("head name '../x'",),
         lambda b: ["fit", "S", "--genes", "top-mean:3", "--save", "../x"], code=USAGE),
    Case("head name of 300", ("head name", "300 characters"),
         lambda b: ["fit", "S", "--genes", "top-mean:3", "--save", "a" * 300], code=USAGE),
    Case("unknown head", ("no head 'ridge-test'", "did you mean 'ridge-testing'"),
         lambda b: ["predict", "S", "--head", "ridge-test", "--slides", "A1"], code=USAGE),
    Case("unknown kind of head", ("'rige'", "did you mean 'ridge'"),
         lambda b: ["fit", "S", "--head", "rige"], code=USAGE),
    Case("unknown embeddings", ("'testin'", "did you mean 'spots/testing'"),
         lambda b: ["export", "S", "--backbone", "testin", "-o", b.folder / "x.h5ad"], code=USAGE),
    Case("unknown backbone", ("efficientnet_lite1", "did you mean 'efficientnet_lite0'"),
         lambda b: _embed("efficientnet_lite1"), code=USAGE),
    Case("unknown timm model", ("resnet51", "resnet50"), lambda b: _embed("timm/resnet51"), code=USAGE),
    Case("unknown module", ("no module 'nobodys'",), lambda b: _embed("nobodys.models:make"), code=USAGE),
    Case("unknown spot", ("no tile '99x99'", "A1"),
         lambda b: _search("--slide", "A1", "--spot", "99x99"), code=USAGE),
    Case("unknown column", ("no column 'patiant'", "did you mean 'patient'"),
         lambda b: _where("patiant == 'A'"), code=USAGE),
    # options
    Case("tile of no size", ("px", "um", "one of them"), lambda b: ["tile", "S", "--at", "spots"], code=USAGE),
    Case("tile of 0 px", ("px is 0", "8-8192"), lambda b: ["tile", "S", "--at", "spots", "--px", 0], code=USAGE),
    Case("tile in unknown mpp", ("mpp", "'fine'", "native"), lambda b: _tile("--mpp", "fine"), code=USAGE),
    Case("tile finer than the slide", ("0.25 mpp", "2 mpp", "8.00x", "--allow-upsample"),
         lambda b: _tile("--mpp", 0.25, "--slides", "A1")),
    Case("overlap of spots", ("overlap is for grids",),
         lambda b: ["tile", "S", "--at", "spots", "--px", 64, "--overlap", 0.5], code=USAGE),
    Case("mpp beside a magnification", ("mpp or mag, one of them",),
         lambda b: ["tile", "S", "--grid", "--px", 64, "--mpp", 2, "--mag", 20], code=USAGE),
    Case("overlap over 1", ("overlap is 1.5",),
         lambda b: ["tile", "S", "--grid", "--px", 64, "--overlap", 1.5], code=USAGE),
    Case("tissue over 1", ("--min-tissue is 2", "0-1"),
         lambda b: ["tile", "S", "--grid", "--px", 64, "--min-tissue", 2], code=USAGE),
    Case("no tiles at most", ("--max-tiles is 0",), lambda b: _tile("--max-tiles", 0), code=USAGE),
    Case("negative seed", ("seed", "-1"),
         lambda b: ["tile", "S", "--grid", "--px", 64, "--max-tiles", 3, "--seed", -1], code=USAGE),
    Case("quality 1000", ("quality is 1000", "1-100"), lambda b: _tile("--quality", 1000), code=USAGE),
    Case("no read batch", ("--read-batch", "0"), lambda b: _tile("--read-batch", 0), code=USAGE),
    Case("no workers", ("--workers", "-1"), lambda b: _tile("--workers", -1), code=USAGE),
    Case("no batch", ("--batch", "0"), lambda b: _embed("testing", "--batch", 0, "--replace"), code=USAGE),
    Case("no shard rows", ("--shard-rows|shard_rows", "0"),
         lambda b: _embed("testing", "--shard-rows", 0), code=USAGE),
    Case("odd shard rows", ("shard_rows|--shard-rows", "300", "256"),
         lambda b: _embed("testing", "--shard-rows", 300), code=USAGE),
    Case("no threads", ("--threads", "0"), lambda b: _embed("timm/resnet10t@random:0", "--threads", 0), code=USAGE),
    Case("no tissue to tile", ("white", "0 of|no tile"), lambda b: _white_store(b)),
    Case("same name, other tiles", ("A1", "'spots'", "another spec", "--replace"),
         lambda b: ["tile", "S", "--at", "spots", "--px", 32, "--slides", "A1"]),
    Case("unknown split", ("'by-chance'", "leave-one-out"),
         lambda b: ["fit", "S", "--split", "by-chance"], code=USAGE),
    Case("unknown split column", ("'patent'", "patient"),
         lambda b: ["fit", "S", "--split", "leave-one-out:patent", "--genes", "top-mean:3"], code=USAGE),
    Case("one patient on both sides", ("patient", "--allow-same-patient"),
         lambda b: ["fit", "S", "--genes", "top-mean:3", "--split", "leave-one-out:barcode"], code=USAGE),
    Case("one slide to fit", ("'patient'", "only 'A'"),
         lambda b: ["fit", "S", "--genes", "top-mean:3", "--slides", "A1"], code=USAGE),
    Case("unknown panel", ("'top-varianse:50'", "top-variance"),
         lambda b: ["fit", "S", "--genes", "top-varianse:50"], code=USAGE),
    Case("unknown gene", ("MORPH999",), lambda b: ["fit", "S", "--genes", "MORPH000,MORPH999"], code=USAGE),
    Case("more genes than there are", ("500", "20|genes"),
         lambda b: ["fit", "S", "--genes", "top-mean:500"], code=USAGE),
    Case("sigma in words", ("--context-um", "'wide'"), lambda b: ["fit", "S", "--context-um", "wide"], code=USAGE),
    Case("negative sigma", ("--context-um|context_um", "-5"), lambda b: ["fit", "S", "--context-um=-5"], code=USAGE),
    Case("no neighbours", ("-k", "'0'"),
         lambda b: _search("--slide", "A1", "--spot", b.cohort.slides[0].spot_ids[0], "-k", 0), code=USAGE),
    Case("no query", ("--spot", "--image"), lambda b: _search(), code=USAGE),
    Case("weight of a gene", ("GENE001=much", "GENE=WEIGHT"),
         lambda b: _search("--slide", "A1", "--spot", "1x1", "--expressing", "GENE001=much"), code=USAGE),
    Case("a gene twice", ("GENE001=3", "each gene once"),
         lambda b: _search("--slide", "A1", "--spot", "1x1", "--expressing", "GENE001,GENE001=3"), code=USAGE),
    Case("spot without its slide", ("slide",), lambda b: _search("--spot", "1x1"), code=USAGE),
    Case("query image gone", ("gone.png", "no such file"), lambda b: _search("--image", b.folder / "gone.png")),
    Case("gc of the future", ("--grace", "-1"), lambda b: ["gc", "S", "--grace", -1], code=USAGE),
    # outputs
    Case("export over a file", ("there.h5ad", "is there already", "--overwrite"),
         lambda b: ["export", "S", "-o", b.path("there.h5ad", "x")]),
    Case("export of another kind", ("x.csv", ".h5ad or .zarr"),
         lambda b: ["export", "S", "-o", b.folder / "x.csv"], code=USAGE),
    Case("export into no folder", ("no_folder",),
         lambda b: ["export", "S", "-o", b.folder / "no_folder" / "x.h5ad"], code=USAGE),
    Case("gallery into no folder", ("no_folder",),
         lambda b: _search("--slide", "A1", "--spot", b.cohort.slides[0].spot_ids[0], "--gallery",
         b.folder / "no_folder" / "x.png"), code=USAGE),
    Case("hits into no folder", ("no_folder",),
         lambda b: _search("--slide", "A1", "--spot", b.cohort.slides[0].spot_ids[0], "-o",
         b.folder / "no_folder" / "x.csv"), code=USAGE),
    # backbones and heads
    Case("wrong shape", ("shape.safetensors", r"tensor '[\w.]+' is \(2, 2\)", "wants"),
         lambda b: _embed("timm/resnet10t", "--checkpoint", _checkpoint(b, "shape"))),
    Case("tensor missing", ("missing.safetensors", "1 of", r"first '[\w.]+'"),
         lambda b: _embed("timm/resnet10t", "--checkpoint", _checkpoint(b, "missing"))),
    Case("nan weights", ("nan.safetensors", r"tensor '[\w.]+' has \d+ values that are NaN"),
         lambda b: _embed("timm/resnet10t", "--checkpoint", _checkpoint(b, "nan"))),
    Case("text as weights", ("w.safetensors", "not a whole safetensors"),
         lambda b: _embed("timm/resnet10t", "--checkpoint", b.path("w.safetensors", "hello"))),
    Case("no weights", ("gone.safetensors", "no such file"),
         lambda b: _embed("timm/resnet10t", "--checkpoint", b.folder / "gone.safetensors")),
    Case("pickle", ("w.pt", "pickle", "--allow-pickle"),
         lambda b: _embed("timm/resnet10t", "--checkpoint", b.path("w.pt", pickle.dumps({}))), code=USAGE),
    Case("pickle that would run code", ("evil.pt", "more than tensors"),
         lambda b: _embed("timm/resnet10t", "--allow-pickle", "--checkpoint", b.path("evil.pt",
         pickle.dumps(_Evil(str(b.folder / "ran")), protocol=2)))),
    Case("two checkpoints", ("names its weights already|weights",),
         lambda b: _embed("timm/resnet10t@random:0", "--checkpoint", "x.safetensors"), code=USAGE),
    Case("head of another backbone", ("ridge-testing", "A1", r"[0-9a-f]{8}.*[0-9a-f]{8}", "fit again"), _stranger),
    # filters
    Case("where cut short", ("where", "cannot be read"), lambda b: _where("patient =="), code=USAGE),
    Case("where with a call", ("where", "call is not allowed"),
         lambda b: _where("__import__('os').mkdir('ran')"), code=USAGE),
    Case("where with an attribute", ("where", "attribute is not allowed"),
         lambda b: _where("patient.__class__ == 'A'"), code=USAGE),
    Case("where with a statement", ("where", "cannot be read"),
         lambda b: _where("patient == 'A'; import os"), code=USAGE),
    Case("where of two kinds", ("where", "compares text with numbers"), lambda b: _where("patient > 3"), code=USAGE),
    # polygons, labels, sheets
    Case("crossing ring", ("x.geojson", "features.0", "crosses itself"),
         lambda b: ["annotate", "S", "--slide", "A1", "--geojson", b.path("x.geojson", BOW_TIE)]),
    Case("nan in a ring", ("n.geojson", "NaN", "finite"),
         lambda b: ["annotate", "S", "--slide", "A1", "--geojson", b.path("n.geojson", NAN_POLYGON)]),
    Case("nested for ever", ("deep.geojson", "nested too deeply"),
         lambda b: ["annotate", "S", "--slide", "A1", "--geojson", b.path("deep.geojson",
         "[" * 200_000 + "]" * 200_000)]),
    Case("no json", ("t.geojson", "no JSON", "line 1"),
         lambda b: ["annotate", "S", "--slide", "A1", "--geojson", b.path("t.geojson", "hello")]),
    Case("no geojson", ("gone.geojson", "does not exist"),
         lambda b: ["annotate", "S", "--slide", "A1", "--geojson", b.folder / "gone.geojson"]),
    Case("two annotations", ("one of",),
         lambda b: ["annotate", "S", "--slide", "A1", "--geojson", "x", "--obs", "y"], code=USAGE),
    Case("table of other slides", ("t.csv", "no row matches", "'slide'"),
         lambda b: ["annotate", "S", "--table", b.path("t.csv", "slide,age\nZ1,5\n")]),
    Case("table with a row twice", ("t.csv", "'slide'", "'A1'"),
         lambda b: ["annotate", "S", "--table", b.path("t.csv", "slide,age\nA1,5\nA1,6\n")]),
    Case("table with a reserved column", ("n_counts", "rename"),
         lambda b: ["annotate", "S", "--table", b.path("t.csv", "slide,n_counts\nA1,5\n")], code=USAGE),
    Case("table without a key", ("t.csv", "no column 'slide'"),
         lambda b: ["annotate", "S", "--table", b.path("t.csv", "who,age\nA1,5\n")]),
    Case("value without a name", ("--set", "KEY=VALUE"),
         lambda b: ["annotate", "S", "--slide", "A1", "--set", "patient"], code=USAGE),
    Case("value given twice", ("--set", "'patient'", "twice"),
         lambda b: ["annotate", "S", "--slide", "A1", "--set", "patient=A", "--set", "patient=B"], code=USAGE),
    Case("labels of a gone spot", ("obs.tsv", "0 of 1 rows"),
         lambda b: ["annotate", "S", "--slide", "A1", "--obs", b.path("obs.tsv", "id\tlabel\n99x99\ta\n")]),
    Case("labels name leaves", ("labels name '../x'",),
         lambda b: ["annotate", "S", "--slide", "A1", "--name", "../x", "--obs", b.path("obs.tsv",
         "id\tlabel\n99x99\ta\n")], code=USAGE),
    Case("slide beside a table", ("--slide is of --geojson or --obs or --set, not of --table",),
         lambda b: ["annotate", "S", "--slide", "A1", "--table", b.path("t.csv", "slide,age\nA1,5\n")], code=USAGE),
    Case("name beside a table", ("--name is of --geojson or --obs or --review, not of --table",),
         lambda b: ["annotate", "S", "--name", "x", "--table", b.path("t.csv", "slide,age\nA1,5\n")], code=USAGE),
    Case("key of no table", ("--by is of --table, not of --set",),
         lambda b: ["annotate", "S", "--slide", "A1", "--set", "age=5", "--by", "patient"], code=USAGE),
    Case("metadata beside a sheet", ("a sheet says", "write --mpp, --meta there"),
         lambda b: [*_sheet(b, "slide,image\n"), "--meta", "site=x", "--mpp", "2"], code=USAGE),
    Case("sheet gone", ("gone.csv", "does not exist"), lambda b: ["ingest", "S", "--sheet", b.folder / "gone.csv"]),
    Case("sheet without images", ("sheet.csv", "no column 'image'"), lambda b: _sheet(b, "slide,file\nX1,x.jpg\n")),
    Case("sheet with a file gone", ("sheet.csv line 2", "'image'", "x.jpg", "does not exist"),
         lambda b: _sheet(b, "slide,image\nX1,x.jpg\n")),
    Case("sheet with a slide twice", ("sheet.csv line 3", "'X1'", "line 2"),
         lambda b: _sheet(b, f"slide,image\nX1,{b.svs()}\nX1,{b.svs()}\n")),
    Case("sheet with zero mpp", ("sheet.csv line 2", "'mpp'", "'0'", "positive"),
         lambda b: _sheet(b, f"slide,image,mpp\nX1,{b.svs()},0\n")),
    Case("sheet with a bad id", ("sheet.csv line 2", "'slide'", "'../x'"),
         lambda b: _sheet(b, f"slide,image\n../x,{b.svs()}\n")),
    Case("another image for a slide", ("A1", "another image"),
         lambda b: ["ingest", "S", "--slide", "A1", "--image", b.svs()]),
    Case("another mpp for a slide", ("B1", "2 mpp", "1.95"),
         lambda b: ["ingest", "S", "--slide", "B1", "--image", b.svs(), "--mpp", 1.95]),
    Case("embed without a size", ("--px",),
         lambda b: ["ingest", "S", "--slide", "X1", "--image", b.svs(), "--embed", "testing"], code=USAGE),
)  # fmt: skip


def _white_store(bench: Bench) -> list[Any]:
    from histostore.cli.main import main

    store = str(bench.own_store())
    assert main(["ingest", store, "--slide", "white", "--image", _white(bench), "--mpp", "2"]) == 0
    return ["tile", "S", "--slides", "white", "--grid", "--px", 64]


@pytest.fixture
def bench(cohort: Cohort, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(cohort, built, tmp_path)


def tree(*folders: Path) -> dict[str, tuple[int, int] | None]:
    """Return every file with size and mtime, and every folder."""
    found: dict[str, tuple[int, int] | None] = {}
    for path in (p for folder in folders for p in folder.rglob("*")):
        stat = path.lstat()
        found[str(path)] = None if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
    return found


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id.replace(" ", "-")) for c in (*SLIDES, *COMMANDS)])
def test_bad_input_gets_one_line_and_writes_nothing(case: Case, bench: Bench, call: Any, spawn: Any) -> None:
    argv = case.command(bench)
    before = tree(bench.store, bench.folder)
    told = spawn(*argv) if case.apart else call(*argv)
    check_told(told, case.code, case.says)
    assert tree(bench.store, bench.folder) == before, "something was written"


def check_told(told: Any, code: int, says: tuple[str, ...]) -> None:
    assert "Traceback" not in told.err, told.err
    assert len(told.errors) == 1, told.err
    line = told.errors[0]
    assert line.startswith("histostore: error: "), line
    for words in says:
        assert re.search(words, line), f"{words!r} is not in: {line}"
    assert told.code == code, line
    assert len(line) < 700, line


def test_the_other_slides_of_a_sheet_go_on(cohort: Cohort, tmp_path: Path, spawn: Any) -> None:
    """Every bad slide of the table in one sheet, the two good ones first and last."""
    columns = ("slide", "image", "mpp", "mag", "st_counts", "st_spots", "visium", "points", "obs", "geojson")
    rows: list[str] = []
    for i, case in enumerate(SLIDES):
        folder = tmp_path / f"case{i}"
        folder.mkdir()
        bench = Bench(cohort, tmp_path, folder)
        assert case.slide is not None
        fields = {k.replace("-", "_"): v for k, v in (bench.good() | case.slide(bench)).items()}
        if not _fits_a_sheet(fields):
            continue
        rows.append(",".join(str(fields.get(c) or "") for c in columns).replace("X1", f"bad{i}", 1))
    first, last = cohort.slides
    ends = [f"{s.name},{s.image},2,,{s.counts},{s.spots},,,," for s in (first, last)]
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("\n".join([",".join(columns), ends[0], *rows, ends[1]]))
    store = tmp_path / "S"
    assert spawn("init", store).code == 0
    told = spawn("ingest", store, "--sheet", sheet)
    assert told.code == DATA
    assert len(told.errors) == len(rows) > 25, told.err
    assert "Traceback" not in told.err
    assert f"{len(rows)} of {len(rows) + 2} slides failed" in told.err
    assert open_store(store).slides() == ["A1", "B1"]
    assert {p.name for p in (store / "slides").iterdir()} == {"A1", "B1"}
    assert not list(store.rglob(".partial-*"))


def _fits_a_sheet(fields: dict[str, Any]) -> bool:
    """Whether the case is of a line's files and numbers: each line has its own id here, and options are no columns."""
    return fields["slide"] == "X1" and "meta" not in fields


def test_barcodes_in_another_order_give_the_same_data(ingested: Path, copy_of: Any, cohort: Cohort, call: Any) -> None:
    store = copy_of(ingested)
    a1, rng = cohort.slides[0], np.random.default_rng(1)
    spots = pd.read_csv(a1.spots, sep="\t").sample(frac=1, random_state=1)
    spots.to_csv(store.parent / "spots.tsv", sep="\t", index=False)
    counts = pd.read_csv(a1.counts, sep="\t", index_col=0)
    counts = counts.iloc[rng.permutation(len(counts)), rng.permutation(counts.shape[1])]
    counts.to_csv(store.parent / "counts.tsv", sep="\t")
    argv = ["--st-counts", store.parent / "counts.tsv", "--st-spots", store.parent / "spots.tsv", "--obs", a1.obs]
    assert call("ingest", store, "--slide", "P1", "--image", a1.image, *argv).code == 0
    straight, shuffled = (hs.open(store).view(slides=[s]).to_adata(images=False) for s in ("A1", "P1"))
    assert list(straight.obs["barcode"]) != list(shuffled.obs["barcode"])
    row = {barcode: i for i, barcode in enumerate(shuffled.obs["barcode"])}
    same = shuffled[[row[b] for b in straight.obs["barcode"]], straight.var_names]
    np.testing.assert_array_equal(same.X.toarray(), straight.X.toarray())
    np.testing.assert_array_equal(same.obsm["spatial"], straight.obsm["spatial"])
    assert list(same.obs["label"]) == list(straight.obs["label"])


def test_a_store_of_a_newer_minor_format_can_be_read(bench: Bench, call: Any) -> None:
    bench.header(format="1.9")
    spot = bench.cohort.slides[0].spot_ids[0]
    for argv in (
        ["info", bench.store],
        ["search", bench.store, "--slide", "A1", "--spot", spot],
        ["export", bench.store, "-o", bench.folder / "x.h5ad"],
        ["verify", bench.store],
    ):
        assert call(*argv).code == 0, argv


def test_an_error_is_one_json_object_where_json_is_asked_for(built: Path, call: Any) -> None:
    for argv, kind, code in (
        (["info", built, "--slide", "A2"], "not_found", 2),
        (["tile", built, "--at", "spots", "--px", "big"], "usage", 2),
        (["tile", built, "--slides", "A1", "--at", "spots", "--px", 32], "conflict", 3),
    ):
        told = call(*argv, "--json")
        error = json.loads(told.out)["error"]
        assert told.code == code
        assert (error["kind"], error["exit_code"]) == (kind, code)
        assert error["message"] in told.err


def test_a_cut_real_slide_is_refused(real_data: Path, built: Path, tmp_path: Path, spawn: Any) -> None:
    whole = (real_data / "slides" / "CMU-1-Small-Region.svs").read_bytes()
    cut = tmp_path / "cut.svs"
    cut.write_bytes(whole[: len(whole) // 2])
    before = tree(built)
    told = spawn("ingest", built, "--slide", "CMU", "--image", cut)
    check_told(told, DATA, ("cut.svs", "truncated|outside"))
    assert tree(built) == before
