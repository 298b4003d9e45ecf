"""LMMNN's simulation: one categorical, two categoricals, and a surface over locations, beside figures that are known.

Simchoni and Rosset, "Using random effects to account for high-cardinality categorical features and repeated measures
in deep neural networks", NeurIPS 2021; "Integrating random effects in deep neural networks", JMLR 24 (2023).

Design, as in their code: N = 100,000 rows, ten covariates U(-1, 1), y = f(x) + effects + e with η = 1 + Σx,
f = η cos η + 2 x0 x1, s_e = 1; levels' shares of the rows are proportional to Poisson(3) + 1; 20 % of the rows, drawn
at random, are the test set. Effects are b ~ N(0, s_b) of the q levels of a factor, or of two factors drawn apart, or a
Gaussian process with kernel s_0 exp(-d² / 2 s_1) at q locations in a square with sides of 20. What differs: one
repetition per cell by default, and the network is the `RENN` head's.

Beside the test error stand that of the oracle (true f, true variances, best linear prediction of the effects from the
training rows) and the best that they published (LMMNN, in spatial cells also deep kernel learning), and the variances
beside the exact fit that knows f, where its matrices are small: the nominal s_b itself has a sampling error of 14 %
with 100 groups.

    python pipelines/lmmnn_simulation.py [--n 100000] [--cells 1:1000,0.5+5:1000+10000,1~0.1:10000] [--threads 2]
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch

from histostore.heads.mixed.components import fit_components
from histostore.heads.mixed.renn import RENN
from histostore.heads.mixed.system import System
from histostore.heads.mixed.terms import Intercept, Spatial

PUBLISHED = {
    "0.1:100": 1.095, "0.1:1000": 1.094, "0.1:10000": 1.180,
    "1:100": 1.096, "1:1000": 1.103, "1:10000": 1.238,
    "10:100": 1.106, "10:1000": 1.088, "10:10000": 1.294,
    "0.5+0.5:1000+1000": 1.134, "5+5:1000+1000": 1.144,
    "0.5+0.5:1000+10000": 1.235, "5+5:1000+10000": 1.298,
    "0.5+0.5:10000+10000": 1.298, "0.5+5:10000+10000": 1.373, "5+5:10000+10000": 1.485,
    "1~0.1:10000": 1.230, "10~0.1:10000": 1.570, "10~10:10000": 1.119,
}  # fmt: skip
"""Best mean test MSE over five repetitions at N = 100,000: s_b:q, s_b+s_b:q+q, or s_0~s_1:q.

LMMNN's, but DKL's in the spatial cells 1~0.1 (LMMNN 1.299) and 10~10 (1.122)."""

HEAD: dict[str, object] = {
    "hidden": (64, 32), "activation": "tanh", "epochs": 40, "batch_size": 256, "lr": 5e-3, "weight_decay": 0.03,
    "validation": 0.0,
}  # fmt: skip
SMALL = {"hidden": (64, 64), "batch_size": 64, "weight_decay": 0.2}
"""Instead where there are fewer than 20,000 rows: less is known, so more must be assumed."""

KNOWING = 1000
"""Edge of the largest matrix up to which the fit that knows f is made too: it tries many."""


@dataclass(frozen=True)
class Cell:
    """One design."""

    name: str
    s: tuple[float, ...]
    q: tuple[int, ...]

    @classmethod
    def of(cls, name: str) -> Cell:
        """Return the cell with this name."""
        s, q = name.replace("~", "+").split(":")
        return cls(name, tuple(map(float, s.split("+"))), tuple(map(int, q.split("+"))))

    @property
    def spatial(self) -> bool:
        """Whether effects are a surface's."""
        return "~" in self.name


@dataclass(frozen=True)
class Sample:
    """One draw of the design."""

    X: np.ndarray
    y: np.ndarray
    f: np.ndarray
    terms: dict[str, Intercept | Spatial]
    train: np.ndarray
    test: np.ndarray

    def part(self, rows: np.ndarray) -> dict[str, Intercept | Spatial]:
        """Return the random terms of some rows."""
        return {name: term.take(rows) for name, term in self.terms.items()}


@dataclass(frozen=True)
class Found:
    """What one draw gave."""

    cell: Cell
    mse: float
    oracle: float
    ignoring: float
    s2: tuple[float, ...]
    s2_knowing: tuple[float, ...]
    seconds: float
    """Of one core."""
    notes: tuple[str, ...]

    @property
    def off(self) -> float:
        """Largest relative distance of a variance from that of the fit that knows f."""
        return max((abs(a / b - 1) for a, b in zip(self.s2, self.s2_knowing, strict=False)), default=0.0)

    def line(self, *, published: bool) -> str:
        """Return its line of the table."""
        beside = f"{PUBLISHED.get(self.cell.name, float('nan')):.3f}" if published else "    -"
        ours, theirs = (" / ".join(f"{v:.4g}" for v in s) or "-" for s in (self.s2, self.s2_knowing))
        return (
            f"{self.cell.name:19s}  {self.mse:.4f}  {self.oracle:.4f}  {self.mse / self.oracle:.3f}  {beside}  "
            f"{self.ignoring:7.3f}  {ours:24s}  {theirs:24s}  {self.off:5.1%}  {self.seconds:.0f} s"
        )


def draw(cell: Cell, n: int, seed: int) -> Sample:
    """Return a draw of the design."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1, 1, (n, 10))
    eta = 1 + X.sum(1)
    f = eta * np.cos(eta) + 2 * X[:, 0] * X[:, 1]
    y, terms = f, {}
    for k, q in enumerate(cell.q):
        share = rng.poisson(3, q) + 1.0
        group = np.repeat(np.arange(q), rng.multinomial(n, share / share.sum()))
        if k:
            rng.shuffle(group)
        if cell.spatial:
            xy = rng.uniform(-10, 10, (q, 2))
            y = y + surface(xy, *cell.s, rng)[group]
            terms["where"] = Spatial(xy[group])
        else:
            y = y + rng.normal(0, np.sqrt(cell.s[k]), q)[group]
            terms[f"z{k}"] = Intercept(group)
    y = y + rng.normal(size=n)
    order = rng.permutation(n)
    return Sample(X.astype(np.float32), y, f, terms, order[n // 5 :], order[: n // 5])


def surface(xy: np.ndarray, variance: float, squared_length: float, rng: np.random.Generator) -> np.ndarray:
    """Return a draw of the process at positions ``(q, 2)``."""
    kernel = (xy**2).sum(1)[:, None] + (xy**2).sum(1) - 2 * xy @ xy.T
    kernel *= -0.5 / squared_length
    np.exp(kernel, out=kernel)
    kernel.flat[:: len(xy) + 1] += 1e-6
    return np.sqrt(variance) * (np.linalg.cholesky(kernel) @ rng.normal(size=len(xy)))


def oracle(cell: Cell, s: Sample) -> float:
    """Return the test MSE of the true f and variances, with the best linear predictions of the effects."""
    built = [term.build(name) for name, term in s.terms.items()]
    known = System.of([t.on(s.train) for t in built])
    by_name = dict(zip(s.terms, np.log(cell.s)[:, None] / 2, strict=False))
    if cell.spatial:
        by_name = {"where": np.log(cell.s) / 2}
    theta = np.concatenate([by_name[t.levels.name] for t in known.terms])
    effects = known.solve(known.factored(theta), known.z.T @ (s.y - s.f)[s.train][:, None])
    return float(np.mean((s.y - s.f - (System.of(built).z @ effects)[:, 0])[s.test] ** 2))


def run(cell: Cell, n: int, seed: int, head: dict[str, object]) -> Found:
    """Return what one draw gave."""
    s = draw(cell, n, seed)
    train, test = s.part(s.train), s.part(s.test)
    began = time.process_time()
    renn = RENN(seed=seed, **head)  # type: ignore[arg-type]
    renn.fit(s.X[s.train], s.y[s.train], groups=train)
    seconds = time.process_time() - began
    predicted = renn.predict(s.X[s.test], test)[:, 0]
    unaware = renn.predict(s.X[s.test])[:, 0]
    knowing: tuple[float, ...] = ()
    if not cell.spatial and sum(sorted(cell.q)[:-1]) <= KNOWING:
        fit = fit_components((s.y - s.f)[s.train], train)
        knowing = (fit.s2_e, *(fit.terms[name]["variance"] for name in train))
    return Found(
        cell,
        mse=float(np.mean((predicted - s.y[s.test]) ** 2)),
        oracle=oracle(cell, s),
        ignoring=float(np.mean((unaware - s.y[s.test]) ** 2)),
        s2=(float(renn.s2_e_[0]), *(v for term in renn.components().values() for v in term.values())),
        s2_knowing=knowing,
        seconds=seconds,
        notes=renn.notes_,
    )


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 where a cell of full size misses what is claimed of it.

    That is 3 % above the oracle, above the published figure, or 5 % off in a variance.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000, help="rows (default 100000)")
    parser.add_argument("--cells", default=",".join(PUBLISHED), help="as in the example above (default all)")
    parser.add_argument("--reps", type=int, default=1, help="draws per cell (default 1)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the first draw")
    parser.add_argument("--epochs", type=int, default=HEAD["epochs"], help="at most (default 40)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    head = HEAD | (SMALL if options.n < 20_000 else {}) | {"epochs": options.epochs}
    full = options.n == 100_000
    print(  # noqa: T201
        f"{'cell':19s}  MSE     oracle  ratio  best     no effect  {'s_e / s_b …':24s}  {'knowing f':24s}  off",
        flush=True,
    )
    good = True
    for name in options.cells.split(","):
        found = []
        for rep in range(options.reps):
            found.append(run(Cell.of(name), options.n, options.seed + rep, head))
            print(found[-1].line(published=full), *found[-1].notes, sep="\n    ", flush=True)  # noqa: T201
        mse, best = np.mean([c.mse for c in found]), np.mean([c.oracle for c in found])
        near = mse <= 1.03 * best and max(c.off for c in found) <= 0.05
        good &= bool(near and mse < PUBLISHED.get(name, np.inf))
    return 0 if good or not full else 1


if __name__ == "__main__":
    sys.exit(main())
