"""What a backbone is tuned to predict: classes or values, their losses, and the head that gives them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from histostore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    type Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What is to be predicted: the loss of each row, and a score."""

    y: NDArray[Any]
    n_out: int
    classes: bool
    weight: torch.Tensor
    """``(n_out,)`` of the classes; ones for values."""
    scale: dict[str, torch.Tensor]
    """Mean and spread of values over the training rows."""

    @classmethod
    def of(cls, y: NDArray[Any], train: Rows, n_classes: int | None, *, balanced: bool, device: torch.device) -> Task:
        """Take classes (int64), or values scaled by their mean and spread over the training rows."""
        if n_classes is not None:
            seen = np.bincount(y[train], minlength=n_classes)
            # ones on average over the training rows
            weight = len(train) / (np.count_nonzero(seen) * np.maximum(seen, 1)) if balanced else np.ones(n_classes)
            return cls(y, n_classes, True, torch.tensor(weight, dtype=torch.float32, device=device), {})
        mean, spread = y[train].mean(axis=0), y[train].std(axis=0)
        if (constant := np.flatnonzero(spread <= 1e-12 * np.maximum(1.0, np.abs(mean)))).size:
            msg = f"target {int(constant[0])} is {mean[constant[0]]:g} in all {len(train)} training rows: leave it out"
            raise DataError(msg)
        scaled = ((y - mean) / spread).astype(np.float32)
        scale = {"target_mean": torch.from_numpy(mean), "target_std": torch.from_numpy(spread)}
        return cls(scaled, y.shape[1], False, torch.ones(y.shape[1], device=device), scale)

    def losses(self, out: torch.Tensor, rows: Rows, *, weighted: bool) -> torch.Tensor:
        """Return the loss of each row: cross-entropy, or the squared error in training spreads, mean over targets."""
        y = torch.from_numpy(self.y[rows]).to(out.device)
        if not self.classes:
            return (out - y).square().mean(dim=1)
        found = functional.cross_entropy(out, y, reduction="none")
        return found * self.weight[y] if weighted else found

    def score(self, out: NDArray[np.float32], rows: Rows) -> float:
        """Return balanced accuracy over the classes that are there, or the mean share of variance explained."""
        y = self.y[rows]
        if self.classes:
            right = out.argmax(axis=1) == y
            return float(np.mean([right[y == c].mean() for c in np.unique(y)]))
        error, naive = ((out - y) ** 2).mean(axis=0), (y**2).mean(axis=0)
        return float(np.mean(1 - error / np.maximum(naive, 1e-12)))


def head_of(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.Linear(a, b))
    return nn.Sequential(*layers)
