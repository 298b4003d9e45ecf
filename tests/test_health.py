"""What the doctor says of a machine and a place is what the command prints."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

import histostore as hs
from histostore.health import Health

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_the_doctor_says_what_the_command_prints(ingested: Path, cli: Callable[..., Any]) -> None:
    health = hs.doctor(ingested)
    told = json.loads(cli("doctor", ingested, "--json").stdout)
    assert told == {**health.found, "problems": list(health.problems)}
    assert cli("doctor", ingested).stdout == f"{health}\n"
    assert health.found["python"] == platform.python_version()
    assert "2 slides" in health.found["store"]


def test_a_folder_that_is_not_there_yet_is_tried_by_the_one_above_it(tmp_path: Path) -> None:
    health = hs.doctor(tmp_path / "S")
    assert health.found["publish"] in ("link", "renameat2")
    assert "store" not in health.found
    assert list(tmp_path.iterdir()) == []
    assert "publish" not in hs.doctor().found


def test_what_is_wrong_is_a_line_of_its_own() -> None:
    ill = Health(found={"faiss": "-"}, problems=("two of them",))
    assert not ill.ok
    assert str(ill).splitlines()[-1] == "problem: two of them"
