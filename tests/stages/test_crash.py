"""Killed runs: nothing half-written is seen, a resumed run leaves the bytes of an uninterrupted one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from histostore.testing.crash import Tally, torment

if TYPE_CHECKING:
    from collections.abc import Callable

SLIDE = "A1"

pytestmark = pytest.mark.xdist_group("crash")  # its processes are forked from one server


@pytest.fixture
def fresh_from(tmp_path: Path) -> Callable[[Path], Callable[[], Path]]:
    made = iter(range(10_000))

    def of(store: Path) -> Callable[[], Path]:
        # hard links would let a writer change the original: bytes are copied
        return lambda: Path(shutil.copytree(store, tmp_path / f"store{next(made)}"))

    return of


@pytest.mark.parametrize("n", [10, pytest.param(50, marks=pytest.mark.torture)])
def test_tile_survives_being_killed_at_random_moments(n: int, ingested: Path, fresh_from, look_at_tiles) -> None:
    def tile(store: Path) -> list[str]:
        return ["tile", str(store), "--slides", SLIDE, *["--at", "spots", "--px", "224", "--shard-tiles", "3"]]

    check(torment(tile, fresh_from(ingested), SLIDE, look_at_tiles, kills=n, seed=n), n)


@pytest.mark.parametrize("n", [10, pytest.param(50, marks=pytest.mark.torture)])
def test_embed_survives_being_killed_at_random_moments(n: int, tiled: Path, fresh_from, look_at_embeddings) -> None:
    def embed(store: Path) -> list[str]:
        how = "--backbone testing?delay_ms=10 --batch 3 --shard-rows 3"
        return ["embed", str(store), "--slides", SLIDE, *how.split()]

    check(torment(embed, fresh_from(tiled), SLIDE, look_at_embeddings("testing"), kills=n, seed=n), n)


def test_embed_with_a_real_network_survives_being_killed(
    tiled: Path, fresh_from, copy_of, cli, look_at_embeddings
) -> None:
    store = copy_of(tiled)
    cli("tile", store, "--slides", SLIDE, "--at", "spots", "--px", 96, "--max-tiles", 12, "--name", "few")

    def embed(store: Path) -> list[str]:
        how = "--tiles few --backbone efficientnet_lite0 --batch 2 --shard-rows 2 --threads 1"
        return ["embed", str(store), "--slides", SLIDE, *how.split()]

    check(torment(embed, fresh_from(store), SLIDE, look_at_embeddings("efficientnet_lite0"), kills=3, seed=3), 3)


def check(tally: Tally, kills: int) -> None:
    print(tally)
    assert tally.kills == kills
    assert tally.resumed > 0
    assert tally.kept > 0
    assert tally.looks > kills
