from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histostore.errors import AlignmentError, DataError
from histostore.io.renn_table import best_epochs, read_renn_table, run_means

PIPELINE = Path(__file__).parents[2] / "pipelines" / "renn_mki67.py"

PUBLISHED = {
    ("NLL", 2): (1.4436, 0.196, 1.2607, 1.4135, 19.4, 0.834, 0.286, 1.5316),
    ("NLL", 150): (1.4670, 0.211, 1.2305, 1.4013, 34.5, 0.963, 0.981, 1.4896),
    ("NLL_cor_1", 2): (1.4619, 0.204, 1.2722, 1.4061, 27.4, 1.003, 0.029, 1.5316),
    ("NLL_cor_det", 16): (1.4351, 0.195, 1.2130, 1.3811, 34.7, 0.887, 0.626, 1.5075),
    ("NLL_no_RE", 32): (1.5129, 0.177, 1.3612, 1.5140, 38.5, 1.132, np.nan, 1.5259),
}
COLUMNS = ["validation", "validation_sd", "validation_best", "train", "epoch", "s2_e", "s2_b", "last_validation"]


def written(path, change=None):
    """Write two losses, two m, two runs, three epochs, the middle one best; `change` edits the table first."""
    rows = [
        (loss, m, run, epoch, 2.0 - epoch / 10, (1.0, 0.5, 0.75)[epoch] + run / 10, 0.9, 1.0 - epoch * (loss == "nll"))
        for loss in ("nll", "none")
        for m in (2, 16)
        for run in (0, 1)
        for epoch in (0, 1, 2)
    ]
    names = ["loss_func", "m", "run", "epoch", "train_loss", "val_loss", "sigma2_e_est", "sigma2_b_est"]
    table = pd.DataFrame(rows, columns=names)
    table["sigma2_b_est"] = table["sigma2_b_est"].abs()
    table = table if change is None else change(table)
    table.to_csv(path)  # with the unnamed column of row numbers that the published file has
    return path


def test_runs_are_summarised_at_their_best_epoch(tmp_path):
    table = read_renn_table(written(tmp_path / "r.csv", lambda t: t.sample(frac=1, random_state=0)))
    best = best_epochs(table)
    assert best["epoch"].tolist() == [1] * 8
    assert np.allclose(best["last_validation"] - best["validation"], 0.25)
    means = run_means(table)
    assert set(means.index) == {("nll", 2), ("nll", 16), ("none", 2), ("none", 16)}
    line = means.loc[("nll", 2)]
    assert line["runs"] == 2
    assert line["validation"] == pytest.approx(0.55)
    assert line["validation_sd"] == pytest.approx(0.1 / np.sqrt(2))
    assert line["validation_best"] == 0.5


def test_a_variance_that_no_epoch_moved_was_not_fitted(tmp_path):
    table = read_renn_table(written(tmp_path / "r.csv"))
    assert table.loc[table["loss"] == "none", "s2_b"].isna().all()
    assert table.loc[table["loss"] == "nll", "s2_b"].notna().all()


BAD = [
    (lambda t: t.drop(columns="val_loss"), DataError, "no column 'val_loss'"),
    (lambda t: t.iloc[:0], DataError, "no epochs"),
    (lambda t: t.assign(train_loss=["x", *t["train_loss"][1:]]), DataError, r"line 2 \('x'\)"),
    (lambda t: t.assign(m=t["m"] + 0.5), DataError, "no whole number"),
    (lambda t: t.assign(sigma2_e_est=-1.0), DataError, "24 values of 's2_e' are negative"),
    (lambda t: pd.concat([t, t.iloc[:1]]), AlignmentError, "1 epochs twice .first: nll, m 2, run 0, epoch 0"),
    (lambda t: t.drop(index=4), AlignmentError, "1 of 8 runs lack epochs .*nll m 2 run 1"),
    (lambda t: t.drop(index=5), AlignmentError, "1 of 8 runs lack epochs"),
]


@pytest.mark.parametrize(("change", "error", "said"), BAD, ids=[b[2] for b in BAD])
def test_a_table_that_cannot_be_used_is_one_line(tmp_path, change, error, said):
    with pytest.raises(error, match=said) as raised:
        read_renn_table(written(tmp_path / "r.csv", change))
    assert "\n" not in str(raised.value)


def pipeline():
    spec = importlib.util.spec_from_file_location("renn_mki67", PIPELINE)
    module = importlib.util.module_from_spec(spec)
    # its settings are a dataclass, which looks itself up
    sys.modules["renn_mki67"] = module
    spec.loader.exec_module(module)
    return module


def test_the_pipeline_draws_a_table_and_says_what_is_wrong_with_another(tmp_path, capsys):
    made = pipeline()
    assert made.main([str(written(tmp_path / "r.csv")), "--pictures", str(tmp_path / "p")]) == 0
    assert "10 pictures" in capsys.readouterr().out
    assert made.main([str(tmp_path / "none.csv")]) == 3
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.real
def test_the_published_table_gives_the_published_numbers_and_pictures(real_data, tmp_path):
    csv = real_data / "tcga_brca" / "renn_results_flat.csv"
    assert len(read_renn_table(csv)) == 14_400
    made = pipeline()
    means = made.summarise(csv)
    assert len(means) == 24
    assert (means["runs"] == 10).all()
    for key, want in PUBLISHED.items():
        np.testing.assert_allclose(means.loc[key, COLUMNS].astype(float), want, atol=6e-4, err_msg=str(key))
    assert means.loc[[("NLL", m) for m in (2, 150)] + [("NLL_cor_det", 16)], "validation"].round(4).tolist() == [
        1.4436, 1.4670, 1.4351,
    ]  # fmt: skip
    pictures = made.redraw(csv, tmp_path)
    assert len(pictures) == 10
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
