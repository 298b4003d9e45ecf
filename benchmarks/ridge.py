"""Ridge beside the bare Gram product (the limit) and scikit-learn: one penalty, and a grid chosen by groups held out.

    python -m benchmarks.ridge [rows] [features] [targets]

Interleaved rounds; medians and ratios of CPU seconds, which other work on the machine moves less than wall time.
Exits 1 when one penalty in float64 takes more than 2x the Gram products or is not 1.5x as fast as `Ridge`, or when the
grid is not 3x as fast as `RidgeCV`. In float32 scikit-learn adds up in float32 and is faster; what that costs in the
coefficients is printed, for features whose spectrum falls off as those of networks do.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.linear_model import Ridge as Theirs
from sklearn.linear_model import RidgeCV

from histostore.heads.ridge import Ridge

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS, FOLDS = 5, 5
ALPHAS = tuple(10.0 ** np.arange(-1, 6.5, 0.8))


def problem(n: int, d: int, t: int, *, decay: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 features whose singular values fall with rank to the power of -decay, and noisy targets."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    X = (rng.normal(size=(n, d)) * np.arange(1.0, d + 1) ** -decay) @ turn
    X = X / X.std() + 3 * rng.normal(size=d)
    return X, X @ rng.normal(scale=0.1, size=(d, t)) + rng.normal(size=(n, t))


def cpu_seconds(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of each, rounds interleaved."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            spent[name].append(time.process_time() - begun)
    return {name: float(np.median(values)) for name, values in spent.items()}


def float32_errors(d: int, alphas: tuple[float, ...]) -> dict[str, list[float]]:
    """Return relative errors of the coefficients of float32 input, ours and theirs, by penalty."""
    X, Y = problem(8 * d, d, 4, decay=1.0)
    X, Y = X.astype(np.float32), Y.astype(np.float32)
    out: dict[str, list[float]] = {"ours": [], "theirs": []}
    for alpha in alphas:
        exact = Theirs(alpha, solver="svd").fit(X.astype(float), Y.astype(float)).coef_
        for name, head in (("ours", Ridge(alpha, scale="none")), ("theirs", Theirs(alpha))):
            out[name].append(float(np.linalg.norm(head.fit(X, Y).coef_ - exact) / np.linalg.norm(exact)))
    return out


def main() -> int:
    """Print the ratios; return 1 when a gate is missed."""
    n, d, t = (int(v) for v in (sys.argv[1:] + ["20000", "1024", "250"][len(sys.argv) - 1 :])[:3])
    X, Y = problem(n, d, t)
    single, targets = X.astype(np.float32), Y.astype(np.float32)
    groups = np.arange(n) * FOLDS // n
    found = cpu_seconds(
        {
            "gram": lambda: (X.T @ X, X.T @ Y),
            "one": lambda: Ridge(100.0, scale="none").fit(X, Y),
            "their one": lambda: Theirs(100.0).fit(X, Y),
            "one, float32": lambda: Ridge(100.0, scale="none").fit(single, targets),
            "their one, float32": lambda: Theirs(100.0).fit(single, targets),
        },
        ROUNDS,
    )
    found |= cpu_seconds(
        {
            "grid": lambda: Ridge(ALPHAS, scale="none").fit(X, Y, groups=groups),
            "their grid": lambda: RidgeCV(ALPHAS).fit(X, Y),
        },
        1,
    )
    for name, value in found.items():
        print(f"{name:<20} {value:7.2f} s CPU, {value / found['gram']:6.2f}x the Gram products")
    gates = {
        "one penalty / Gram products": (found["one"] / found["gram"], "<=", 2.0),
        "Ridge / one penalty": (found["their one"] / found["one"], ">=", 1.5),
        f"RidgeCV / {len(ALPHAS)} penalties by {FOLDS} groups": (found["their grid"] / found["grid"], ">=", 3.0),
    }
    print(f"Ridge / one penalty, float32: {found['their one, float32'] / found['one, float32']:.2f}")
    alphas = (0.1, 10.0, 1e3)
    for name, errors in float32_errors(min(d, 512), alphas).items():
        said = ", ".join(f"{e:.0e} at {a:g}" for e, a in zip(errors, alphas, strict=True))
        print(f"coefficients of float32 input, {name}: relative error {said}")
    reached = {name: (v <= g if sign == "<=" else v >= g) for name, (v, sign, g) in gates.items()}
    for name, (value, sign, gate) in gates.items():
        print(f"{name}: {value:.2f} (gate {sign} {gate}) {'reached' if reached[name] else 'missed'}")
    return int(not all(reached.values()))


if __name__ == "__main__":
    sys.exit(main())
