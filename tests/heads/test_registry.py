from __future__ import annotations

import subprocess
import sys

import pytest

from histostore.errors import NotFoundError, UsageError
from histostore.heads.baselines import PositionKNN
from histostore.heads.registry import head_class, make, name_of, names, parse_options
from histostore.heads.ridge import Ridge


def test_own_heads_are_found_by_name():
    assert {"ridge", "mean", "position-knn"} <= set(names())
    assert head_class("ridge") is Ridge
    assert make("position-knn", [("k", 3)]).get_params() == {"k": 3}
    assert isinstance(make("position-knn"), PositionKNN)


def test_a_head_knows_its_name_without_loading_the_others():
    code = (
        "from histostore.heads.ridge import Ridge; from histostore.heads.registry import name_of; import sys;"
        "print(name_of(Ridge()), 'torch' in sys.modules, 'sklearn' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["ridge", "False", "False"]
    assert all(name_of(make(name)) == name for name in ("decoded", "pls", "reduced-rank-ridge", "mlp", "knn", "mean"))
    with pytest.raises(NotFoundError, match="no registered head"):
        name_of(object())


def test_unknown_names_and_options_suggest_near_ones():
    with pytest.raises(NotFoundError, match=r"no head 'rigde'.*did you mean 'ridge'"):
        make("rigde")
    with pytest.raises(UsageError, match=r"no option 'alpha'.*did you mean 'alphas'"):
        make("ridge", [("alpha", 3)])


def test_the_seed_goes_to_heads_that_have_one():
    assert make("ridge", seed=7).get_params()["seed"] == 7
    assert make("ridge", [("seed", 1)], seed=7).get_params()["seed"] == 1
    make("mean", seed=7)


def test_options_are_read_from_text():
    assert parse_options(["scale=none", "alphas=1e3,1e4", "inner=5"]) == (
        ("alphas", (1000.0, 10000.0)),
        ("inner", 5),
        ("scale", "none"),
    )
    assert parse_options(["a-b=true", "c=NaN", "d={}"]) == (("a_b", True), ("c", "NaN"), ("d", "{}"))
    for wrong in (["k"], ["=3"], ["k=1", "k=2"]):
        with pytest.raises(UsageError):
            parse_options(wrong)


def test_heads_of_other_packages_come_by_entry_point(tmp_path, monkeypatch):
    (tmp_path / "their_heads.py").write_text(
        "from histostore.heads.baselines import TrainingMean\nclass Theirs(TrainingMean):\n    pass\n"
    )
    info = tmp_path / "their_heads-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-heads\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[histostore.heads]\ntheirs = their_heads:Theirs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "theirs" in names()
    assert type(make("theirs")).__name__ == "Theirs"
    assert name_of(make("theirs")) == "theirs"
