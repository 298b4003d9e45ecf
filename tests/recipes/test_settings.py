from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from histostore.errors import UsageError
from histostore.recipes.settings import alternatives, check_settings, describe, resolve, to_json


@dataclass(frozen=True)
class Some:
    lr: float = 0.1
    batch_size: int = 4
    hidden: tuple[int, ...] = (64, 32)
    loss: Literal["nll", "mse"] = "nll"
    augment: bool = False
    cap: int | None = None
    genes: str = "top-mean:250"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError("batch_size is not positive")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-3", 1e-3),
        ("lr", "2", 2.0),
        ("batch_size", "8", 8),
        ("hidden", "256, 64", (256, 64)),
        ("hidden", "", ()),
        ("loss", "mse", "mse"),
        ("augment", "Yes", True),
        ("augment", "0", False),
        ("cap", "none", None),
        ("cap", "7", 7),
        ("genes", "ERBB2,MKI67", "ERBB2,MKI67"),
    ],
)
def test_text_becomes_a_value_of_the_settings_type(name: str, text: str, value: object) -> None:
    found = getattr(resolve(Some, {name: text}), name)
    assert found == value
    assert type(found) is type(value)


def test_values_are_taken_as_they_are_and_an_int_may_be_a_float() -> None:
    assert resolve(Some, {"lr": 1, "hidden": [8], "cap": None, "augment": True}) == Some(1.0, 4, (8,), augment=True)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lr", "fast", "setting 'lr' is 'fast'; it takes float"),
        ("lr", "nan", "it takes float"),
        ("lr", "inf", "it takes float"),
        ("batch_size", "2.5", "it takes int"),
        ("batch_size", True, "it takes int"),
        ("batch_size", "0", "batch_size is not positive"),
        ("hidden", "64,x", "setting 'hidden' is 'x'; it takes int"),
        ("hidden", 3, "it takes int, …"),
        ("loss", "mes", "not one of nll, mse; did you mean 'mse'?"),
        ("augment", "maybe", "it takes bool"),
        ("cap", "many", "it takes int or none"),
        ("genes", 3, "it takes str"),
        ("batchsize", "2", "no setting 'batchsize'; did you mean 'batch_size'?"),
        ("zzz", "2", "there are lr, batch_size"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_taken(name: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(Some, {name: value})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_sweep_splits_at_commas_or_at_semicolons_where_a_value_holds_commas() -> None:
    assert alternatives(Some, "batch_size", "2,4, 8") == (2, 4, 8)
    assert alternatives(Some, "hidden", "64;256,64") == ((64,), (256, 64))
    assert alternatives(Some, "hidden", "256,64") == ((256, 64),)
    assert alternatives(Some, "genes", "A,B;C") == ("A,B", "C")
    for text in ("2,2", "2,", ""):
        with pytest.raises(UsageError, match="sweep over 'batch_size'"):
            alternatives(Some, "batch_size", text)


def test_settings_are_plain_json_and_described_by_type() -> None:
    assert to_json(Some())["hidden"] == [64, 32]
    assert ("loss", "one of nll, mse", "nll") in describe(Some)
    assert ("cap", "int or none", None) in describe(Some)


def test_a_class_that_could_not_be_filled_is_refused() -> None:
    @dataclass
    class Thawed:
        a: int = 1

    @dataclass(frozen=True)
    class Bare:
        a: int

    for cls, said in ((Thawed, "frozen dataclass"), (dict, "frozen dataclass"), (Bare, "no default")):
        with pytest.raises(UsageError, match=said):
            check_settings(cls, "x")


@dataclass(frozen=True)
class Odd:
    a: dict[str, int] | None = None


def test_a_type_that_text_cannot_give_is_refused() -> None:
    with pytest.raises(UsageError, match="setting 'a' is"):
        check_settings(Odd, "x")
