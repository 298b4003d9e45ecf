"""A folder of images is one slide: a mosaic with every image in a cell of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

import histostore as hs
from histostore.errors import ConflictError, SlideError, UsageError
from histostore.protocols import TileStatus
from histostore.slides import open_slide
from histostore.slides.source import source_digest, source_files
from histostore.testing.contracts import SlideContract

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.protocols import Slide

OK, PADDED, UNREADABLE = TileStatus.OK, TileStatus.PADDED, TileStatus.UNREADABLE


class TestFolderSlide(SlideContract):
    def make_slide(self, folder: Path, image: NDArray[np.uint8]) -> Slide:
        (folder / "patches" / "one").mkdir(parents=True)
        (folder / "patches" / "one" / "a.png").write_bytes(imagecodecs.png_encode(image))
        return open_slide(folder / "patches")

    def test_a_damaged_segment_costs_only_its_own_tiles(self, tmp_path: Path, image: NDArray[np.uint8]) -> None:
        """Here a segment is one image of several."""
        data = imagecodecs.png_encode(image)
        for name, held in (("a", data), ("b", data[:9000] + bytes(64) + data[9064:]), ("c", data)):
            (tmp_path / "patches" / name).mkdir(parents=True)
            (tmp_path / "patches" / name / "x.png").write_bytes(held)
        with open_slide(tmp_path / "patches") as slide:
            for _ in range(2):
                pixels, status = centred(slide, 300)
                assert status.tolist() == [OK, UNREADABLE, OK]
                assert not pixels[1].any()
                assert np.array_equal(pixels[2], image[100:400, 200:500])
            assert slide.thumbnail(500).any()


def noise(seed: int, width: int, height: int | None = None) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (height or width, width, 3), dtype=np.uint8)


def png(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(image))


@pytest.fixture
def patches(tmp_path: Path) -> tuple[Path, dict[str, NDArray[np.uint8]]]:
    root = tmp_path / "patches"
    images = {f"{c}/{i}.png": noise(10 * k + i, 64) for k, c in enumerate(("glom", "other")) for i in range(4)}
    for name, image in images.items():
        png(root / name, image)
    return root, images


def centred(slide: Slide, px: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return slide.read(np.floor(slide.centres - px / 2 + 0.5).astype(np.int64), px=px)


def test_a_tile_about_an_image_is_that_image_in_the_order_of_names(patches: tuple) -> None:
    root, images = patches
    with open_slide(root) as slide:
        assert slide.images.names == tuple(sorted(images))
        assert slide.images.classes == ("glom",) * 4 + ("other",) * 4
        pixels, status = centred(slide, 64)
        assert status.tolist() == [OK] * 8
        for tile, name in zip(pixels, slide.images.names, strict=True):
            assert np.array_equal(tile, images[name])


@pytest.mark.parametrize("px", [65, 100, 191])
def test_a_larger_tile_sees_glass_and_no_neighbour(patches: tuple, px: int) -> None:
    root, images = patches
    with open_slide(root) as slide:
        pixels, status = centred(slide, px)
        assert set(status.tolist()) == {PADDED}
        for tile, name in zip(pixels, slide.images.names, strict=True):
            assert (tile != 255).any(axis=2).sum() == (images[name] != 255).any(axis=2).sum()
            at = (px - 64 + 1) // 2 if px % 2 == 0 else px - 64 - (px - 64) // 2
            shown = [np.array_equal(tile[d : d + 64, d : d + 64], images[name]) for d in (at - 1, at, at + 1)]
            assert any(shown)


def test_images_of_unequal_sizes_lie_in_the_middle_of_equal_cells(tmp_path: Path) -> None:
    images = {"a/small.png": noise(1, 20, 30), "a/wide.png": noise(2, 100, 40), "b/tall.png": noise(3, 50, 90)}
    for name, image in images.items():
        png(tmp_path / "p" / name, image)
    with open_slide(tmp_path / "p") as slide:
        assert slide.properties["histostore.sizes"] == "3: 20x30 to 100x90 px"
        for px, want in ((20, [OK, OK, OK]), (40, [PADDED, OK, OK]), (50, [PADDED, PADDED, OK])):
            pixels, status = centred(slide, px)
            assert status.tolist() == want
            for tile, name in zip(pixels, slide.images.names, strict=True):
                height, width = images[name].shape[:2]
                high, wide = min(height, px), min(width, px)
                y, x = (height - high) // 2, (width - wide) // 2
                v, u = (px - high) // 2, (px - wide) // 2
                assert np.array_equal(tile[v : v + high, u : u + wide], images[name][y : y + high, x : x + wide])


def test_jpeg_png_tiff_grey_and_alpha_lie_side_by_side(tmp_path: Path) -> None:
    root, image = tmp_path / "p", noise(4, 32)
    png(root / "a" / "rgb.png", image)
    png(root / "a" / "grey.png", np.ascontiguousarray(image[..., 0]))
    png(root / "b" / "rgba.png", np.dstack([image, np.full((32, 32), 255, np.uint8)]))
    (root / "b" / "photo.JPG").write_bytes(imagecodecs.jpeg_encode(image, level=95))
    tifffile.imwrite(root / "b" / "scan.tif", image, photometric="rgb")
    with open_slide(root) as slide:
        pixels, status = centred(slide, 32)
        assert status.tolist() == [OK] * 5
        shown = dict(zip(slide.images.names, pixels, strict=True))
        assert np.array_equal(shown["a/grey.png"], np.repeat(image[..., :1], 3, axis=2))
        for name in ("a/rgb.png", "b/rgba.png", "b/scan.tif"):
            assert np.array_equal(shown[name], image), name
        assert {"imagecodecs", "tifffile"} <= {w for part in slide.reader.split(", ") for w in part.split()}


def test_what_is_no_image_is_counted_and_left_out(patches: tuple) -> None:
    root, images = patches
    (root / "glom" / "text.png").write_text("no image")
    (root / "glom" / "notes.txt").write_text("by hand")
    (root / "other" / "._0.png").write_bytes(b"a resource fork")
    png(root / "loose.png", noise(9, 64))
    with open_slide(root) as slide:
        assert slide.images.unreadable == ("glom/text.png",)
        assert slide.images.others == 2
        assert len(slide.images.names) == len(images) + 1
        assert slide.images.classes[slide.images.names.index("loose.png")] is None


@pytest.mark.parametrize("what", ["empty", "text", "huge"])
def test_a_folder_without_patches_is_one_error(tmp_path: Path, what: str) -> None:
    root = tmp_path / "p"
    (root / "a").mkdir(parents=True)
    if what == "text":
        (root / "a" / "x.png").write_text("no image")
    if what == "huge":
        Image.fromarray(np.zeros((1, 9000), np.uint8)).save(root / "a" / "x.png")
    said = {"empty": "holds no images", "text": "none of its 1 images", "huge": "slide of its own"}[what]
    with pytest.raises(SlideError, match=said):
        open_slide(root)


def test_the_digest_is_of_names_and_bytes(patches: tuple, tmp_path: Path) -> None:
    root, _ = patches
    before = source_digest(root)
    assert [p.relative_to(root).as_posix() for p in source_files(root)][:2] == ["glom/0.png", "glom/1.png"]
    (root / "glom" / "Thumbs.db").write_bytes(b"made by a file manager")
    assert source_digest(root) == before
    (root / "glom" / "0.png").rename(root / "other" / "9.png")
    assert source_digest(root) != before


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Two folders (of two patients) of dark and pale patches, one image cut, one without a class."""
    rng = np.random.default_rng(0)
    for slide in ("P", "Q"):
        for label, level in (("glom", 90), ("other", 170)):
            for i in range(12):
                image = np.clip(rng.normal(level, 30, (64, 64, 3)), 0, 255).astype(np.uint8)
                png(tmp_path / slide / label / f"{i:02}.png", image)
    data = (tmp_path / "P" / "glom" / "03.png").read_bytes()
    (tmp_path / "P" / "glom" / "03.png").write_bytes(data[: len(data) // 2])
    png(tmp_path / "Q" / "loose.png", noise(5, 64))
    return tmp_path


def test_folders_are_tiled_embedded_and_learned_from_as_slides_are(cells: Path, cli, capsys) -> None:
    store = cells / "S"
    cli("init", store)
    for slide in ("P", "Q"):
        told = cli("ingest", store, "--slide", slide, "--image-folder", cells / slide, "--mpp", 0.5, "--meta",
                   f"patient={slide}")  # fmt: skip
    assert "25 images, 1 images without a class" in told.stdout
    cli("tile", store, "--at", "spots", "--px", 64, "--codec", "lossless")
    cli("embed", store, "--backbone", "testing")
    opened = hs.open(store)
    obs = opened.view(tiles="spots").obs()
    assert obs.loc["P:glom/03.png", "status"] == "unreadable"
    assert obs["class"].value_counts().to_dict() == {"glom": 24, "other": 24}
    result = hs.tl.fit(opened, hs.heads.Logistic(1e-2), labels="class", split="leave-one-out:patient", save="c")
    assert result.evaluation.score() > 0.95
    hs.tl.predict(opened, "c")
    called = opened.view(tiles="spots").obs()
    assert called.loc["Q:loose.png", "call_c"] in ("glom", "other")
    # twice is a no-op, another folder under the same id a conflict
    again = cli("ingest", store, "--slide", "P", "--image-folder", cells / "P", "--mpp", 0.5, "--meta", "patient=P")
    assert "already there" in again.stdout
    png(cells / "P" / "other" / "99.png", noise(1, 64))
    with pytest.raises(ConflictError, match="another image"):
        hs.pp.ingest(opened, "P", image_folder=cells / "P", mpp=0.5)
    with pytest.raises(SlideError, match="not the file slide 'P' was ingested from"):
        hs.pp.tile(opened, "P", hs.TileSpec.grid(px=64), name="g")


def test_labels_beside_the_folders_are_joined_by_name(cells: Path) -> None:
    store = hs.create(cells / "S")
    (cells / "obs.csv").write_text("id,stain\n" + "".join(f"other/{i:02}.png,PAS\n" for i in range(12)))
    hs.pp.ingest(store, "P", image_folder=cells / "P", mpp=0.5, obs=cells / "obs.csv")
    obs = store.view().obs(["class", "stain"])
    assert obs.groupby("class")["stain"].count().to_dict() == {"glom": 0, "other": 12}


BAD = [
    ({"image": "P", "mpp": 0.5}, SlideError, "a folder, not a slide file"),
    ({"image_folder": "P"}, SlideError, "mpp is unknown"),
    ({"image_folder": "P/glom/00.png", "mpp": 0.5}, UsageError, "is no folder"),
    ({"image_folder": "P", "mpp": 0.5, "points": "P/x.csv"}, UsageError, "points cannot belong"),
]


@pytest.mark.parametrize(("given", "error", "said"), BAD, ids=[b[2] for b in BAD])
def test_a_wrong_request_is_one_line(cells: Path, given: dict, error: type, said: str) -> None:
    store = hs.create(cells / "S")
    paths = {k: cells / v if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(error, match=said) as told:
        hs.pp.ingest(store, "P", **paths)
    assert "\n" not in str(told.value)
    assert store.slides() == []
