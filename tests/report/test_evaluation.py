from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histostore.errors import DataError
from histostore.report import evaluation_section


def test_the_mean_of_the_folds_is_added_at_the_end():
    section = evaluation_section({"ridge": {"C2": 0.2, "C3": 0.4}, "mean": {"C2": 0.0, "C3": 0.1}})
    (table,) = section.tables.values()
    assert list(table.columns) == ["C2", "C3", "mean"]
    assert list(table.index) == ["ridge", "mean"]
    assert table["mean"].tolist() == pytest.approx([0.3, 0.05])
    assert table.index.name == "method"


def test_a_mean_over_an_undefined_fold_is_left_open_and_noted():
    section = evaluation_section(pd.DataFrame({"C2": [0.2], "C3": [np.nan]}, index=["ridge"]))
    (table,) = section.tables.values()
    assert np.isnan(table.loc["ridge", "mean"])
    assert section.notes[0].startswith("1 fold scores are undefined")


def test_a_split_within_patients_is_a_warning():
    summary = pd.DataFrame({"C2": [0.2]}, index=["ridge"])
    assert evaluation_section(summary).warnings == []
    section = evaluation_section(summary, same_patient=True, split="leave one section out")
    assert section.warnings[0].startswith("Same patient on both sides")
    assert section.notes == ["Split: leave one section out."]


def test_scores_by_gene_are_a_table_of_their_own():
    genes = pd.DataFrame({"ridge": [0.1, 0.2]}, index=pd.Index(["A", "B"], name="gene"))
    section = evaluation_section(pd.DataFrame({"C2": [0.2]}, index=["ridge"]), genes, metric="Spearman r")
    assert list(section.tables) == ["Spearman r by method and fold", "Spearman r by gene (2 genes)"]


def test_what_is_no_summary_is_refused():
    with pytest.raises(DataError, match="no scores"):
        evaluation_section({})
    with pytest.raises(DataError, match="stands twice in the summary: ridge"):
        evaluation_section(pd.DataFrame({"C2": [0.1, 0.2]}, index=["ridge", "ridge"]))
    with pytest.raises(DataError, match="what is no score"):
        evaluation_section(pd.DataFrame({"C2": ["good"]}, index=["ridge"]))
