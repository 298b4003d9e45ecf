from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from histostore.errors import ConflictError, CorruptionError, DataError, NotFoundError, UsageError
from histostore.fetch import datasets, fetch, find, plan
from histostore.fetch.catalog import at_mirror, read_dataset
from histostore.store.files import LocalFiles

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.fetch.catalog import Dataset
    from histostore.fetch.download import Limits

TOML = """
title = "t"
licence = "CC0"
licence_url = "http://x/l"
citation = "c"
homepage = "http://x"

[[files]]
each = ["A", "B"]
path = "counts/{}.tsv"
url = "https://far.example/data/{}.tsv"

[[files]]
path = "image.tif"
url = "https://far.example/image.tif"
sha256 = "HASH"
"""


@pytest.fixture
def dataset(served: Any) -> Dataset:
    served.files = {"/data/A.tsv": b"a", "/data/B.tsv": b"bb", "/image.tif": b"ccc"}
    return read_dataset("toy", TOML.replace("HASH", hashlib.sha256(b"ccc").hexdigest()))


def test_the_catalogue_is_readable_and_every_set_has_licence_and_citation() -> None:
    known = datasets()
    assert {d.name for d in known} == {"10x-breast-a1", "10x-breast-a2", "st-net", "her2st", "tcga-brca"}
    for one in known:
        assert one.licence
        assert one.citation
        assert one.homepage.startswith("https://")
        assert len({f.path for f in one.files}) == len(one.files)
    assert len(find("her2st").files) == 3 * 36 + 6
    assert "Section_2" in find("10x-breast-a2").files[0].url
    with pytest.raises(NotFoundError, match="did you mean 'her2st'"):
        find("herst")


def test_a_mirror_keeps_the_paths(served: Any, dataset: Dataset, tmp_path: Path, quick: Limits) -> None:
    assert at_mirror("https://a.b/c/d?e=1", "http://m/x/") == "http://m/x/c/d?e=1"
    done = fetch(dataset, tmp_path, base_url=served.url, limits=quick)
    assert [(f.path, f.done, f.checked) for f in done.files] == [
        ("counts/A.tsv", "fetched", "nothing"),
        ("counts/B.tsv", "fetched", "nothing"),
        ("image.tif", "fetched", "catalogue"),
    ]
    assert (tmp_path / "counts" / "B.tsv").read_bytes() == b"bb"
    with pytest.raises(UsageError, match="no http"):
        fetch(dataset, tmp_path / "b", base_url="ftp://x")


def test_the_lock_file_keeps_hash_address_licence_and_citation(
    served: Any, dataset: Dataset, tmp_path: Path, quick: Limits
) -> None:
    fetch(dataset, tmp_path, base_url=served.url, limits=quick)
    lock = json.loads((tmp_path / "fetch.lock.json").read_text())
    assert lock["datasets"]["toy"] == {
        "title": "t", "licence": "CC0", "licence_url": "http://x/l", "citation": "c", "homepage": "http://x",
    }  # fmt: skip
    one = lock["files"]["counts/A.tsv"]
    assert one["sha256"] == hashlib.sha256(b"a").hexdigest()
    assert one["url"] == "https://far.example/data/A.tsv"
    assert one["mirror"] == served.url


def test_what_is_there_is_checked_and_not_fetched_again(
    served: Any, dataset: Dataset, tmp_path: Path, quick: Limits
) -> None:
    fetch(dataset, tmp_path, base_url=served.url, limits=quick)
    served.asked.clear()
    done = fetch(dataset, tmp_path, base_url=served.url, limits=quick)
    assert [(f.done, f.checked) for f in done.files] == [("already there", c) for c in ("lock", "lock", "catalogue")]
    assert not served.asked


def test_a_file_that_changed_at_the_source_is_noticed_by_its_first_hash(
    served: Any, dataset: Dataset, tmp_path: Path, quick: Limits
) -> None:
    fetch(dataset, tmp_path, base_url=served.url, limits=quick)
    (tmp_path / "counts" / "A.tsv").unlink()
    served.files["/data/A.tsv"] = b"other"
    done = fetch(dataset, tmp_path, base_url=served.url, limits=quick)
    assert [f.path for f in done.failed] == ["counts/A.tsv"]
    assert isinstance(done.failed[0].error, CorruptionError)
    assert len(done.files) == 3


@pytest.mark.parametrize("fetched_before", [True, False])
def test_other_content_is_never_overwritten(
    served: Any, dataset: Dataset, tmp_path: Path, quick: Limits, fetched_before: bool
) -> None:
    if fetched_before:
        fetch(dataset, tmp_path, base_url=served.url, limits=quick)
    (tmp_path / "counts").mkdir(exist_ok=True)
    (tmp_path / "counts" / "A.tsv").write_bytes(b"mine")
    (tmp_path / "image.tif").write_bytes(b"mine too")
    done = fetch(dataset, tmp_path, base_url=served.url, limits=quick)
    assert [f.path for f in done.failed] == ["counts/A.tsv", "image.tif"]
    assert all(isinstance(f.error, ConflictError) for f in done.failed)
    assert (tmp_path / "counts" / "A.tsv").read_bytes() == b"mine"
    assert (tmp_path / "image.tif").read_bytes() == b"mine too"


def test_a_server_that_stays_away_ends_it_and_the_rest_is_not_tried(
    served: Any, dataset: Dataset, tmp_path: Path, quick: Limits
) -> None:
    served.statuses = [500] * 3
    done = fetch(dataset, tmp_path, base_url=served.url, limits=quick)
    assert [f.done for f in done.files] == ["failed"]


def test_two_do_not_fetch_into_one_folder(served: Any, dataset: Dataset, tmp_path: Path, quick: Limits) -> None:
    held = LocalFiles(tmp_path).lock(".fetch.lock")
    assert held is not None
    with pytest.raises(ConflictError, match="another process"):
        fetch(dataset, tmp_path, base_url=served.url, limits=quick)
    held.release()


def test_a_pattern_chooses_files_and_one_that_matches_none_is_an_error(dataset: Dataset) -> None:
    found = plan(dataset, only="counts/*")
    assert [f.path for f in found.files] == ["counts/A.tsv", "counts/B.tsv"]
    assert found.counts == {"files not asked for": 1}
    assert found.sizes_unknown == 2
    with pytest.raises(UsageError, match=r"matches 'images/\*'; it has counts/A.tsv"):
        plan(dataset, only="images/*")
    with pytest.raises(UsageError, match="not of cases"):
        plan(dataset, limit=2)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('path = "image.tif"', 'path = "../image.tif"', "leads out of its folder"),
        ('path = "image.tif"', 'path = "/etc/passwd"', "leads out of its folder"),
        ('path = "image.tif"', 'path = ".hidden"', "hidden"),
        ('url = "https://far.example/image.tif"', 'url = "file:///etc/passwd"', "no http"),
        ('citation = "c"', "", "citation"),
        ('title = "t"', 'titel = "t"', "titel"),
        ('title = "t"', "title = ", "Invalid value"),
    ],
)
def test_a_damaged_catalogue_entry_is_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_dataset("toy", TOML.replace(old, new))


def test_a_damaged_lock_file_is_named(served: Any, dataset: Dataset, tmp_path: Path, quick: Limits) -> None:
    fetch(dataset, tmp_path, base_url=served.url, limits=quick)
    (tmp_path / "fetch.lock.json").write_text("{")
    with pytest.raises(DataError, match=r"fetch.lock.json is damaged"):
        fetch(dataset, tmp_path, base_url=served.url, limits=quick)


def test_a_size_that_is_known_wrong_is_refused_before_the_body(
    served: Any, dataset: Dataset, tmp_path: Path, quick: Limits
) -> None:
    one = dataclasses.replace(dataset, files=(dataclasses.replace(dataset.files[2], size=99),))
    done = fetch(one, tmp_path, base_url=served.url, limits=quick)
    assert "the catalogue says 99" in str(done.failed[0].error)
