from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone

from histostore.errors import DataError, UsageError
from histostore.heads.mixed.random_intercept import fit_random_intercept, nll
from histostore.heads.mixed.renn import RENN
from histostore.heads.registry import make
from histostore.testing.head_contract import HeadContract

SEEDS = ("nll", "cor_1", "cor_det", "no_re")


class TestRennContract(HeadContract):
    def make(self):
        return RENN(hidden=(16,), epochs=30, batch_size=16, validation=0.0)


class TestRennWithEarlyStoppingContract(HeadContract):
    def make(self):
        return RENN(hidden=(16, 8), epochs=15, batch_size=16, validation=0.2, patience=5)


class TestLinearReml(HeadContract):
    def make(self):
        return RENN(hidden=(), epochs=20, lr=1e-2, method="reml", scale="features", validation=0.0)


class TestStudyLossContract(HeadContract):
    def make(self):
        return RENN(hidden=(8,), epochs=10, batch_size=8, loss="cor_det", decay="halving")


def linear(n=1200, q=30, s2_b=0.8, seed=0):
    """Groups of unequal size; features differ in mean between groups, so that effects and slopes compete."""
    rng = np.random.default_rng(seed)
    groups = rng.choice(q, n, p=rng.dirichlet(np.full(q, 2.0)))
    X = rng.normal(size=(n, 3)) + 0.5 * rng.normal(size=(q, 3))[groups]
    y = 2 + X @ [1.0, -0.5, 0.2] + rng.normal(0, np.sqrt(s2_b), q)[groups] + rng.normal(size=n)
    return X.astype(np.float32), y, groups


def variances(head):
    return [head.s2_e_[0], head.s2_b_[0]]


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_without_epochs_it_is_the_random_intercept(method):
    X, y, groups = linear()
    fit = fit_random_intercept(y, groups, method=method)
    head = RENN(epochs=0, method=method).fit(X, y, groups=groups)
    assert variances(head) == pytest.approx([fit.s2_e, fit.s2_b], rel=1e-6)
    assert head.effects() == pytest.approx(fit.effects(), abs=1e-6)
    np.testing.assert_allclose(head.predict(X, groups)[:, 0], fit.predict(groups), atol=1e-5)


@pytest.mark.real
def test_on_the_tcga_table_too(mki67):
    X = np.random.default_rng(0).normal(size=(len(mki67), 4))
    head = RENN(epochs=0).fit(X, mki67["y"].to_numpy(), groups=mki67["tss_code"].to_numpy())
    assert variances(head) == pytest.approx([1.004767, 0.112562], abs=1e-5)
    assert head.effects()["A8"] == pytest.approx(0.60003, abs=1e-5)


@pytest.mark.parametrize("batch_size", [2, 7, 32, 150, 1200])
def test_any_batch_size_gives_the_variances_of_the_full_likelihood(batch_size):
    X, y, groups = linear()
    fit = fit_random_intercept(y, groups, X)
    # as many rows seen, and steps of a size that suits their noise
    epochs, lr = {2: (25, 2e-3), 7: (25, 5e-3), 32: (40, 1e-2), 150: (120, 2e-2), 1200: (400, 5e-2)}[batch_size]
    head = RENN(hidden=(), epochs=epochs, lr=lr, batch_size=batch_size, weight_decay=0, validation=0.0)
    head.fit(X, y, groups=groups)
    assert variances(head) == pytest.approx([fit.s2_e, fit.s2_b], abs=1e-3)
    np.testing.assert_allclose(head.predict(X, groups)[:, 0], fit.predict(groups, X), atol=0.06)


@pytest.mark.parametrize("loss", SEEDS)
def test_the_study_s_losses_do_not_in_small_batches(loss):
    """f fixed (lr 0) and small batches: the variances go where each loss's own optimum is."""
    X, y, groups = linear()
    y = y - y.mean()
    exact = RENN(epochs=0).fit(X, y, groups=groups)
    options = {"loss": loss, "lr": 0.0, "sigma_lr": 5e-2, "validation": 0.0, "scale_target": False, "hidden": ()}
    head = RENN(batch_size=4, epochs=12, **options).fit(X, y, groups=groups)
    off = np.abs(np.subtract(variances(head), variances(exact)))
    assert off.max() > 0.02
    assert loss in head.notes_[0]
    if loss == "cor_1":
        assert head.s2_e_ > 1.05 * exact.s2_e_
        assert head.s2_b_ < 0.8 * exact.s2_b_


def test_the_study_s_likelihoods_are_exact_only_when_a_batch_holds_its_whole_group():
    import torch

    from histostore.heads.mixed.seed_losses import LOSSES

    rng = np.random.default_rng(0)
    e = rng.normal(size=(40, 1))
    whole, halves = torch.from_numpy(e), torch.from_numpy(e).split(20)
    s2 = torch.tensor([1.3], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    exact = nll(e[:, 0], np.zeros(40), 1.3, 0.4)
    for name in ("nll", "cor_1", "cor_det"):
        assert float(LOSSES[name](whole, 40, *s2)) == pytest.approx(exact)
        assert abs(sum(float(LOSSES[name](h, 40, *s2)) for h in halves) - exact) > 1e-3
    independent = 0.5 * (40 * np.log(2 * np.pi * 1.3) + (e**2).sum() / 1.3)
    assert float(LOSSES["no_re"](whole, 40, *s2)) == pytest.approx(independent)
    # two halves: the correction of the determinant is what the whole group's is less by
    parts = sum(float(LOSSES["cor_det"](h, 40, *s2) - LOSSES["nll"](h, 40, *s2)) for h in halves)
    logdet = [(m - 1) * np.log(1.3) + np.log(1.3 + m * 0.4) for m in (40, 20)]
    assert parts == pytest.approx(0.5 * (logdet[0] - 2 * logdet[1]))


def lmmnn(n=5000, q=100, seed=0):
    """Draw the design of LMMNN's simulation, with 4,000 rows to train on."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, (n, 10))
    eta = 1 + X.sum(1)
    f = eta * np.cos(eta) + 2 * X[:, 0] * X[:, 1]
    share = rng.poisson(3, q) + 1.0
    groups = np.repeat(np.arange(q), rng.multinomial(n, share / share.sum()))
    y = f + rng.normal(size=q)[groups] + rng.normal(size=n)
    order = rng.permutation(n)
    return X.astype(np.float32), y, f, groups, order[n // 5 :], order[: n // 5]


def test_a_small_lmmnn_simulation_comes_near_the_oracle():
    X, y, f, groups, train, test = lmmnn()
    sums, sizes = np.bincount(groups[train], (y - f)[train], 100), np.bincount(groups[train], minlength=100)
    oracle = np.mean((y - f - (sums / (1 + sizes))[groups])[test] ** 2)
    options = {"hidden": (64, 64), "activation": "tanh", "epochs": 40, "lr": 5e-3, "weight_decay": 0.2}
    head = RENN(validation=0.0, **options).fit(X[train], y[train], groups=groups[train])
    mse = np.mean((head.predict(X[test], groups[test])[:, 0] - y[test]) ** 2)
    assert mse < 1.10 * oracle
    ignoring = RENN(validation=0.0, loss="no_re", scale_target=False, sigma_lr=1e-2, **options).fit(X[train], y[train])
    assert mse < 0.7 * np.mean((ignoring.predict(X[test])[:, 0] - y[test]) ** 2)
    knowing = fit_random_intercept((y - f)[train], groups[train])
    assert variances(head) == pytest.approx([knowing.s2_e, knowing.s2_b], rel=0.05)
    for known in (groups[test], None):
        low, high = head.predict_interval(X[test], known, level=0.9)
        assert 0.86 < np.mean((low[:, 0] < y[test]) & (y[test] < high[:, 0])) < 0.94


def test_known_groups_get_their_effect_and_new_ones_zero_with_a_wider_interval():
    X, y, groups = linear()
    head = RENN(hidden=(8,), epochs=5).fit(X, y, groups=groups)
    plain = head.predict(X[:2])
    there = head.predict(X[:2], [str(groups[0]), "elsewhere"])
    assert there[0, 0] - plain[0, 0] == pytest.approx(head.effects()[str(groups[0])], abs=1e-5)
    assert there[1, 0] == plain[1, 0]
    low, high = head.predict_interval(X[:2], [groups[0], "elsewhere"])
    width = (high - low)[:, 0]
    expected = (
        2
        * 1.6448536
        * np.sqrt(head.noise_[0] + np.array([head.blup_var_[groups_at(head, groups[0]), 0], head.s2_b_[0]]))
    )
    np.testing.assert_allclose(width, expected, rtol=1e-5)
    assert width[0] < width[1]
    np.testing.assert_allclose(head.predict_interval(X[1:2])[1], high[1:], rtol=1e-6)


def groups_at(head, label):
    return head.levels_.names.index(str(label))


def test_effects_and_variances_survive_saving():
    X, y, groups = linear()
    head = RENN(hidden=(8,), epochs=3).fit(X, np.column_stack([y, y**2]), groups=groups)
    arrays, meta = head.to_state()
    again = RENN.from_state(arrays, meta)
    for mine, theirs in zip(head.predict_interval(X, groups), again.predict_interval(X, groups), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert again.get_params() == head.get_params()
    assert again.effects(1) == head.effects(1)
    assert set(again.history_) == {"loss", "s2_e", "s2_b", "validation"}


def test_each_target_has_variances_of_its_own_and_a_constant_one_is_predicted_as_such():
    X, y, groups = linear()
    both = np.column_stack([y, 10 * np.random.default_rng(0).permutation(y), np.full(len(y), 4.0)])
    head = RENN(hidden=(8,), epochs=3, validation=0.0).fit(X, both, groups=groups)
    assert head.s2_b_[0] > 0.3 > head.s2_b_[1] / 100
    assert head.s2_e_[1] > 50
    assert head.s2_e_[2] == head.s2_b_[2] == 0
    np.testing.assert_array_equal(head.predict(X, groups)[:, 2], 4.0)
    assert any("1 of 3 targets are constant" in note for note in head.notes_)


def test_the_exact_loss_falls_and_is_that_of_the_marginal_likelihood():
    X, y, groups = linear()
    head = RENN(hidden=(), epochs=20, lr=1e-2, validation=0.0, scale_target=False).fit(X, y, groups=groups)
    loss = head.history_["loss"]
    assert (np.diff(loss) < 1e-3).all()
    residual = y - head.predict(X)[:, 0]
    assert loss[-1] == pytest.approx(nll(residual, groups, *variances(head)) / len(y), abs=1e-6)


def test_overfitting_is_said_and_widens_the_intervals():
    rng = np.random.default_rng(0)
    X, groups = rng.normal(size=(200, 40)), np.arange(200) % 10
    y = rng.normal(size=200)
    head = RENN(epochs=150, lr=3e-3, weight_decay=0, patience=150, validation=0.2).fit(X, y, groups=groups)
    late = RENN(epochs=60, lr=3e-3, weight_decay=0, validation=0.2, patience=60, decay="none").fit(X, y, groups=groups)
    assert head.noise_[0] >= head.s2_e_[0]
    assert late.best_epoch_ < 60


def test_few_groups_are_said_and_what_cannot_be_estimated_is_refused():
    X, y, groups = linear()
    assert "3 levels" in RENN(epochs=0).fit(X, y, groups=groups % 3).notes_[0]
    for wrong, message in ((groups * 0, "one level"), (np.arange(len(y)), "has one row")):
        with pytest.raises(DataError, match=message):
            RENN(epochs=1).fit(X, y, groups=wrong)
    with pytest.raises(DataError, match="all 1 targets are constant"):
        RENN(epochs=1).fit(X, y * 0, groups=groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "nnl"}, "loss is 'nnl'"),
        ({"decay": "step"}, "cosine, halving, none"),
        ({"activation": "elu"}, "relu, silu, tanh"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"lr": -1.0}, "none may be negative"),
        ({"method": "REML"}, "method"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"hidden": (0,)}, "widths"),
        ({"scale": "robust"}, "scale is"),
    ],
)
def test_options_that_make_no_sense_are_one_clear_error(options, message):
    X, y, groups = linear(100)
    with pytest.raises(UsageError, match=message):
        RENN(**options).fit(X, y, groups=groups)


def test_groups_are_needed_and_must_fit():
    X, y, groups = linear(100)
    with pytest.raises(UsageError, match="needs groups"):
        RENN().fit(X, y)
    with pytest.raises(UsageError, match="100 rows and groups 99"):
        RENN().fit(X, y, groups=groups[1:])
    head = RENN(epochs=1).fit(X, y, groups=groups)
    with pytest.raises(UsageError, match="100 rows and groups 99"):
        head.predict(X, groups[1:])
    with pytest.raises(UsageError, match="level is 90"):
        head.predict_interval(X, level=90)


def test_it_is_found_by_name_and_cloned_by_scikit_learn():
    head = make("renn", [("epochs", 3), ("hidden", 32)], seed=4)
    assert isinstance(head, RENN)
    assert clone(head).get_params() == head.get_params()
    assert head.seed == 4


def test_a_loss_that_blows_up_is_refused():
    X, y, groups = linear(200)
    with pytest.raises(DataError, match="give a smaller lr"):
        RENN(epochs=5, lr=1e30, validation=0.0).fit(X, y, groups=groups)


def test_training_leaves_torch_s_own_randomness_alone():
    import torch

    X, y, groups = linear(100)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    RENN(hidden=(4,), epochs=1, dropout=0.5).fit(X, y, groups=groups)
    assert torch.rand(1) == expected
