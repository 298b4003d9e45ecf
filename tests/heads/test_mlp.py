from __future__ import annotations

import numpy as np
import pytest
import torch

from histostore.errors import DataError, UsageError
from histostore.heads.convergence import NotConvergedWarning
from histostore.heads.mlp import MLP
from histostore.heads.net import Schedule, mlp
from histostore.heads.tuning import by_value, column_moments, hold_out
from histostore.testing.head_contract import HeadContract


class TestMLPContract(HeadContract):
    def make(self):
        return MLP((16,), lr=3e-3, patience=40, max_epochs=2000)


def counts(n=400, seed=0, dispersed=False):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4)).astype(np.float32)
    library = rng.uniform(200, 4000, size=n)
    rate = np.exp(np.column_stack((0.6 * X[:, 0], -0.5 * X[:, 1], np.zeros(n)))) * [0.004, 0.002, 0.01]
    mean = rate * library[:, None]
    y = rng.poisson(mean * rng.gamma(2, 1 / 2, size=mean.shape)) if dispersed else rng.poisson(mean)
    return X, y, library, rate


def test_a_curved_relation_is_learned():
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, size=(400, 3)).astype(np.float32)
    y = np.column_stack((X[:, 0] ** 2, np.abs(X[:, 1])))
    head = MLP((64,), lr=3e-3, max_epochs=600).fit(X[:300], y[:300])
    assert np.mean((head.predict(X[300:]) - y[300:]) ** 2) < 0.1 * y.var()


@pytest.mark.parametrize("loss", ["poisson", "nb"])
def test_counts_are_modelled_with_the_library_as_an_offset(loss):
    X, y, library, rate = counts()
    head = MLP((16,), loss=loss, lr=3e-3, max_epochs=600).fit(X[:300], y[:300], library=library[:300])
    assert head.reference_library_ == np.median(library[:300])
    guess = head.predict(X[300:])
    expected = rate[300:] * head.reference_library_
    assert np.corrcoef(np.log(guess[:, 0]), np.log(expected[:, 0]))[0, 1] > 0.9
    np.testing.assert_allclose(guess.mean(0), expected.mean(0), rtol=0.2)


def test_the_library_of_a_new_spot_is_used_only_where_it_is_given():
    X, y, library, _ = counts()
    head = MLP((8,), loss="poisson", lr=3e-3, max_epochs=600).fit(X, y, library=library)
    plain = head.predict(X)
    ten = head.predict(X, library=np.full(len(X), 10 * head.reference_library_))
    np.testing.assert_allclose(ten, 10 * plain, rtol=1e-4)
    with pytest.raises(DataError, match="1 of 400 library sizes"):
        head.predict(X, library=np.where(np.arange(400) == 3, 0, library))


def test_dispersion_is_found():
    X, y, library, _ = counts(n=1500, dispersed=True)
    head = MLP((8,), loss="nb", lr=1e-2, max_epochs=600).fit(X, y, library=library)
    assert 1.2 < head.theta_[2] < 3.5


def test_a_gene_that_is_never_seen_and_one_that_is_constant_stay_finite():
    X, y, library, _ = counts()
    y[:, 1] = 0
    out = MLP((8,), loss="nb", lr=3e-3, max_epochs=600).fit(X, y, library=library).predict(X)
    assert np.isfinite(out).all()
    assert out[:, 1].max() < 0.1
    constant = MLP((8,), lr=3e-3).fit(X, np.full((len(X), 2), 3.0)).predict(X)
    np.testing.assert_allclose(constant, 3, atol=1e-3)


def test_what_is_no_count_is_refused_where_counts_are_needed():
    X, y, library, _ = counts()
    for wrong in (y + 0.5, -y):
        with pytest.raises(DataError, match="raw counts"):
            MLP(loss="nb").fit(X, wrong)
    with pytest.raises(UsageError, match="offset of counts"):
        MLP().fit(X, y, library=library)
    with pytest.raises(UsageError, match="not mse, poisson, nb"):
        MLP(loss="gauss").fit(X, y)


def test_non_convergence_is_said():
    X, y, _, _ = counts()
    with pytest.warns(NotConvergedWarning, match="3 epochs"):
        head = MLP((4,), max_epochs=3).fit(X, y)
    assert head.notes_
    assert head.history_["best_epoch"] <= 3


def test_training_stops_on_whole_groups_and_keeps_the_best_epoch():
    X, y, _, _ = counts()
    groups = np.repeat(np.arange(8), 50)
    head = MLP((32,), lr=1e-2, max_epochs=600).fit(X, y, groups=groups)
    losses = head.history_["validation"]
    assert np.argmin(losses) + 1 == head.history_["best_epoch"] < len(losses)
    rows, held = hold_out(400, groups)
    assert not set(groups[rows]) & set(groups[held])
    assert len(rows) + len(held) == 400


def test_seeds_decide_and_leave_the_callers_alone():
    X, y, _, _ = counts(n=120)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = MLP((8,), seed=1, dropout=0.2, lr=1e-2, max_epochs=600).fit(X, y).predict(X)
    assert torch.equal(torch.rand(3), expected)
    again = MLP((8,), seed=1, dropout=0.2, lr=1e-2, max_epochs=600).fit(X, y).predict(X)
    other = MLP((8,), seed=2, dropout=0.2, lr=1e-2, max_epochs=600).fit(X, y).predict(X)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_network_here_looks_at_its_batch():
    """The seeds ran batch normalisation in training mode at test: predictions hung on batch-mates."""
    X, y, _, _ = counts(n=120)
    head = MLP((8,), dropout=0.5, lr=1e-2, max_epochs=600).fit(X, y)
    whole = head.predict(X)
    np.testing.assert_array_equal(whole, head.predict(X))
    np.testing.assert_allclose(head.predict(X[:1]), whole[:1], rtol=1e-4)
    extreme = np.concatenate((X[:5], 1e3 * X[5:]))
    np.testing.assert_allclose(head.predict(extreme)[:5], whole[:5], rtol=1e-4)
    kinds = {type(m).__name__ for m in mlp((3, 4, 2), dropout=0.1).modules()}
    assert kinds == {"Sequential", "Linear", "ReLU", "Dropout"}


def test_memory_mapped_half_precision_is_taken(tmp_path):
    X, y, _, _ = counts(n=120)
    kept = np.memmap(tmp_path / "x", np.float16, "w+", shape=X.shape)
    kept[:] = X
    np.testing.assert_array_equal(
        MLP((4,), lr=1e-2, max_epochs=600).fit(kept, y).predict(kept),
        MLP((4,), lr=1e-2, max_epochs=600).fit(np.array(kept), y).predict(np.array(kept)),
    )


def test_moments_are_those_of_numpy_and_the_order_is_of_values():
    X = (np.random.default_rng(0).normal(size=(300, 5)) + 1000).astype(np.float32)
    rows = np.arange(0, 300, 2)
    mean, std = column_moments(X, rows, block=32)
    np.testing.assert_allclose(mean, X[rows].mean(0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(std, X[rows].std(0, dtype=np.float64), rtol=1e-6)
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_array_equal(X[order][by_value(X[order])], X[by_value(X)])


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"lr": -1.0}, {"patience": 0}, {"weight_decay": -1.0}])
def test_a_schedule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError):
        Schedule(**wrong)
    with pytest.raises(UsageError, match="hidden"):
        MLP((4, 0)).fit(np.zeros((4, 2)), np.zeros(4))


def test_a_diverging_loss_is_an_error():
    X, y, library, _ = counts(n=100)
    with pytest.raises(DataError, match="smaller lr"):
        MLP((8,), loss="poisson", lr=1e6).fit(X, y, library=library)
