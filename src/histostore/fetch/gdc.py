"""Ask the Genomic Data Commons which files there are: every page, by sample type, and so many per case.

API: https://docs.gdc.cancer.gov/API/Users_Guide/Search_and_Retrieval/
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histostore.errors import DataError, StorageError, UsageError
from histostore.fetch.catalog import Dataset, GdcQuery, Remote, at_mirror, check_path
from histostore.fetch.download import AGENT, Limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PAGE = 500
FIELDS = (
    "file_id", "file_name", "file_size", "md5sum", "created_datetime", "updated_datetime", "cases.case_id",
    "cases.submitter_id", "cases.samples.sample_type", "cases.samples.submitter_id",
    "cases.tissue_source_site.code", "cases.tissue_source_site.name",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Files of all queries of a data set."""

    files: tuple[Remote, ...]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    """``<query>.csv`` with one line per file."""
    counts: Mapping[str, int]


def ask(dataset: Dataset, *, base_url: str | None = None, limit: int | None = None) -> Answer:
    """Return the files that a data set's queries name.

    Parameters
    ----------
    limit
        Only the first cases (by submitter id) that every query has a file of.

    Raises
    ------
    DataError
        The API's answers do not add up to the total it states, or a file lacks what the table needs.
    StorageError
        The API stays away.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; give 1 or more cases")
    endpoint = at_mirror(dataset.endpoint, base_url).rstrip("/")
    counts: Counter[str] = Counter()
    chosen: dict[str, list[dict[str, Any]]] = {}
    for query in dataset.gdc:
        hits = every_hit(endpoint, query)
        counts[f"{query.name}: files found"] = len(hits)
        chosen[query.name] = _per_case(query, _of_samples(query, hits, counts), counts)
    cases = [{line["case"] for line in lines} for lines in chosen.values()]
    both = set.intersection(*cases)
    if len(cases) > 1:
        counts["cases in every query"] = len(both)
        for query, own in zip(dataset.gdc, cases, strict=True):
            counts[f"{query.name}: cases that another query lacks"] = len(own - both)
    if limit is not None:
        kept = set(sorted(both)[:limit])
        counts["cases left out by the limit"] = len(set.union(*cases) - kept)
        chosen = {name: [line for line in lines if line["case"] in kept] for name, lines in chosen.items()}
    files = tuple(
        Remote(path=line["path"], url=f"{dataset.endpoint}/data/{line['file_id']}", size=line["size"], md5=line["md5"])
        for lines in chosen.values()
        for line in lines
    )
    return Answer(files=files, tables={f"{name}.csv": lines for name, lines in chosen.items()}, counts=dict(counts))


def every_hit(endpoint: str, query: GdcQuery, *, page: int = PAGE) -> list[dict[str, Any]]:
    """Return all hits of a query, page by page, as many as the API says there are.

    Raises
    ------
    DataError
        Pages that overlap, run dry, or a total that changes between them: nothing is cut short silently.
    """
    wanted = {**query.filters, "cases.samples.sample_type": query.sample_types}
    clauses = [{"op": "in", "content": {"field": k, "value": list(v)}} for k, v in wanted.items()]
    body = {
        "filters": {"op": "and", "content": clauses}, "fields": ",".join(FIELDS), "format": "JSON", "size": page,
        "sort": "file_id:asc",
    }  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    total, got = None, 0
    while total is None or got < total:
        answer = _post(f"{endpoint}/files", {**body, "from": got})
        try:
            hits, says = answer["data"]["hits"], int(answer["data"]["pagination"]["total"])
            ids = [str(hit["file_id"]) for hit in hits]
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{endpoint}/files: the answer to query '{query.name}' has no hits or no total") from None
        if total is not None and says != total:
            raise DataError(f"{endpoint}/files: {total} files, then {says}: the data changed meanwhile; ask again")
        total, got = says, got + len(hits)
        found |= dict(zip(ids, hits, strict=True))
        if not hits and got < total:
            break
    if len(found) != total or got != total:
        raise DataError(f"{endpoint}/files: {total} files stated for '{query.name}', {len(found)} came; ask again")
    return list(found.values())


def _post(url: str, body: Mapping[str, Any], limits: Limits | None = None) -> Any:
    limits = limits or Limits()
    headers = {**AGENT, "Content-Type": "application/json"}
    for left in range(limits.tries - 1, -1, -1):
        request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=limits.timeout_s) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 or not left:
                raise StorageError(f"{url}: the server says {error.code} {error.reason}") from None
        except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
            if not left:
                raise StorageError(f"{url}: {getattr(error, 'reason', error)}; {limits.tries} tries") from None
        time.sleep(min(limits.longest_wait_s, limits.wait_s * 2.0 ** (limits.tries - 1 - left)))
    raise AssertionError


def _of_samples(query: GdcQuery, hits: Sequence[Mapping[str, Any]], counts: Counter[str]) -> list[dict[str, Any]]:
    """Return one line per file of one case whose samples are all of the wanted types; the others are counted.

    The API's own filter holds where any sample of a file matches.
    """
    lines = []
    for hit in hits:
        cases = hit.get("cases") or []
        types = sorted({str(s.get("sample_type")) for c in cases for s in c.get("samples") or []})
        if len(cases) != 1:
            counts[f"{query.name}: left out, of {'several cases' if cases else 'no case'}"] += 1
        elif not types or not set(types) <= set(query.sample_types):
            counts[f"{query.name}: left out, other sample types"] += 1
        else:
            lines.append(_line(query, hit, cases[0], types))
    return lines


def _line(query: GdcQuery, hit: Mapping[str, Any], case: Mapping[str, Any], types: Sequence[str]) -> dict[str, Any]:
    site = case.get("tissue_source_site") or {}
    samples = sorted(str(s.get("submitter_id", "")) for s in case.get("samples") or [])
    try:
        path = check_path(f"{query.name}/{hit['file_id']}/{hit['file_name']}", "the GDC's answer")
        return {
            "case": str(case["submitter_id"]), "case_id": str(case["case_id"]), "file_id": str(hit["file_id"]),
            "file_name": str(hit["file_name"]), "path": path, "sample": " ".join(samples),
            "sample_type": ", ".join(types), "tss_code": str(site.get("code", "")),
            "tss_name": str(site.get("name", "")),
            "size": int(hit["file_size"]), "md5": str(hit["md5sum"]),
            "updated": str(hit.get("updated_datetime") or hit.get("created_datetime") or ""),
        }  # fmt: skip
    except KeyError as error:
        raise DataError(f"the GDC's answer to '{query.name}' has a file without {error}; ask again") from None


def _per_case(query: GdcQuery, lines: list[dict[str, Any]], counts: Counter[str]) -> list[dict[str, Any]]:
    """Return the lines that the query's policy keeps, by case and file id; what it drops is counted."""
    of: dict[str, list[dict[str, Any]]] = {}
    for line in sorted(lines, key=lambda v: (v["case"], v["file_id"])):
        of.setdefault(line["case"], []).append(line)
    several = [case for case, own in of.items() if len(own) > 1]
    counts[f"{query.name}: cases"] = len(of)
    counts[f"{query.name}: cases with several files"] = len(several)
    if query.per_case == "newest":
        kept = [max(own, key=lambda v: (v["updated"], v["file_id"])) for own in of.values()]
        counts[f"{query.name}: left out, older file of a case"] = len(lines) - len(kept)
        return kept
    if query.per_case == "single":
        kept = [own[0] for own in of.values() if len(own) == 1]
        counts[f"{query.name}: left out, of a case with several files"] = len(lines) - len(kept)
        return kept
    return [line for own in of.values() for line in own]
