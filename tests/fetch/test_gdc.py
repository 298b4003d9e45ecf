from __future__ import annotations

import csv
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from histostore.errors import DataError, StorageError, UsageError
from histostore.fetch import fetch, find
from histostore.fetch.gdc import ask, every_hit

if TYPE_CHECKING:
    from pathlib import Path

    from histostore.fetch.download import Limits

QUERY = find("tcga-brca").gdc[0]


def hit(
    i: int, *, case: str = "", sample_type: str = "Primary Tumor", updated: str = "2024", **more: Any
) -> dict[str, Any]:
    name = case or f"TCGA-A{i}"
    samples = [{"sample_type": sample_type, "submitter_id": f"{name}-01A"}]
    one = {"case_id": f"case-{name}", "submitter_id": name, "samples": samples,
           "tissue_source_site": {"code": "NA", "name": "Site"}}  # fmt: skip
    body = f"body {i}".encode()
    return {
        "file_id": f"id-{i:04d}", "file_name": f"{name}.svs", "file_size": len(body), "updated_datetime": updated,
        "md5sum": hashlib.md5(body).hexdigest(), "cases": [one], **more,
    }  # fmt: skip


def test_every_page_is_asked_for(served: Any) -> None:
    served.hits = [hit(i) for i in range(25)]
    found = every_hit(served.url, QUERY, page=10)
    assert [h["file_id"] for h in found] == [f"id-{i:04d}" for i in range(25)]
    assert [b["from"] for b in served.bodies] == [0, 10, 20]
    asked = {c["content"]["field"]: c["content"]["value"] for c in served.bodies[0]["filters"]["content"]}
    assert asked["cases.samples.sample_type"] == ["Primary Tumor"]
    assert asked["cases.project.project_id"] == ["TCGA-BRCA"]
    assert served.bodies[0]["sort"] == "file_id:asc"


@pytest.mark.parametrize(
    ("flaw", "said"), [({"drop_from_page": True}, "came; ask again"), ({"totals": [25, 24]}, "25 files, then 24")]
)
def test_pages_that_do_not_add_up_are_an_error_and_never_a_shorter_list(
    served: Any, flaw: dict[str, Any], said: str
) -> None:
    served.hits = [hit(i) for i in range(25)]
    for name, value in flaw.items():
        setattr(served, name, value)
    with pytest.raises(DataError, match=said):
        every_hit(served.url, QUERY, page=10)


def test_a_file_listed_twice_hides_another_and_is_an_error(served: Any) -> None:
    served.hits = [hit(i) for i in range(9)] + [hit(0)]
    with pytest.raises(DataError, match="10 files stated for 'slides', 9 came"):
        every_hit(served.url, QUERY, page=5)


def test_an_answer_of_another_shape_is_an_error(served: Any) -> None:
    served.hits = [{"id": 1}]
    with pytest.raises(DataError, match="no hits or no total"):
        every_hit(served.url, QUERY)


def test_a_server_in_trouble_is_asked_again(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    served.hits, served.statuses = [hit(0)], [500, 503]
    assert len(every_hit(served.url, QUERY)) == 1
    served.statuses = [400]
    with pytest.raises(StorageError, match="400"):
        every_hit(served.url, QUERY)


def test_samples_are_checked_here_too_and_what_is_left_out_is_counted(served: Any) -> None:
    mixed = hit(2)
    mixed["cases"][0]["samples"].append({"sample_type": "Solid Tissue Normal", "submitter_id": "n"})
    two_cases = hit(3)
    two_cases["cases"] *= 2
    served.hits = [hit(0), hit(1, sample_type="Metastatic"), mixed, two_cases, hit(4, cases=[])]
    found = ask(find("tcga-brca"), base_url=served.url)
    assert [r["file_id"] for r in found.tables["slides.csv"]] == ["id-0000"]
    assert found.counts["slides: files found"] == 5
    assert found.counts["slides: left out, other sample types"] == 2
    assert found.counts["slides: left out, of several cases"] == 1
    assert found.counts["slides: left out, of no case"] == 1


def test_several_files_of_a_case_are_all_kept_or_the_newest_and_counted(served: Any) -> None:
    served.hits = [
        hit(0, case="TCGA-1", updated="2023-01"),
        hit(1, case="TCGA-1", updated="2024-01"),
        hit(2, case="TCGA-2"),
    ]
    found = ask(find("tcga-brca"), base_url=served.url)
    assert [r["file_id"] for r in found.tables["slides.csv"]] == ["id-0000", "id-0001", "id-0002"]
    assert [r["file_id"] for r in found.tables["expression.csv"]] == ["id-0001", "id-0002"]
    assert found.counts["slides: cases with several files"] == 1
    assert found.counts["expression: left out, older file of a case"] == 1
    assert found.counts["cases in every query"] == 2


def test_a_limit_takes_the_first_cases_and_says_how_many_it_left(served: Any) -> None:
    served.hits = [hit(i) for i in range(5)]
    found = ask(find("tcga-brca"), base_url=served.url, limit=2)
    assert {r["case"] for r in found.tables["slides.csv"]} == {"TCGA-A0", "TCGA-A1"}
    assert found.counts["cases left out by the limit"] == 3
    with pytest.raises(UsageError, match="limit is 0"):
        ask(find("tcga-brca"), base_url=served.url, limit=0)


def test_a_name_that_leads_out_of_the_folder_is_refused(served: Any) -> None:
    served.hits = [hit(0, file_name="../../evil.svs")]
    with pytest.raises(DataError, match="leads out of its folder"):
        ask(find("tcga-brca"), base_url=served.url)


def test_files_are_fetched_checked_by_md5_and_listed_in_tables(served: Any, tmp_path: Path, quick: Limits) -> None:
    served.hits = [hit(i) for i in range(2)]
    served.files = {f"/data/id-{i:04d}": f"body {i}".encode() for i in range(2)}
    done = fetch("tcga-brca", tmp_path, base_url=served.url, limits=quick)
    assert not done.failed
    assert {f.checked for f in done.files} == {"catalogue"}
    assert (tmp_path / "slides" / "id-0001" / "TCGA-A1.svs").read_bytes() == b"body 1"
    rows = list(csv.DictReader((tmp_path / "slides.csv").read_text().splitlines()))
    assert (rows[0]["case"], rows[0]["tss_code"], rows[0]["sample_type"]) == ("TCGA-A0", "NA", "Primary Tumor")
    served.files["/data/id-0000"] = b"other!"
    (tmp_path / "slides" / "id-0000" / "TCGA-A0.svs").unlink()
    failed = fetch("tcga-brca", tmp_path, base_url=served.url, limits=quick).failed
    assert [f.path for f in failed] == ["slides/id-0000/TCGA-A0.svs"]
