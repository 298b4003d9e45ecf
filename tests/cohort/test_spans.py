"""Whatever runs the spans of a cohort, sums are the same to the last bit."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from histostore import pp, tl
from histostore.cohort.spans import cut
from histostore.errors import DataError, UsageError
from histostore.scale.cluster import workers_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Client

    import histostore as hs


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with workers_here(2) as found:
        yield found


@pytest.fixture(autouse=True)
def many_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histostore.cohort.spans.SPAN_ROWS", 100)


def test_spans_cover_the_rows_once_and_in_order(many: hs.Store) -> None:
    view = many.view(backbone="made")
    spans = cut(view, "made", keys=list("abcdef"))
    assert len(spans) == 18
    assert all(sum(s.n for s in span.slides) <= 100 for span in spans)
    read = [
        rows.embedding(0, len(rows), np.dtype("float16"))
        for span in pickle.loads(pickle.dumps(spans))
        for _, rows in span.open()
    ]
    np.testing.assert_array_equal(np.concatenate(read), view.numpy())
    keys = [k for span in spans for k, s in zip(span.keys, span.slides, strict=True) for _ in range(s.n)]
    assert keys == list(np.array(list("abcdef"))[view.obs(["slide"])["slide"].str[1:].astype(int)])


def test_serial_threads_and_processes_agree_to_the_bit(many: hs.Store, client: Client) -> None:
    view = many.view(backbone="made")
    ways: list[dict[str, Any]] = [{"workers": 1}, {"workers": 3}, {"client": client}]
    stats = [pp.gene_stats(view, **way) for way in ways]
    genes = [pp.highly_variable_genes(view, n_top=20, batch_key="patient", **way) for way in ways]
    for one in stats[1:]:
        pd.testing.assert_frame_equal(one, stats[0], check_exact=True)
    for one in genes[1:]:
        pd.testing.assert_frame_equal(one, genes[0], check_exact=True)
    grams = [tl.gram(view, genes=["G3", "G7"], **way) for way in ways]
    parts = [tl.pca(view, n_comps=5, **way) for way in ways]
    for gram, part in zip(grams[1:], parts[1:], strict=True):
        assert gram.report == grams[0].report
        assert list(gram.sums.groups) == list(grams[0].sums.groups)
        for fold, sums in gram.sums.groups.items():
            for name in ("n", "x", "y", "xx", "xy", "yy"):
                np.testing.assert_array_equal(getattr(sums, name), getattr(grams[0].sums.groups[fold], name))
        np.testing.assert_array_equal(part.components, parts[0].components)


def test_dask_arrays_are_computed_by_other_processes(many: hs.Store, client: Client) -> None:
    view = many.view(backbone="made").with_counts()
    np.testing.assert_array_equal(client.compute(view.to_dask()).result(), view.numpy())
    counts = client.compute(view.counts_dask().matrix).result()
    assert (counts != view.counts().matrix).nnz == 0


def test_an_error_of_a_task_is_the_error_that_is_raised(one_more: Callable[..., hs.Store], client: Client) -> None:
    view = one_more(normalised=True).view()
    ways: list[dict[str, Any]] = [{"workers": 1}, {"workers": 2}, {"client": client}]
    for way in ways:
        with pytest.raises(DataError, match="slide 'N' has normalised values"):
            pp.gene_stats(view, **way)
    with pytest.raises(UsageError, match="workers is 0"):
        pp.gene_stats(view, workers=0)
