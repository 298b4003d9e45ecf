"""Slides that fail: each is told, the same about the call only once, and the others go on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import pytest

from histostore.cli.common import Failures, each, names
from histostore.cli.workers import show_each
from histostore.errors import ConflictError, HistostoreError, StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator

ARGS = argparse.Namespace(json=False, debug=False)
SLIDES = ("A", "B", "C", "D")


def failing(*errors: HistostoreError | None) -> list[tuple[str, Any]]:
    def run(error: HistostoreError | None) -> list[Any]:
        if error is not None:
            raise error
        return []

    return [(slide, lambda error=error: run(error)) for slide, error in zip(SLIDES, errors, strict=False)]


class Outcomes:
    """What workers answer, and whether they were told to stop."""

    def __init__(self, *outcomes: HistostoreError | None) -> None:
        self.asked, self.closed, self._outcomes = 0, False, outcomes

    def __call__(self) -> Generator[Any]:
        try:
            for slide, outcome in zip(SLIDES, self._outcomes, strict=False):
                self.asked += 1
                yield slide, outcome if outcome is not None else []
        finally:
            self.closed = True


def test_what_is_wrong_with_the_call_is_said_once_here_and_on_workers(capsys: pytest.CaptureFixture[str]) -> None:
    same = [UsageError("px is 0") for _ in SLIDES]
    answers = Outcomes(*same)
    for ask in (lambda: each(failing(*same), ARGS), lambda: show_each(answers(), len(SLIDES), ARGS)):
        assert ask() == UsageError.exit_code
        said = capsys.readouterr().err
        assert said.count("px is 0") == 1
        assert "2 of 4 slides failed: A, B; 2 not tried: the same would be said of them" in said
    assert (answers.asked, answers.closed) == (2, True)


def test_slides_with_errors_of_their_own_are_all_told(capsys: pytest.CaptureFixture[str]) -> None:
    errors = [ConflictError("taken"), None, ConflictError("taken"), UsageError("no such level")]
    for ask in (lambda: each(failing(*errors), ARGS), lambda: show_each(Outcomes(*errors)(), len(SLIDES), ARGS)):
        assert ask() == max(ConflictError.exit_code, UsageError.exit_code)
        said = capsys.readouterr().err
        assert (said.count("taken"), said.count("no such level")) == (2, 1)
        assert "3 of 4 slides failed: A, C, D; 1 done" in said


def test_a_sheets_lines_are_each_told_what_is_wrong_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    same = [UsageError("no image") for _ in SLIDES]
    assert each(failing(*same), ARGS, own_inputs=True) == UsageError.exit_code
    assert capsys.readouterr().err.count("no image") == 4


def test_a_disk_that_refuses_ends_the_work_here_and_workers_finish_what_they_have(
    capsys: pytest.CaptureFixture[str],
) -> None:
    errors = [StorageError("disk full"), None, None, None]
    each(failing(*errors), ARGS)
    assert "1 of 4 slides failed: A; 3 not tried" in capsys.readouterr().err
    answers = Outcomes(*errors)
    show_each(answers(), len(SLIDES), ARGS)
    assert "1 of 4 slides failed: A; 3 done" in capsys.readouterr().err


def test_nothing_is_said_where_nothing_failed(capsys: pytest.CaptureFixture[str]) -> None:
    failures = Failures(2, ARGS)
    failures.passed()
    failures.passed()
    assert failures.exit_code() == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["", " ", ",", " , "], ids=repr)
def test_a_list_of_names_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="leave the option out"):
        names(text)
    assert names(None) is None
    assert names("A, B,") == ["A", "B"]
