"""Send the HTTP API requests that schemathesis makes up from its own OpenAPI document, valid and not.

    python -m benchmarks.serve_fuzz                       # 1,000 requests to a small synthetic store
    python -m benchmarks.serve_fuzz --requests 10000
    python -m benchmarks.serve_fuzz --store S             # to a store of yours

Half of the requests name a slide, a tile and a spot that are there. Exits 1 when an answer is neither 2xx nor 4xx, is
not what the document says, takes a request that the document forbids, or names a place on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.serve_load import served, small_store

if TYPE_CHECKING:
    from collections.abc import Mapping

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
NAMES = ("backbone", "tiles", "where", "slides", "exclude_same", "columns", "at_most_per", "expressing", "index")
"""What a search names that made-up text is never the name of."""
SEARCH, MAX_ROUNDS = "search", 20


@dataclass
class Fuzzed:
    """What came back."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By operation and status."""
    failures: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many there were."""
        return sum(self.statuses.values())


def fuzz(address: str, n: int, *, known: Mapping[str, str], secret: str, first_seed: int = 0) -> Fuzzed:
    """Send about `n` requests.

    Parameters
    ----------
    known
        A slide, tiles and id that are there.
    secret
        Text that no answer may hold: the folder of the store.
    """
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = {op.definition.raw["operationId"]: op for op in (o.ok() for o in schema.get_all_operations())}
    shares = {name: 6 if name == SEARCH else 1 for name in operations}
    found = Fuzzed()
    for name, op in operations.items():
        for mode in MODES:
            share = max(1, round(n * shares[name] / sum(shares.values()) / len(MODES)))
            _some(found, op, mode, share, known, secret, first_seed)
    for more in range(MAX_ROUNDS):  # some operations have few requests to make up
        left = n - found.requests
        if left <= 0:
            break
        _some(found, operations[SEARCH], MODES[more % 2], left, known, secret, first_seed + 1 + more)
    return found


def _some(
    found: Fuzzed, op: Any, mode: GenerationMode, n: int, known: Mapping[str, str], secret: str, first_seed: int
) -> None:
    quiet = settings(
        max_examples=n, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    @seed(first_seed)
    @quiet
    @given(case=op.as_strategy(generation_mode=mode), real=st.booleans())
    def send(case: Any, real: bool) -> None:
        if real:
            for name in case.path_parameters or {}:
                case.path_parameters[name] = known[name]
            if isinstance(case.body, dict) and isinstance(case.body.get("query"), dict):
                case.body["query"] = {"slide": known["slide"], "spot": known["id"]}
                for name in NAMES:
                    case.body.pop(name, None)
        response = case.call()
        found.statuses[case.operation.label, response.status_code] += 1
        what = f"{case.operation.label} {case.path_parameters} {case.query} {str(case.body)[:300]}"
        if not (200 <= response.status_code < 300 or 400 <= response.status_code < 500):
            found.failures.append(f"{response.status_code}: {what}")
        if secret.encode() in response.content or b"Traceback" in response.content:
            found.failures.append(f"names a place: {what}: {response.content[:300]!r}")
        try:
            case.validate_response(response, checks=CHECKS if not real else CHECKS[:-1])
        except (AssertionError, schemathesis.errors.SchemathesisError, ExceptionGroup) as error:
            found.failures.append(f"{what}: {error}")

    # nothing to get wrong: there are no such requests
    with contextlib.suppress(Unsatisfiable):
        send()


def known_tile(address: str) -> dict[str, str]:
    """Return a slide, tiles and id that a server has."""

    def get(path: str) -> Any:
        with urlopen(address + path) as answer:
            return json.load(answer)

    slide = get("/v1/slides")["slides"][0]["slide"]
    tiles = get(f"/v1/slides/{slide}")["tiles"][0]
    vector = [1.0] * tiles["embeddings"][0]["dim"]
    body = json.dumps({"query": {"vector": vector}, "slides": [slide], "k": 1}).encode()
    with urlopen(Request(f"{address}/v1/search", body, {"Content-Type": "application/json"})) as answer:
        spot = json.load(answer)["hits"][0]["spot"]
    return {"slide": slide, "tiles": tiles["name"], "id": spot}


def main() -> int:
    """Fuzz, print, and tell whether every request ended well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help="(default: a synthetic one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = args.store or small_store(Path(folder))
        with served(store) as server:
            known = known_tile(server.address)
            found = fuzz(server.address, args.requests, known=known, secret=str(store.parent), first_seed=args.seed)
    by_class = Counter(f"{status // 100}xx" for _, status in found.statuses.elements())
    print(f"{found.requests} requests: " + ", ".join(f"{n} {kind}" for kind, n in sorted(by_class.items())))
    for (label, status), n in sorted(found.statuses.items()):
        print(f"  {label:<60} {status} {n:6}")
    for failure in found.failures[:20]:
        print(f"FAILED {failure}")
    good = not found.failures and found.requests >= 0.9 * args.requests
    print("all requests ended well" if good else f"missed: {len(found.failures)} failures, {found.requests} requests")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
