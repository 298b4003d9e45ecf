"""Standard streams that are closed, narrow, full or no longer read: the work is done, and what is said is so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from histostore.cli.streams import prepare

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND = [sys.executable, "-m", "histostore"]
FULL = Path("/dev/full")
full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


def embedding(store: Path) -> list[str]:
    return [*COMMAND, "embed", str(store), "--backbone", "testing", "--shard-rows", "16"]


def names_of(store: Path, kind: str) -> int:
    return len(list(store.glob(f"slides/*/{kind}/*/*/GROUP.json")))


@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stdout and stderr"])
def test_a_reader_that_went_away_does_not_end_the_work(
    tiled: Path, copy_of: Callable[[Path], Path], *, both: bool
) -> None:
    store = copy_of(tiled)
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            embedding(store), stdout=write, stderr=write if both else subprocess.PIPE, timeout=120, check=False
        )
    finally:
        os.close(write)
    assert done.returncode == 0
    assert names_of(store, "embeddings") == 2


def test_closed_streams_are_not_taken_for_files_and_the_work_is_done(
    tiled: Path, copy_of: Callable[[Path], Path], call: Any
) -> None:
    store = copy_of(tiled)

    def close() -> None:
        for fd in range(3):
            os.close(fd)

    done = subprocess.run(embedding(store), preexec_fn=close, timeout=120, check=False)
    assert done.returncode == 0
    assert names_of(store, "embeddings") == 2
    assert call("verify", store).code == 0


def test_errors_never_go_to_stdout_where_stderr_is_closed(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "info", str(tmp_path)], stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2), check=False
    )
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("encoding", ["ascii", "ascii:surrogateescape"], ids=["ascii", "the locale C"])
def test_what_an_encoding_lacks_is_escaped(
    embedded: Path, copy_of: Callable[[Path], Path], call: Any, encoding: str
) -> None:
    store = copy_of(embedded)
    assert call("annotate", store, "--slide", "A1", "--set", "doctor=Ömer").code == 0
    narrow = {**os.environ, "PYTHONIOENCODING": encoding}
    for argv in (["tile", "--help"], ["info", store, "--slide", "A1"]):
        done = subprocess.run([*COMMAND, *map(str, argv)], env=narrow, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert b"\\xb5m" in done.stdout or b"\\xd6mer" in done.stdout


@full
def test_a_full_disk_under_stdout_is_told_in_one_line(embedded: Path) -> None:
    for more in ([], ["--json"]):
        with FULL.open("w") as stdout:
            done = subprocess.run(
                [*COMMAND, "info", str(embedded), *more], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
            )
        assert done.returncode == 3
        assert done.stderr == "histostore: error: No space left on device\n"


@full
def test_a_full_disk_under_stderr_does_not_end_the_work(tiled: Path, copy_of: Callable[[Path], Path]) -> None:
    store = copy_of(tiled)
    with FULL.open("w") as stderr:
        done = subprocess.run(
            [*embedding(store), "--json"], stdout=subprocess.PIPE, stderr=stderr, text=True, check=False
        )
    assert done.returncode == 0
    assert [json.loads(line)["done"] for line in done.stdout.splitlines()] == ["written"] * 2


def test_streams_that_are_fit_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdin, sys.stdout, sys.stderr
    prepare()
    print("µ")
    assert (sys.stdin, sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "µ\n"
