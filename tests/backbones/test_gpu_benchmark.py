"""The benchmark of CUDA machines, as far as it goes without one: a part that fails costs no other."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks._gpu import PARTS, Notes, source_of_tiles
from benchmarks.gpu import LIMITS, run_parts, summary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

A_PART = """
import os, sys, time, json, pathlib
part, folder = sys.argv[-1], pathlib.Path(sys.argv[1])
missed = ["share 0.5, not 0.9"] * (part == "slow")
(folder / f"{part}.json").write_text(json.dumps({"found": {"rate": 7}, "missed": missed}))
{"well": int, "wrong": lambda: sys.exit(1), "crash": os.abort, "hang": lambda: time.sleep(60), "slow": int}[part]()
"""


def run(folder: Path, parts: Sequence[str], seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-c", A_PART, str(folder)]
    return run_parts(dict.fromkeys(parts, 2.0), command, folder, seconds=seconds, result=folder / "all.json")


def test_a_part_that_fails_crashes_or_hangs_costs_no_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = run(tmp_path, ("wrong", "crash", "hang", "well"), 60)
    assert {part: one["ended"] for part, one in found.items()} == {
        "wrong": "FAILED", "crash": "CRASHED by signal 6", "hang": "STOPPED after 2 s", "well": None,
    }  # fmt: skip
    assert all(one["found"] == {"rate": 7} for one in found.values())  # what they said before they ended
    assert json.loads((tmp_path / "all.json").read_text()) == found
    assert summary(found) == 1
    assert "3 of 4 parts did not end well, 0 gates missed" in capfd.readouterr().out


def test_no_part_is_begun_after_the_time_is_over(tmp_path: Path) -> None:
    assert run(tmp_path, ("well",), 1)["well"]["ended"] == "not begun: the time is over"


def test_a_missed_gate_is_told_and_a_good_run_ends_with_zero(tmp_path: Path) -> None:
    found = run(tmp_path, ("well", "slow"), 60)
    assert summary({"well": found["well"]}) == 0
    assert summary(found) == 1


def test_every_part_has_a_limit_and_together_they_are_known() -> None:
    assert list(PARTS) == list(LIMITS)


def test_search_is_held_against_the_cpu(tmp_path: Path) -> None:
    for part in ("search", "faiss"):
        PARTS[part](Notes(part, tmp_path, device="cpu", rows=2000, rounds=1))
    found = {part: json.loads((tmp_path / f"{part}.json").read_text())["found"] for part in ("search", "faiss")}
    assert found["search"]["exact answers as the CPU's"] == 1
    assert found["faiss"]["ivf-sq8: answers as the CPU's"] == 1
    assert found["faiss"]["ivf-sq8: recall@10"] > 0.9


def test_embedding_is_held_against_the_bare_forward_pass(tmp_path: Path) -> None:
    for part in ("tiles", "resnet"):
        PARTS[part](Notes(part, tmp_path, device="cpu", tiles=16, rounds=1))
    found = json.loads((tmp_path / "resnet.json").read_text())["found"]
    assert found["profile"]["rows"] == 16
    assert found["share of the bare forward"] > 0
    assert not (tmp_path / "jpeg" / "slides" / "S" / "embeddings").exists()  # a copy was embedded


@pytest.mark.parametrize(
    ("ours", "theirs", "bare", "verdict"),
    [(20_000, 30_000, 3_000, "does not win"), (2_000, 30_000, 8_000, "nvJPEG wins"), (7_000, 30_000, 9_000, "may win")],
)
def test_who_decodes_faster_is_told_with_the_network_in_mind(
    ours: float, theirs: float, bare: float, verdict: str
) -> None:
    assert verdict in source_of_tiles(ours, theirs, bare)
