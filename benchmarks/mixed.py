"""Random-intercept fit at 100,000 rows and 1,000 groups against statsmodels' MixedLM, taken in turns.

    python -m benchmarks.mixed [--n 100000] [--groups 1000] [--rounds 3]

Prints seconds in each round, ratios of the medians and log-likelihoods, of statsmodels' default optimisers and of
Powell's. Only what reaches the optimum counts: exits 1 where the ratio to the fastest such is below 100, where none
is such, or where statsmodels finds a better optimum.
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


def theirs(y: np.ndarray, groups: np.ndarray, x: np.ndarray, method: str | None) -> float:
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
    seconds: dict[str, list[float]] = {"histostore": [], "default": [], "powell": []}
    loglik: dict[str, float] = {}
    for turn in range(options.rounds):
        for name, spent in seconds.items():
            began = time.perf_counter()
            if name == "histostore":
                loglik[name] = fit_random_intercept(y, groups, x).loglik
            else:
                loglik[name] = theirs(y, groups, x, None if name == "default" else name)
            spent.append(time.perf_counter() - began)
        print(f"round {turn + 1}: " + "  ".join(f"{k} {v[-1]:.3f} s" for k, v in seconds.items()), flush=True)
    ours = float(np.median(seconds["histostore"]))
    ratios = {k: float(np.median(v)) / ours for k, v in seconds.items() if k != "histostore"}
    for name, ratio in ratios.items():
        print(f"statsmodels ({name}): {ratio:.0f} times as long; log-likelihood {loglik[name]:.4f}")
    print(f"histostore: {ours * 1000:.0f} ms; log-likelihood {loglik['histostore']:.4f}")
    reached = [ratio for name, ratio in ratios.items() if abs(loglik[name] - loglik["histostore"]) < 0.01]
    finite = [value for value in loglik.values() if np.isfinite(value)]
    good = min(reached, default=0.0) >= MUST and loglik["histostore"] >= max(finite) - 1e-6
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
