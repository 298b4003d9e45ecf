"""Crash tests: a command is killed at random moments while a reader looks on; then it must finish as if nothing was.

For stores on other file systems and for stages of your own: `torment` is the whole test.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import runpy
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from histostore.store.receipts import RECEIPTS, TREE
from histostore.store.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from multiprocessing.context import ForkServerContext
    from multiprocessing.process import BaseProcess

type Stamp = tuple[int, int, int]
"""Inode, time of change in ns, bytes: the same three mean that nobody wrote the file again."""

POLL_S = 0.002
LOOK_S = 0.02
LONGEST_RUN_S = 300.0
PRELOADED = ("histostore.stages.tile", "histostore.stages.embed", "histostore.backbones.torch_loader")


@dataclass(slots=True)
class Tally:
    """What a torment came to."""

    kills: int = 0
    resumed: int = 0
    """Runs that were killed at least once and then finished."""
    looks: int = 0
    """How often the reader looked meanwhile."""
    kept: int = 0
    """Finished shards that a kill left and that no later run touched."""


def contents(store: Path, slide: str, *, keys: Sequence[str] | None = None) -> dict[str, str]:
    """Return the sha256 of every committed file of a slide, as read now, by ``kind/name:file``.

    Neither attempts nor GROUP.json are part of it, so that two stores can be compared.
    """
    manifest, found = open_store(store).slide(slide), {}
    for key, ref in manifest.entries.items():
        if keys is not None and key not in keys:
            continue
        folder = store / ref.prefix
        header = json.loads((folder / "GROUP.json").read_bytes())
        for name, (size, sha256) in header["files"].items():
            data = (folder / name).read_bytes()
            assert len(data) == size, f"{folder / name}: {len(data)} bytes, committed with {size}"
            found[f"{key}:{name}"] = hashlib.sha256(data).hexdigest()
            assert found[f"{key}:{name}"] == sha256, f"{folder / name} differs from what was committed"
    return found


def receipted(store: Path, slide: str) -> dict[str, Stamp]:
    """Return the shards that unfinished attempts have receipts for, by path below the store."""
    found: dict[str, Stamp] = {}
    for path in store.glob(f"slides/{slide}/*/*/*/{RECEIPTS}/*.json"):
        receipt = json.loads(path.read_bytes())
        shard = path.parents[1] / TREE / receipt["array"] / "c" / str(receipt["shard"])
        while shard.is_dir():
            shard /= "0"
        found[str(shard.relative_to(store))] = _stamp(shard)
    return found


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


@dataclass(slots=True)
class Watcher:
    """A reader that looks again and again from a thread of its own. Use it with ``with``."""

    look: Callable[[], Hashable]
    seen: set[Hashable] = field(default_factory=set)
    looks: int = 0
    error: Exception | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self.seen.add(self.look())
            except Exception as error:  # noqa: BLE001  (whatever a reader meets is what the test is about)
                self.error = error
                return
            self.looks += 1


def strike(command: Sequence[str], store: Path, slide: str, *, after_shards: int, delay_s: float) -> int:
    """Run a command and kill it (SIGKILL) some time after it has finished some more shards.

    Returns
    -------
    int
        Its exit code: -9 where the kill struck, else 0: it had ended before.
    """

    def finished() -> int:
        return sum(1 for _ in store.glob(f"slides/{slide}/*/*/*/{RECEIPTS}/*.json"))

    wanted = finished() + after_shards
    process, told = _start(command, store)
    deadline = time.monotonic() + LONGEST_RUN_S
    while process.is_alive() and time.monotonic() < deadline:
        if not after_shards or finished() >= wanted:
            process.join(delay_s)
            process.kill()
            break
        time.sleep(POLL_S)
    return _ended(process, told, (0, -9))


def _start(command: Sequence[str], store: Path) -> tuple[BaseProcess, Path]:
    told = store.with_name(f"{store.name}.log")
    process = _context().Process(target=_run, args=(list(command), str(told)))
    process.start()
    return process, told


def _context() -> ForkServerContext:
    """Return what forks children from a server that has imported all they need: their time goes into the work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _run(command: list[str], told: str) -> None:
    with Path(told).open("w") as file:
        sys.stdout = sys.stderr = file
        sys.argv = ["histostore", *command]
        runpy.run_module("histostore", run_name="__main__")


def _ended(process: BaseProcess, told: Path, allowed: tuple[int, ...]) -> int:
    process.join(LONGEST_RUN_S)
    code = process.exitcode
    assert code in allowed, f"exit code {code}: {told.read_text() if told.exists() else ''}"
    return code


def torment(
    command: Callable[[Path], Sequence[str]],
    fresh: Callable[[], Path],
    slide: str,
    look: Callable[[Path], Callable[[], Hashable]],
    *,
    kills: int,
    seed: int,
) -> Tally:
    """Kill a command over and over, and check what a reader sees, what a resumed run does and what it leaves.

    Parameters
    ----------
    command
        The arguments of ``histostore`` for a store.
    fresh
        Makes a new copy of the store that the command starts from.
    slide
        The slide that it works on.
    look
        For a store, what a reader does; it returns None while the result is not there, and a fingerprint of all that
        it read afterwards.
    kills
        How many have to strike.
    seed
        Of the moments: half of them anywhere in the run, half of them some shards later.

    Raises
    ------
    AssertionError
        A reader saw something else than nothing or the whole; a resumed run left other bytes than an uninterrupted
        one; or a finished shard was written again.
    """
    rng = np.random.default_rng(seed)
    warm = _context().Process(target=int)  # the server's imports are no part of the time a run takes
    warm.start()
    warm.join()
    whole = fresh()
    begun = time.monotonic()
    _finish(command(whole), whole)
    took, expected, result = time.monotonic() - begun, contents(whole, slide), look(whole)()
    shards = _n_shards(whole, slide) - _n_shards(fresh(), slide)
    tally = Tally()
    while tally.kills < kills:
        store = fresh()
        kept: dict[str, Stamp] = {}
        struck = 0
        with Watcher(look(store)) as watcher:
            while True:
                if tally.kills < kills and struck < 4:
                    after = int(rng.integers(1, max(2, shards // 2))) if rng.random() < 0.5 else 0
                    delay = float(rng.uniform(0, 0.05 if after else took))
                    code = strike(command(store), store, slide, after_shards=after, delay_s=delay)
                else:
                    _finish(command(store), store)
                    code = 0
                _check_untouched(store, kept)
                kept |= receipted(store, slide)
                if code == 0:
                    break
                struck += 1
                tally.kills += 1
        assert watcher.error is None, f"a reader failed: {watcher.error!r}"
        assert watcher.seen <= {None, result}, "a reader saw something half-written"
        assert contents(store, slide) == expected, "the resumed run left other bytes"
        committed = tuple(str(Path(r.prefix)) for r in open_store(store).slide(slide).entries.values())
        redone = [p for p in kept if not p.startswith(committed)]
        assert not redone, f"finished shards were left behind and made again: {redone[:3]}"
        tally.resumed += struck > 0
        tally.looks += watcher.looks
        tally.kept += len(kept)
    return tally


def _finish(command: Sequence[str], store: Path) -> None:
    _ended(*_start(command, store), (0,))


def _check_untouched(store: Path, kept: dict[str, Stamp]) -> None:
    for path, stamp in kept.items():
        assert _stamp(store / path) == stamp, f"{path} was finished and is written again"


def _n_shards(store: Path, slide: str) -> int:
    return sum(1 for f in contents(store, slide) if "/c/" in f)
