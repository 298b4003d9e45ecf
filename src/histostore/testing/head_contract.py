"""What every head must do; subclass it in a test and say how to make one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from histostore.errors import DataError, SpecMismatchError, UsageError
from histostore.protocols import Head

if TYPE_CHECKING:
    from numpy.typing import NDArray


class HeadContract:
    """Tests of the `Head` protocol.

    ::

        class TestMyHead(HeadContract):
            def make(self) -> Head:
                return MyHead()
    """

    n_features = 12
    n_targets = 3

    def make(self) -> Head:
        """Return an unfitted head."""
        raise NotImplementedError

    def data(self, n: int = 60, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[Any]]:
        """Return features ``(n, d)``, targets ``(n, t)`` and three groups ``(n,)``."""
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(n, self.n_features)).astype(np.float32)
        y = X[:, : self.n_targets] * 2 + 5 + rng.normal(scale=0.1, size=(n, self.n_targets))
        return X, y.astype(np.float32), np.array(["a", "b", "c"])[np.arange(n) % 3]

    def fitted(self) -> tuple[Head, NDArray[np.float32]]:
        """Return a fitted head and the features it saw."""
        X, y, groups = self.data()
        return self.make().fit(X, y, groups=groups), X

    def test_it_is_a_head(self) -> None:
        """It offers the protocol's methods."""
        assert isinstance(self.make(), Head)

    def test_fit_returns_self_and_leaves_its_input_alone(self) -> None:
        """Arrays given to fit and predict are borrowed."""
        X, y, groups = self.data()
        before = X.copy(), y.copy()
        head = self.make()
        assert head.fit(X, y, groups=groups) is head
        head.predict(X)
        np.testing.assert_array_equal(X, before[0])
        np.testing.assert_array_equal(y, before[1])

    def test_predictions_are_float32_rows_by_targets(self) -> None:
        """Also for no rows."""
        head, X = self.fitted()
        for rows in (X, X[:0]):
            out = head.predict(rows)
            assert out.shape == (len(rows), self.n_targets)
            assert out.dtype == np.float32
        assert np.isfinite(head.predict(X)).all()

    def test_one_dimensional_targets_are_one_target(self) -> None:
        """``y (n,)`` predicts ``(n, 1)``."""
        X, y, groups = self.data()
        assert self.make().fit(X, y[:, 0], groups=groups).predict(X).shape == (len(X), 1)

    def test_a_row_is_predicted_alike_alone_and_among_others(self) -> None:
        """No row depends on its batch-mates."""
        head, X = self.fitted()
        whole = head.predict(X)
        alone = np.concatenate([head.predict(X[i : i + 1]) for i in range(len(X))])
        np.testing.assert_allclose(alone, whole, rtol=1e-5, atol=1e-5)

    def test_fitting_twice_gives_the_same(self) -> None:
        """Randomness comes from the head's own seed."""
        (first, X), (second, _) = self.fitted(), self.fitted()
        np.testing.assert_array_equal(first.predict(X), second.predict(X))

    def test_the_order_of_training_rows_does_not_matter(self) -> None:
        """Up to rounding."""
        X, y, groups = self.data()
        order = np.random.default_rng(1).permutation(len(X))
        shuffled = self.make().fit(X[order], y[order], groups=groups[order])
        np.testing.assert_allclose(shuffled.predict(X), self.fitted()[0].predict(X), rtol=1e-4, atol=1e-4)

    def test_half_precision_features_are_taken(self) -> None:
        """As the store keeps them."""
        X, y, groups = self.data()
        half = X.astype(np.float16)
        out = self.make().fit(half, y, groups=groups).predict(half)
        np.testing.assert_allclose(out, self.fitted()[0].predict(X), rtol=0.02, atol=0.1)

    def test_state_survives_safetensors_and_json(self) -> None:
        """The reloaded head predicts the same bits."""
        head, X = self.fitted()
        arrays, meta = head.to_state()
        kept = load(save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
        again = type(head).from_state(kept, json.loads(json.dumps(meta, allow_nan=False)))
        np.testing.assert_array_equal(again.predict(X), head.predict(X))
        assert again.to_state()[1] == meta

    def test_parameters_make_an_equal_head(self) -> None:
        """``type(head)(**head.get_params())`` is scikit-learn's clone."""
        head = self.make()
        assert type(head)(**head.get_params()).get_params() == head.get_params()

    def test_a_row_of_nan_predicts_nan(self) -> None:
        """An unreadable tile has no prediction, and harms no other row."""
        head, X = self.fitted()
        expected = head.predict(X)
        holed = X.copy()
        holed[3] = np.nan
        out = head.predict(holed)
        assert np.isnan(out[3]).all()
        keep = np.arange(len(X)) != 3
        np.testing.assert_allclose(out[keep], expected[keep], rtol=1e-5, atol=1e-5)

    def test_nan_in_training_is_refused(self) -> None:
        """In features and in targets."""
        X, y, groups = self.data()
        for spoilt in (0, 1):
            pair = [X.copy(), y.copy()]
            pair[spoilt][2, 1] = np.nan
            with pytest.raises(DataError, match="1 of 60 rows"):
                self.make().fit(*pair, groups=groups)

    def test_misuse_is_one_clear_error(self) -> None:
        """Unfitted, another width, other numbers of rows, no rows."""
        X, y, groups = self.data()
        with pytest.raises(UsageError, match="not fitted"):
            self.make().predict(X)
        with pytest.raises(UsageError, match="60 rows and y has 59"):
            self.make().fit(X, y[:-1], groups=groups)
        with pytest.raises(UsageError, match="no rows"):
            self.make().fit(X[:0], y[:0], groups=groups[:0])
        with pytest.raises(SpecMismatchError, match="features"):
            self.fitted()[0].predict(X[:, :-1])
