"""`embed` on another engine, and where its time went."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

import histostore as hs

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(tiled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiled, tmp_path / "S")


def test_embed_runs_on_openvino_and_says_how_far_from_torch_it_is(store: Path, call: Any) -> None:
    network = "timm/mobilenetv3_small_050@random:0"
    told = call("embed", store, "--slides", "A1", "--backbone", network, "--engine", "openvino", "--profile", "--json")
    assert told.code == 0, told.err
    assert "engine openvino, off torch's rows by" in told.err
    profile = json.loads(told.out.splitlines()[-1])["profile"]
    assert profile["binds"] in profile["busy_s"]
    assert profile["rows"] > 0
    there = hs.open(store)
    (ref,) = there.slide("A1").of_kind("embeddings")
    assert there.group(ref).header["engine"]["backend"] == "openvino"


def test_embed_tells_which_part_binds(store: Path, call: Any) -> None:
    told = call("embed", store, "--slides", "A1", "--backbone", "testing?delay_ms=50", "--batch", "4", "--profile")
    assert told.code == 0, told.err
    assert any("rows/s: forward binds, busy " in line for line in told.out.splitlines())
    assert any("forward" in line and "<- binds" in line for line in told.out.splitlines())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "openvino"), "'testing' is no torch network"),
        (("--engine", "openvino", "--device", "cuda"), "engine openvino runs on the CPU in float32"),
    ],
    ids=["no torch network", "a device it has not"],
)
def test_what_an_engine_cannot_do_is_one_line(store: Path, call: Any, options: tuple[str, ...], said: str) -> None:
    told = call("embed", store, "--backbone", "testing", *options)
    assert told.code == 2
    assert len(told.errors) == 1
    assert said in told.errors[0]
