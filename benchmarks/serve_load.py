"""Many clients at once, for a while: no answer may fail, and the server's memory must not grow.

    python -m benchmarks.serve_load                          # 50 clients, 60 s, a small synthetic store
    python -m benchmarks.serve_load --clients 20 --seconds 5

Each client keeps one connection and asks in turn for hits by spot, by vector and by image, for tiles, overviews and
listings. Memory (resident, of the server alone) is the median of the last fifth beside that of the second fifth.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_GROWTH = 1.05
"""Or `SLACK_MB`, whichever is more: allocators move by some MB."""
SLACK_MB = 16.0
SAMPLE_S = 0.25


@dataclass(frozen=True)
class Served:
    """A server in a process of its own."""

    address: str
    process: subprocess.Popen[str]


def small_store(folder: Path) -> Path:
    """Return a synthetic store of two slides with tiles and embeddings."""
    from histostore.cli import main as histostore
    from histostore.testing.cohort import write_cohort

    cohort = write_cohort(folder / "cohort", n_patients=2, slides_per_patient=1, spots=200, genes=60, px=2000)
    store = folder / "store"
    for words in (
        ["init", store],
        ["ingest", store, "--sheet", cohort.sheet],
        ["tile", store, "--at", "spots", "--px", 96],
        ["embed", store, "--backbone", "testing"],
    ):
        with contextlib.redirect_stdout(io.StringIO()):
            code = histostore([str(w) for w in words])
        if code:
            raise RuntimeError(f"{words[0]} ended with {code}")
    return store


@contextlib.contextmanager
def served(store: Path, *options: str) -> Iterator[Served]:
    """Serve a store from a process while the block runs; it must end cleanly on SIGTERM."""
    code = (
        "import sys; from histostore.cli import main, options_serve, parser; "
        "parser.COMMANDS.update(options_serve.COMMANDS); sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "serve", str(store), "--port", "0", "--json", *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {process.wait()}")
        yield Served(json.loads(line)["address"], process)
    finally:
        process.send_signal(signal.SIGTERM)
        ended = process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
    if ended:
        raise RuntimeError(f"the server ended with {ended}")


@dataclass
class Load:
    """What clients saw."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each request."""


class _Client:
    """One connection, kept."""

    def __init__(self, address: str) -> None:
        self._to = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        self._to.request("POST" if body is not None else "GET", path, data, {"Content-Type": "application/json"})
        answer = self._to.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        self._to.close()


def requests_for(address: str) -> dict[str, list[tuple[str, dict[str, Any] | None]]]:
    """Return requests that a server can answer, by kind."""
    client = _Client(address)
    try:
        (slides, found) = ([], {})
        for listed in json.loads(client.ask("/v1/slides")[1])["slides"]:
            slides.append(json.loads(client.ask(f"/v1/slides/{listed['slide']}")[1]))
        dim = slides[0]["tiles"][0]["embeddings"][0]["dim"]
        rng = np.random.default_rng(0)
        vectors = [{"query": {"vector": rng.standard_normal(dim).tolist()}, "k": 50} for _ in range(8)]
        hits = [h for v in vectors for h in json.loads(client.ask("/v1/search", v)[1])["hits"]]
    finally:
        client.close()
    tiles = {s["slide"]: s["tiles"][0] for s in slides}
    noise = rng.integers(0, 256, (tiles[slides[0]["slide"]]["px"],) * 2 + (3,), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    found["vector"] = [("/v1/search", v) for v in vectors]
    found["spot"] = [
        (
            "/v1/search",
            {"query": {"slide": h["slide"], "spot": h["spot"]}, "exclude_same": "slide", "columns": ["slide"]},
        )
        for h in hits
    ]
    found["image"] = [("/v1/search", {"query": {"image": base64.b64encode(out.getvalue()).decode()}})]
    found["tile"] = [
        (f"/v1/slides/{h['slide']}/tiles/{tiles[h['slide']]['name']}/{h['tile_id']}/image", None) for h in hits
    ]
    found["thumbnail"] = [(f"/v1/slides/{s['slide']}/thumbnail?max_px=256", None) for s in slides]
    found["slides"] = [("/v1/slides", None)]
    return found


def load(address: str, *, clients: int, seconds: float) -> Load:
    """Have clients ask for a while."""
    asked, found, lock = requests_for(address), Load(), threading.Lock()
    kinds = list(asked)
    until = time.monotonic() + seconds

    def run(number: int) -> None:
        client, rng, turn = _Client(address), random.Random(number), number
        try:
            while time.monotonic() < until:
                kind = kinds[turn % len(kinds)]
                turn += 1
                path, body = rng.choice(asked[kind])
                begun = time.perf_counter()
                status, data = client.ask(path, body)
                with lock:
                    found.seconds.append(time.perf_counter() - begun)
                    found.answers[kind] += 1
                    if status != 200 or not data:
                        found.failures.append(f"{kind}: {status} {data[:200]!r}")
        except (OSError, http.client.HTTPException) as error:
            with lock:
                found.failures.append(f"client {number}: {error!r}")
        finally:
            client.close()

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    found.failures += [f"client {i} hangs" for i, t in enumerate(threads) if t.is_alive()]
    return found


def main() -> int:
    """Measure, print, and tell whether it held."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--store", type=Path, help="(default: a synthetic one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(args.store or small_store(Path(folder))) as server:
        memory, done = [], threading.Event()
        process = psutil.Process(server.process.pid)

        def watch() -> None:
            while not done.wait(SAMPLE_S):
                memory.append(process.memory_info().rss / 1e6)

        watcher = threading.Thread(target=watch)
        watcher.start()
        found = load(server.address, clients=args.clients, seconds=args.seconds)
        done.set()
        watcher.join()
    fifth = max(1, len(memory) // 5)
    early, late = float(np.median(memory[fifth : 2 * fifth])), float(np.median(memory[-fifth:]))
    p50, p99 = np.percentile(found.seconds, [50, 99])
    answered = sum(found.answers.values())
    print(f"{args.clients} clients, {args.seconds:g} s: {answered} answers ({answered / args.seconds:.0f} a second)")
    print("  " + ", ".join(f"{n} {kind}" for kind, n in found.answers.items()))
    print(f"  seconds per answer: median {p50:.3f}, 99 % {p99:.3f}; failures: {len(found.failures)}")
    print(f"  server's memory: {early:.0f} MB early, {late:.0f} MB late ({late / early:.3f})")
    for failure in found.failures[:10]:
        print(f"FAILED {failure}")
    good = not found.failures and late <= max(MAX_GROWTH * early, early + SLACK_MB)
    print("all gates reached" if good else "missed")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
