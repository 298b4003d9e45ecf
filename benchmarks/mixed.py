"""Random-intercept fit at 100,000 rows and 1,000 groups against statsmodels' MixedLM, taken in turns.

    python -m benchmarks.mixed [--n 100000] [--groups 1000] [--rounds 3]

Prints seconds of both in each round, their ratio and both log-likelihoods. Exits 1 where the ratio of the medians is
below 100, or where statsmodels finds a better optimum.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import numpy as np
from statsmodels.regression.mixed_linear_model import MixedLM

from histostore.heads.mixed.random_intercept import fit_random_intercept

MUST = 100.0


def draw(n: int, q: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, q, n)
    x = rng.normal(size=(n, 1))
    return 1 + 0.5 * x[:, 0] + rng.normal(0, 0.7, q)[groups] + rng.normal(size=n), groups, x


def theirs(y: np.ndarray, groups: np.ndarray, x: np.ndarray, method: str) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MixedLM(y, np.column_stack([np.ones(len(y)), x]), groups)
        return float(model.fit(reml=False, method=method).llf)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--groups", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    y, groups, x = draw(options.n, options.groups)
    seconds: dict[str, list[float]] = {"histostore": [], "lbfgs": [], "powell": []}
    loglik: dict[str, float] = {}
    for turn in range(options.rounds):
        for name, spent in seconds.items():
            began = time.perf_counter()
            loglik[name] = (
                fit_random_intercept(y, groups, x).loglik if name == "histostore" else theirs(y, groups, x, name)
            )
            spent.append(time.perf_counter() - began)
        print(f"round {turn + 1}: " + "  ".join(f"{k} {v[-1]:.3f} s" for k, v in seconds.items()), flush=True)
    ours = float(np.median(seconds["histostore"]))
    ratios = {k: float(np.median(v)) / ours for k, v in seconds.items() if k != "histostore"}
    for name, ratio in ratios.items():
        print(f"statsmodels ({name}): {ratio:.0f} times as long; log-likelihood {loglik[name]:.4f}")
    print(f"histostore: {ours * 1000:.0f} ms; log-likelihood {loglik['histostore']:.4f}")
    good = min(ratios.values()) >= MUST and loglik["histostore"] >= max(loglik.values()) - 1e-6
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
