"""What a client gets: the catalog, pictures and hits of the store, equal to what the library gives."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import histostore as hs
from histostore.stages.hits import tiles_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serve.conftest import Client  # types only


@pytest.fixture(scope="module")
def store(embedded: Path) -> hs.Store:
    return hs.open(embedded)


@pytest.fixture(scope="module")
def spots(store: hs.Store) -> list[str]:
    return store.view(backbone="testing", slides=["A1"]).column("barcode").tolist()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_health_says_which_store_is_served(api: Client) -> None:
    found = api.get("/v1/health")
    assert found.status == 200
    assert found.json() == {"status": "ok", "version": hs.__version__, "store": "synthetic", "slides": 2}


def test_slides_are_listed_by_id_in_pages(api: Client) -> None:
    every = api.get("/v1/slides").json()
    assert [s["slide"] for s in every["slides"]] == ["A1", "B1"]
    second = api.get("/v1/slides?limit=1&offset=1").json()
    assert (second["slides"], second["total"]) == (every["slides"][1:], 2)


def test_a_slide_tells_its_sizes_tile_sets_and_embeddings_and_no_path(api: Client, embedded: Path) -> None:
    found = api.get("/v1/slides/A1")
    said = found.json()
    assert (said["width"], said["height"]) == (1200, 1200)
    (tiles,) = said["tiles"]
    assert (tiles["px"], tiles["tiles"], tiles["pixels"]) == (96, 41, True)
    assert [e["backbone"] for e in tiles["embeddings"]] == ["testing"]
    assert str(embedded.parent.parent) not in found.data.decode()
    assert b"uri" not in found.data


def test_a_thumbnail_is_the_stored_overview_and_never_larger_than_asked(api: Client, store: hs.Store) -> None:
    whole = store.group(store.slide("A1").find("source", "image")).read("thumbnail")
    same = api.get("/v1/slides/A1/thumbnail?max_px=4096")
    assert same.headers["content-type"] == "image/png"
    assert np.array_equal(pixels(same.data), whole)
    small = api.get("/v1/slides/B1/thumbnail?max_px=100&format=jpeg")
    assert small.headers["content-type"] == "image/jpeg"
    assert max(pixels(small.data).shape[:2]) == 100


def test_a_tile_has_its_stored_pixels_by_spot_and_by_tile_id(api: Client, store: hs.Store, spots: list[str]) -> None:
    view = store.view(backbone="testing", slides=["A1"])
    name = view.parts[0].tiles.name
    true = tiles_of(view, np.array([3]))[0]
    for id in (spots[3], view.column("tile_id")[3]):
        found = api.get(f"/v1/slides/A1/tiles/{name}/{id}/image")
        assert np.array_equal(pixels(found.data), true)
        again = api.get(f"/v1/slides/A1/tiles/{name}/{id}/image", If_None_Match=found.headers["etag"])
        assert (again.status, again.data) == (304, b"")


def test_a_search_by_spot_equals_the_librarys(api: Client, store: hs.Store, spots: list[str]) -> None:
    true = hs.tl.search(
        store, slide="A1", spot=spots[0], k=7, where="n_counts > 0", exclude_same="slide", columns=["patient"]
    ).table
    asked = {"k": 7, "where": "n_counts > 0", "exclude_same": "slide", "columns": ["patient", "n_counts"]}
    said = api.search(query={"slide": "A1", "spot": spots[0]}, **asked).json()
    assert [h["id"] for h in said["hits"]] == true.index.tolist()
    assert [h["spot"] for h in said["hits"]] == true["barcode"].tolist()
    assert [h["rank"] for h in said["hits"]] == list(range(1, 8))
    for name in ("distance", "x_um", "y_um"):
        assert np.allclose([h[name] for h in said["hits"]], true[name])
    assert [h["columns"]["patient"] for h in said["hits"]] == true["patient"].tolist()
    assert set(said["hits"][0]["columns"]) == {"patient", "n_counts"}


def test_a_hits_tile_id_leads_to_its_picture(api: Client, store: hs.Store, spots: list[str]) -> None:
    hit = api.search(query={"slide": "A1", "spot": spots[0]}, k=1).json()["hits"][0]
    name = api.get(f"/v1/slides/{hit['slide']}").json()["tiles"][0]["name"]
    found = api.get(f"/v1/slides/{hit['slide']}/tiles/{name}/{hit['tile_id']}/image")
    true = hs.tl.search(store, slide="A1", spot=spots[0], k=1).tiles()[0]
    assert np.array_equal(pixels(found.data), true)


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_a_search_by_vector_equals_the_librarys(api: Client, store: hs.Store, metric: str) -> None:
    vector = store.view(backbone="testing").numpy()[5].astype(np.float32)
    true = hs.tl.search(store, vector=vector, k=5, metric=metric, slides=["B1"]).table
    said = api.search(query={"vector": vector.tolist()}, k=5, metric=metric, slides=["B1"]).json()
    assert [h["id"] for h in said["hits"]] == true.index.tolist()
    assert said["backbone"] == "testing"


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_search_by_image_finds_the_tile_it_is(api: Client, store: hs.Store, mode: str) -> None:
    view = store.view(backbone="testing", slides=["B1"])
    tile, out = Image.fromarray(tiles_of(view, np.array([2]))[0]), io.BytesIO()
    tile.convert(mode).save(out, "PNG")
    said = api.search(query={"image": base64.b64encode(out.getvalue()).decode()}, k=3).json()
    assert said["hits"][0]["id"] == view.names()[2]
    assert said["hits"][0]["distance"] < 1e-3


def test_more_hits_than_tiles_gives_all_tiles(api: Client, store: hs.Store, spots: list[str]) -> None:
    said = api.search(query={"slide": "A1", "spot": spots[0]}, k=1000).json()
    assert len(said["hits"]) == len(store.view(backbone="testing")) - 1


def test_a_region_is_one_query_of_all_its_tiles(api: Client, store: hs.Store) -> None:
    view = store.view(backbone="testing", slides=["A1"])
    box = [0.0, 0.0, float(np.median(view.column("x"))), float(np.median(view.column("y")))]
    corners = [[0, 0], [box[2], 0], [box[2], box[3]], [0, box[3]]]
    true = hs.tl.search(store, slide="A1", region=tuple(box), k=6, exclude_same="slide").table
    for query in ({"slide": "A1", "box": box}, {"slide": "A1", "polygon": corners}):
        said = api.search(query=query, k=6, exclude_same="slide").json()
        assert [h["id"] for h in said["hits"]] == true.index.tolist()
        assert said["query"].endswith("tiles of A1")


def test_several_queries_are_answered_one_after_the_other(api: Client, store: hs.Store, spots: list[str]) -> None:
    true = hs.tl.search(store, slide="A1", spot=spots[:3], k=4).table
    said = api.search(query={"slide": "A1", "spots": spots[:3]}, k=4).json()["hits"]
    assert [(h["query"], h["id"]) for h in said] == list(zip(true["query"], true.index, strict=True))
    vectors = store.view(backbone="testing").numpy(rows=[1, 2]).astype(np.float32)
    both = api.search(query={"vectors": vectors.tolist()}, k=2).json()["hits"]
    assert [h["rank"] for h in both] == [1, 2, 1, 2]
    assert both[0]["query"] != both[2]["query"]


@pytest.mark.parametrize(
    "options",
    [
        {"exclude_radius_um": 400.0},
        {"at_most_per": "slide", "at_most": 2},
        {"diversity": 0.7},
        {"max_distance": 0.02},
        {"expressing": ["GENE001"], "expression_weight": 0.9},
        {"expression_weight": 0.9, "expressing": {"GENE001": 2.5, "GENE002": -1}},
        {"exact": True, "metric": "l2"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_the_library_can_be_asked_the_server_can(
    api: Client, store: hs.Store, spots: list[str], options: dict[str, object]
) -> None:
    same = {name: value for name, value in options.items() if name != "exact"}
    if "expressing" in same:
        genes, asked = sorted(store.view().parts[0].gene_names.symbols), options["expressing"]
        known = dict(zip(genes, asked.values(), strict=False)) if isinstance(asked, dict) else genes[:1]
        same["expressing"] = options["expressing"] = known
    true = hs.tl.search(store, slide="A1", spot=spots[0], k=8, index=False, **same).table
    said = api.search(query={"slide": "A1", "spot": spots[0]}, k=8, **options).json()
    assert [h["id"] for h in said["hits"]] == true.index.tolist()
    assert np.allclose([h["distance"] for h in said["hits"]], true["distance"])
    assert said["metric"] == options.get("metric", "cosine")
